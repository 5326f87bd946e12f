"""The calibration file: an `.npz` that holds a `Calibration`, whole or in part.

The same calibration gives the same bytes. Reading checks every number: nothing in a file is
executed, and no size it claims is allocated unchecked.
"""

import io
import json
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
from numpy.lib import format as npy
from numpy.typing import DTypeLike, NDArray

from qconvert.calibrate.calibration import Calibration, Origin
from qconvert.calibrate.collect import Collector
from qconvert.calibrate.summary import FINE_BITS, ChannelSummary, ExactSum, FloatCounts, Summary
from qconvert.core import atomic, npz
from qconvert.core.errors import QConvertError, UsageError, attach_path, first_line

FORMAT = "qconvert-calibration"
VERSION = 1
ZIP_TIME = (1980, 1, 1, 0, 0, 0)
SAVE_SECONDS = 10.0
# Far above what can be counted, and far below where sums overflow.
MAX_COUNT = 1 << 48

Array = NDArray[Any]
SummaryField = Callable[[Summary], Array]

# Arrays of all tensors end to end; `key_counts` and `channel_counts` hold the lengths.
KEY_FIELDS: Mapping[str, SummaryField] = {
    "keys": lambda summary: summary.counts.keys,
    "numbers": lambda summary: summary.counts.occurrences,
}
CHANNEL_FIELDS: Mapping[str, SummaryField] = {
    "channel_lows": lambda summary: summary.channels.lows,
    "channel_highs": lambda summary: summary.channels.highs,
    "coarse": lambda summary: summary.channels.sums.coarse,
    "fine": lambda summary: summary.channels.sums.fine,
}
DTYPES: Mapping[str, DTypeLike] = {
    "about": np.uint8,  # JSON: format, version, origin
    "done": np.int64,
    "lows": np.float32,  # a row for each tensor, a column for each image
    "highs": np.float32,
    "sizes": np.int64,
    "key_counts": np.int64,
    "keys": np.uint16,
    "numbers": np.int64,
    "channel_counts": np.int64,
    "channel_lows": np.float32,
    "channel_highs": np.float32,
    "coarse": np.int64,
    "fine": np.int64,
}


def save(calibration: Calibration, path: Path) -> None:
    """Write the file; it appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with attach_path(path), atomic.temporary_folder(path.parent) as folder:
        draft = folder / path.name
        draft.write_bytes(pack(calibration))
        draft.replace(path)


def load(path: Path) -> Calibration:
    """Read a file that `save` wrote; reject any other with the reason."""
    if not path.is_file():
        raise UsageError(
            f"`{path}` does not exist", hint="`qconvert calibrate MODEL --images PATH` writes one"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            return unpack(archive)
    except npz.CORRUPT_ERRORS as error:
        raise QConvertError(
            f"`{path}` is not a calibration file, or is damaged: {first_line(error)}",
            hint="calibrate again, or copy the file again; the copy may be incomplete",
        ) from None


def make_periodic_saver(
    path: Path, seconds: float = SAVE_SECONDS, clock: Callable[[], float] = time.monotonic
) -> Callable[[Collector], None]:
    """Return a callback for `collect` that saves its state every few seconds.

    A killed process loses only what came after the last save; the file is always whole.
    """
    last = clock()

    def save_if_due(collector: Collector) -> None:
        nonlocal last
        if clock() - last >= seconds:
            save(collector.calibration(), path)
            last = clock()

    return save_if_due


def pack(calibration: Calibration) -> bytes:
    """Return the bytes of the archive."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, array in sorted(_to_arrays(calibration).items()):
            data = io.BytesIO()
            npy.write_array(data, array.astype(DTYPES[name]), version=(1, 0), allow_pickle=False)
            # Without a fixed time and system the same content would have other bytes.
            member = zipfile.ZipInfo(f"{name}.npy", ZIP_TIME)
            member.create_system = 3
            archive.writestr(member, data.getvalue(), zipfile.ZIP_DEFLATED, compresslevel=3)
    return content.getvalue()


def unpack(archive: zipfile.ZipFile) -> Calibration:
    """Return what `pack` wrote; ValueError says what is wrong with anything else."""
    members = {member.filename: member for member in archive.infolist()}
    npz.require_within_limit(list(members.values()))
    if "about.npy" not in members:
        raise ValueError("its format is not stated")
    origin = _parse_origin(_read_array(archive, members["about.npy"], "about"))
    if set(members) != {f"{name}.npy" for name in DTYPES}:
        raise ValueError("it does not hold the expected arrays")
    arrays = {name: _read_array(archive, members[f"{name}.npy"], name) for name in DTYPES}
    _validate(origin, arrays)
    summaries = _to_summaries(origin, arrays) if arrays["done"].size else {}
    return Calibration(origin, arrays["done"].astype(np.int64), summaries)


