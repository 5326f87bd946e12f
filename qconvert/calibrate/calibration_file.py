"""The arrays of a calibration file keep every promise that the code makes about them."""

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

# Far above what can be counted, and far below where sums overflow.
MAX_COUNT = 1 << 48

Array = NDArray[Any]


def validate_arrays(origin: Origin, arrays: Mapping[str, Array]) -> None:
    """Raise ValueError for the first array that breaks a promise; their types are right already."""
    done = arrays["done"]
    _require_valid(done.ndim == 1 and _is_increasing(done), "done")
    _require_valid(_in_range(done, 0, len(origin.images) - 1), "done")
    tensors = len(origin.tensors) if done.size else 0
    _check_images(arrays, (tensors, done.size))
    for name in ("sizes", "key_counts", "channel_counts"):
        _require_valid(arrays[name].shape == (tensors,), name)
        _require_valid(_in_range(arrays[name], 0, MAX_COUNT), name)
    _check_keys(arrays)
    _check_channels(arrays)


def _check_images(arrays: Mapping[str, Array], shape: tuple[int, int]) -> None:
    lows, highs = arrays["lows"], arrays["highs"]
    for name in ("lows", "highs"):
        _require_valid(arrays[name].shape == shape and not np.isinf(arrays[name]).any(), name)
    broken = np.isnan(lows)
    _require_valid(bool(((lows <= highs) | broken).all()), "lows")
    _require_valid(bool((np.isnan(highs) == broken).all()), "highs")


def _check_keys(arrays: Mapping[str, Array]) -> None:
    counts, keys, numbers = arrays["key_counts"], arrays["keys"], arrays["numbers"]
    _require_valid(_lengths_match(counts, keys) and numbers.shape == keys.shape, "keys")
    _require_valid(_in_range(numbers, 1, MAX_COUNT), "numbers")
    # Keys rise within a tensor, and so do keys with the tensor's number in front of all.
    tensors = np.repeat(np.arange(counts.size), counts)
    _require_valid(_is_increasing((tensors << 16) + keys), "keys")


def _check_channels(arrays: Mapping[str, Array]) -> None:
    counts, lows, highs = (arrays[f"channel_{name}"] for name in ("counts", "lows", "highs"))
    _require_valid(_lengths_match(counts, lows) and bool((counts > 0).all()), "channel_counts")
    _require_valid(highs.shape == lows.shape, "channel_highs")
    # A channel of a tensor that was never finite runs from infinity down to minus infinity.
    unseen = np.isposinf(lows) & np.isneginf(highs)
    _require_valid(
        bool(((lows <= highs) & np.isfinite(highs - lows) | unseen).all()), "channel_lows"
    )
    for name in ("coarse", "fine"):
        _require_valid(arrays[name].shape == lows.shape, name)
    _require_valid(_in_range(arrays["fine"], 0, (1 << FINE_BITS) - 1), "fine")


def _require_valid(holds: bool, name: str) -> None:
    if not holds:
        raise ValueError(f"the numbers in `{name}` are impossible")


def _lengths_match(lengths: Array, joined: Array) -> bool:
    # Summed as Python integers, which do not overflow.
    return joined.ndim == 1 and sum(lengths.tolist()) == joined.size


def _is_increasing(array: Array) -> bool:
    return bool((array[1:] > array[:-1]).all())


def _in_range(array: Array, low: int, high: int) -> bool:
    return bool(((array >= low) & (array <= high)).all())


FORMAT = "qconvert-calibration"
VERSION = 1
ZIP_TIME = (1980, 1, 1, 0, 0, 0)

SummaryField = Callable[[Summary], Array]

