"""The calibration file: an `.npz` that holds a `Calibration`, whole or in part.

The same calibration gives the same bytes. Reading checks every number: nothing in a file is
executed, and no size it claims is allocated unchecked.
"""

import io
import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
from numpy.lib import format as npy
from numpy.typing import ArrayLike, DTypeLike, NDArray

from qconvert.calibrate.calibration import Calibration, Origin
from qconvert.calibrate.summary import FINE_BITS, ChannelSummary, ExactSum, FloatCounts, Summary
from qconvert.core import atomic, npz
from qconvert.core.errors import QConvertError, UsageError, attach_path, first_line

FORMAT = "qconvert-calibration"
VERSION = 1
# Far above what can be counted, and far below where sums overflow.
MAX_COUNT = 1 << 48

Array = NDArray[Any]

# The arrays of all tensors end to end; `key_counts` and `channel_counts` hold the lengths. `lows`
# and `highs` have a row for each tensor, a column for each image.
FIELDS: Mapping[str, tuple[DTypeLike, Callable[[Summary], ArrayLike]]] = {
    "lows": (np.float32, lambda summary: summary.lows),
    "highs": (np.float32, lambda summary: summary.highs),
    "sizes": (np.int64, lambda summary: summary.size),
    "key_counts": (np.int64, lambda summary: summary.counts.keys.size),
    "keys": (np.uint16, lambda summary: summary.counts.keys),
    "numbers": (np.int64, lambda summary: summary.counts.occurrences),
    "channel_counts": (np.int64, lambda summary: summary.channels.lows.size),
    "channel_lows": (np.float32, lambda summary: summary.channels.lows),
    "channel_highs": (np.float32, lambda summary: summary.channels.highs),
    "coarse": (np.int64, lambda summary: summary.channels.sums.coarse),
    "fine": (np.int64, lambda summary: summary.channels.sums.fine),
}
DTYPES: Mapping[str, DTypeLike] = {
    "about": np.uint8,  # JSON: format, version, origin
    "done": np.int64,
    **{name: dtype for name, (dtype, _) in FIELDS.items()},
}


def save(calibration: Calibration, path: Path) -> None:
    """Write the file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with attach_path(path), atomic.temporary_folder(path.parent) as folder:
        draft = folder / path.name
        draft.write_bytes(pack(calibration))
        draft.replace(path)


def pack(calibration: Calibration) -> bytes:
    """Return the bytes of the archive."""
    origin, indices = calibration.origin, calibration.image_indices
    summaries = [calibration.summaries[tensor] for tensor in origin.tensors] if indices.size else []
    about = json.dumps(
        {"format": FORMAT, "version": VERSION, "origin": asdict(origin)}, sort_keys=True
    )
    arrays: dict[str, Array] = {"about": np.frombuffer(about.encode(), np.uint8), "done": indices}
    for name, (dtype, get) in FIELDS.items():
        parts = [np.atleast_1d(get(summary)) for summary in summaries]
        arrays[name] = np.concatenate([np.zeros(0, dtype), *parts])
    for name in ("lows", "highs"):
        arrays[name] = arrays[name].reshape(len(summaries), indices.size)
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, array in sorted(arrays.items()):
            data = io.BytesIO()
            npy.write_array(data, array.astype(DTYPES[name]), version=(1, 0), allow_pickle=False)
            # Without a fixed time and system the same content would have other bytes.
            member = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
            member.create_system = 3
            archive.writestr(member, data.getvalue(), zipfile.ZIP_DEFLATED, compresslevel=3)
    return content.getvalue()


def load(path: Path) -> Calibration:
    """Read a file that `save` wrote; reject any other with the reason."""
    if not path.is_file():
        raise UsageError(
            f"`{path}` does not exist", hint="`qconvert calibrate MODEL --images PATH` writes one"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            return _unpack(archive)
    except npz.CORRUPT_ERRORS as error:
        raise QConvertError(
            f"`{path}` is not a calibration file, or is damaged: {first_line(error)}",
            hint="calibrate again, or copy the file again; the copy may be incomplete",
        ) from None


def _unpack(archive: zipfile.ZipFile) -> Calibration:
    """Return what `pack` wrote; ValueError says what is wrong with anything else."""
    members = {member.filename: member for member in archive.infolist()}
    npz.require_within_limit(list(members.values()))

    def read(name: str) -> Array:
        array = npz.read_array(archive, members[f"{name}.npy"])
        if array.dtype != DTYPES[name]:
            raise ValueError(f"`{name}` has another type")
        return array

    if "about.npy" not in members:
        raise ValueError("its format is not stated")
    origin = _parse_origin(read("about").tobytes())
    if set(members) != {f"{name}.npy" for name in DTYPES}:
        raise ValueError("it does not hold the expected arrays")
    arrays = {name: read(name) for name in DTYPES}
    _validate(origin, arrays)
    indices = arrays["done"].astype(np.int64)
    if not indices.size:
        return Calibration(origin)
    rows: dict[str, Any] = dict(arrays)
    for names, lengths in (
        (("keys", "numbers"), "key_counts"),
        (("channel_lows", "channel_highs", "coarse", "fine"), "channel_counts"),
    ):
        ends = np.cumsum(arrays[lengths])[:-1]
        rows |= {name: np.split(arrays[name], ends) for name in names}
    summaries = {}
    for number, tensor in enumerate(origin.tensors):
        part = {name: rows[name][number] for name in FIELDS}
        counts = FloatCounts(part["keys"], part["numbers"])
        sums = ExactSum(part["coarse"], part["fine"])
        channels = ChannelSummary(part["channel_lows"], part["channel_highs"], sums)
        size = int(part["sizes"])
        summaries[tensor] = Summary(part["lows"], part["highs"], counts, size, channels)
    return Calibration(origin, indices, summaries)


def _parse_origin(about: bytes) -> Origin:
    try:
        header = json.loads(about)
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