def _to_arrays(calibration: Calibration) -> dict[str, Array]:
    origin, count = calibration.origin, calibration.image_indices.size
    summaries = [calibration.summaries[tensor] for tensor in origin.tensors] if count else []
    about = {"format": FORMAT, "version": VERSION, "origin": asdict(origin)}
    shape = len(summaries), count
    return {
        "about": np.frombuffer(json.dumps(about, sort_keys=True).encode(), dtype=np.uint8),
        "done": calibration.image_indices,
        "lows": np.array([summary.lows for summary in summaries]).reshape(shape),
        "highs": np.array([summary.highs for summary in summaries]).reshape(shape),
        "sizes": np.array([summary.size for summary in summaries]),
        "key_counts": np.array([summary.counts.keys.size for summary in summaries]),
        "channel_counts": np.array([summary.channels.lows.size for summary in summaries]),
        **{
            name: np.concatenate([np.zeros(0, DTYPES[name]), *map(get, summaries)])
            for name, get in {**KEY_FIELDS, **CHANNEL_FIELDS}.items()
        },
    }


def _to_summaries(origin: Origin, arrays: Mapping[str, Array]) -> dict[str, Summary]:
    parts: dict[str, list[Array]] = {}
    for fields, lengths in ((KEY_FIELDS, "key_counts"), (CHANNEL_FIELDS, "channel_counts")):
        ends = np.cumsum(arrays[lengths])[:-1]
        parts |= {name: np.split(arrays[name], ends) for name in fields}
    summaries = {}
    for row, tensor in enumerate(origin.tensors):
        part = {name: pieces[row] for name, pieces in parts.items()}
        sums = ExactSum(part["coarse"], part["fine"])
        summaries[tensor] = Summary(
            arrays["lows"][row],
            arrays["highs"][row],
            FloatCounts(part["keys"], part["numbers"]),
            int(arrays["sizes"][row]),
            ChannelSummary(part["channel_lows"], part["channel_highs"], sums),
        )
    return summaries


def _read_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str) -> Array:
    array = npz.read_array(archive, member)
    if array.dtype != DTYPES[name]:
        raise ValueError(f"`{name}` has another type")
    return array


def _parse_origin(about: Array) -> Origin:
    try:
        header = json.loads(about.tobytes())
        is_ours, version = header["format"] == FORMAT, header["version"]
    except (ValueError, KeyError, TypeError, RecursionError):
        is_ours, version = False, None
    if not is_ours:
        raise ValueError("its format is not stated")
    if version != VERSION:
        raise QConvertError(
            f"the calibration file has format {version}, this qconvert reads {VERSION}",
            hint="calibrate again, or use the version of qconvert that wrote the file",
        )
    try:
        return pydantic.TypeAdapter(Origin).validate_json(json.dumps(header.get("origin")))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise ValueError(f"its origin is not complete: {field}: {first['msg']}") from None


def _validate(origin: Origin, arrays: Mapping[str, Array]) -> None:
    """Raise ValueError for the first array with impossible numbers; their types are right."""

    def require(holds: bool | np.bool_, name: str) -> None:
        if not holds:
            raise ValueError(f"the numbers in `{name}` are impossible")

    done, lows, highs = arrays["done"], arrays["lows"], arrays["highs"]
    require(done.ndim == 1 and _is_increasing(done), "done")
    require(_in_range(done, 0, len(origin.images) - 1), "done")
    tensors = len(origin.tensors) if done.size else 0
    for name in ("lows", "highs"):
        require(arrays[name].shape == (tensors, done.size), name)
        require(not np.isinf(arrays[name]).any(), name)
    require(((lows <= highs) | np.isnan(lows)).all(), "lows")
    require((np.isnan(highs) == np.isnan(lows)).all(), "highs")
    for name in ("sizes", "key_counts", "channel_counts"):
        require(arrays[name].shape == (tensors,), name)
        require(_in_range(arrays[name], 0, MAX_COUNT), name)

    counts, keys, numbers = arrays["key_counts"], arrays["keys"], arrays["numbers"]
    require(_lengths_match(counts, keys) and numbers.shape == keys.shape, "keys")
    require(_in_range(numbers, 1, MAX_COUNT), "numbers")
    # Keys rise within a tensor, so they rise throughout with the number of the tensor in front.
    require(_is_increasing((np.repeat(np.arange(tensors), counts) << 16) + keys), "keys")

    counts, lows, highs = (arrays[f"channel_{name}"] for name in ("counts", "lows", "highs"))
    require(_lengths_match(counts, lows) and (counts > 0).all(), "channel_counts")
    require(highs.shape == lows.shape, "channel_highs")
    # A channel of a tensor that was never finite runs from infinity down to minus infinity.
    empty = np.isposinf(lows) & np.isneginf(highs)
    require(((lows <= highs) & np.isfinite(highs - lows) | empty).all(), "channel_lows")
    for name in ("coarse", "fine"):
        require(arrays[name].shape == lows.shape, name)
    require(_in_range(arrays["fine"], 0, (1 << FINE_BITS) - 1), "fine")


def _lengths_match(lengths: Array, joined: Array) -> bool:
    # Summed as Python integers, which do not overflow.
    return joined.ndim == 1 and sum(lengths.tolist()) == joined.size


def _is_increasing(array: Array) -> bool:
    return bool((array[1:] > array[:-1]).all())


def _in_range(array: Array, low: int, high: int) -> bool:
    return bool(((array >= low) & (array <= high)).all())