# One after the other, tensor by tensor; `key_counts` and `channel_counts` tell them apart.
KEY_FIELDS: Mapping[str, SummaryField] = {
    "keys": lambda seen: seen.counts.keys,
    "numbers": lambda seen: seen.counts.occurrences,
}
CHANNEL_FIELDS: Mapping[str, SummaryField] = {
    "channel_lows": lambda seen: seen.channels.lows,
    "channel_highs": lambda seen: seen.channels.highs,
    "coarse": lambda seen: seen.channels.sums.coarse,
    "fine": lambda seen: seen.channels.sums.fine,
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


def pack(calibration: Calibration) -> bytes:
    """Return the bytes of the archive."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, array in sorted(_arrays(calibration).items()):
            data = io.BytesIO()
            npy.write_array(data, array.astype(DTYPES[name]), version=(1, 0), allow_pickle=False)
            # Without a fixed time and system the same content would make other bytes.
            member = zipfile.ZipInfo(f"{name}.npy", ZIP_TIME)
            member.create_system = 3
            archive.writestr(member, data.getvalue(), zipfile.ZIP_DEFLATED, compresslevel=3)
    return content.getvalue()


def unpack(archive: zipfile.ZipFile) -> Calibration:
    """Return what `pack` put in; ValueError says what is wrong with anything else."""
    members = {member.filename: member for member in archive.infolist()}
    npz.require_within_limit(list(members.values()))
    if "about.npy" not in members:
        raise ValueError("it does not say what it is")
    origin = _parse_origin(_read_array(archive, members["about.npy"], "about"))
    if set(members) != {f"{name}.npy" for name in DTYPES}:
        raise ValueError("it does not hold the expected arrays")
    arrays = {name: _read_array(archive, members[f"{name}.npy"], name) for name in DTYPES}
    validate_arrays(origin, arrays)
    summaries = _summaries(origin, arrays) if arrays["done"].size else {}
    return Calibration(origin, arrays["done"].astype(np.int64), summaries)


def _arrays(calibration: Calibration) -> dict[str, Array]:
    origin, images = calibration.origin, calibration.image_indices.size
    seen = [calibration.summaries[tensor] for tensor in origin.tensors] if images else []
    about = {"format": FORMAT, "version": VERSION, "origin": asdict(origin)}
    joined = {
        name: np.concatenate([np.zeros(0, DTYPES[name]), *map(part, seen)])
        for name, part in {**KEY_FIELDS, **CHANNEL_FIELDS}.items()
    }
    return {
        "about": np.frombuffer(json.dumps(about, sort_keys=True).encode(), dtype=np.uint8),
        "done": calibration.image_indices,
        "lows": np.array([each.lows for each in seen]).reshape(len(seen), images),
        "highs": np.array([each.highs for each in seen]).reshape(len(seen), images),
        "sizes": np.array([each.size for each in seen]),
        "key_counts": np.array([each.counts.keys.size for each in seen]),
        "channel_counts": np.array([each.channels.lows.size for each in seen]),
        **joined,
    }


def _read_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str) -> Array:
    array = npz.read_array(archive, member)
    if array.dtype != DTYPES[name]:
        raise ValueError(f"`{name}` has another type")
    return array


def _parse_origin(about: Array) -> Origin:
    try:
        said = json.loads(about.tobytes())
        known, version = said["format"] == FORMAT, said["version"]
    except (ValueError, KeyError, TypeError, RecursionError):
        known, version = False, None
    if not known:
        raise ValueError("it does not say what it is")
    if version != VERSION:
        raise QConvertError(
            f"the calibration file has format {version}, this qconvert reads {VERSION}",
            hint="calibrate again, or use the version of qconvert that wrote the file",
        )
    try:
        return pydantic.TypeAdapter(Origin).validate_json(json.dumps(said.get("origin")))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"its origin is not complete: {where}: {first['msg']}") from None


def _summaries(origin: Origin, arrays: Mapping[str, Array]) -> dict[str, Summary]:
    by_key = {name: _split(arrays[name], arrays["key_counts"]) for name in KEY_FIELDS}
    by_channel = {name: _split(arrays[name], arrays["channel_counts"]) for name in CHANNEL_FIELDS}
    return {
        tensor: Summary(
            arrays["lows"][at],
            arrays["highs"][at],
            FloatCounts(by_key["keys"][at], by_key["numbers"][at]),
            int(arrays["sizes"][at]),
            ChannelSummary(
                by_channel["channel_lows"][at],
                by_channel["channel_highs"][at],
                ExactSum(by_channel["coarse"][at], by_channel["fine"][at]),
            ),
        )
        for at, tensor in enumerate(origin.tensors)
    }


def _split(joined: Array, lengths: Array) -> list[Array]:
    return np.split(joined, np.cumsum(lengths)[:-1])


SAVE_SECONDS = 10.0


def save(calibration: Calibration, path: Path) -> None:
    """Write the file; it appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with attach_path(path), atomic.temporary_folder(path.parent) as folder:
        draft = folder / path.name
        draft.write_bytes(pack(calibration))
        draft.replace(path)


def load(path: Path) -> Calibration:
    """Read a file that `save` wrote; refuse any other with the reason."""
    if not path.is_file():
        raise UsageError(
            f"`{path}` does not exist", hint="`qconvert calibrate MODEL --images PATH` makes one"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            return unpack(archive)
    except npz.CORRUPT_ERRORS as error:
        raise QConvertError(
            f"`{path}` is not a calibration file, or is damaged: {first_line(error)}",
            hint="calibrate again, or copy the file again; a copy cut short says the same",
        ) from None


def make_periodic_saver(
    path: Path, seconds: float = SAVE_SECONDS, clock: Callable[[], float] = time.monotonic
) -> Callable[[Collector], None]:
    """Return what `collect` calls after each batch, to keep its state in a file every few seconds.

    A process that is killed loses what came after the last time; the file is always whole.
    """
    last = clock()

    def after(collector: Collector) -> None:
        nonlocal last
        if clock() - last >= seconds:
            save(collector.calibration(), path)
            last = clock()

    return after
