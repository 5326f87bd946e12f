"""A `Calibration` as the arrays of an archive, and back; the arrays of all tensors end to end."""

import io
import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict

import numpy as np
import pydantic
from numpy.lib import format as npy
from numpy.typing import DTypeLike

from qconvert import npz
from qconvert.calibrate.calibration import Calibration, Origin
from qconvert.calibrate.checked import Array, check
from qconvert.calibrate.counts import Counts
from qconvert.calibrate.exact_sum import ExactSum
from qconvert.calibrate.summary import Channels, Summary
from qconvert.errors import QConvertError

FORMAT = "qconvert-calibration"
VERSION = 1
EPOCH = (1980, 1, 1, 0, 0, 0)

Part = Callable[[Summary], Array]

# One after the other, tensor by tensor; `key_counts` and `channel_counts` tell them apart.
BY_KEY: Mapping[str, Part] = {
    "keys": lambda seen: seen.counts.keys,
    "numbers": lambda seen: seen.counts.numbers,
}
BY_CHANNEL: Mapping[str, Part] = {
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
            member = zipfile.ZipInfo(f"{name}.npy", EPOCH)
            member.create_system = 3
            archive.writestr(member, data.getvalue(), zipfile.ZIP_DEFLATED, compresslevel=3)
    return content.getvalue()


def unpack(archive: zipfile.ZipFile) -> Calibration:
    """Return what `pack` put in; ValueError says what is wrong with anything else."""
    members = {member.filename: member for member in archive.infolist()}
    npz.require_small(list(members.values()))
    if "about.npy" not in members:
        raise ValueError("it does not say what it is")
    origin = _origin(_read(archive, members["about.npy"], "about"))
    if set(members) != {f"{name}.npy" for name in DTYPES}:
        raise ValueError("it does not hold the expected arrays")
    arrays = {name: _read(archive, members[f"{name}.npy"], name) for name in DTYPES}
    check(origin, arrays)
    summaries = _summaries(origin, arrays) if arrays["done"].size else {}
    return Calibration(origin, arrays["done"].astype(np.int64), summaries)


def _arrays(calibration: Calibration) -> dict[str, Array]:
    origin, images = calibration.origin, calibration.done.size
    seen = [calibration.summaries[tensor] for tensor in origin.tensors] if images else []
    about = {"format": FORMAT, "version": VERSION, "origin": asdict(origin)}
    joined = {
        name: np.concatenate([np.zeros(0, DTYPES[name]), *map(part, seen)])
        for name, part in {**BY_KEY, **BY_CHANNEL}.items()
    }
    return {
        "about": np.frombuffer(json.dumps(about, sort_keys=True).encode(), dtype=np.uint8),
        "done": calibration.done,
        "lows": np.array([each.lows for each in seen]).reshape(len(seen), images),
        "highs": np.array([each.highs for each in seen]).reshape(len(seen), images),
        "sizes": np.array([each.size for each in seen]),
        "key_counts": np.array([each.counts.keys.size for each in seen]),
        "channel_counts": np.array([each.channels.lows.size for each in seen]),
        **joined,
    }


def _read(archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str) -> Array:
    array = npz.read(archive, member)
    if array.dtype != DTYPES[name]:
        raise ValueError(f"`{name}` has another type")
    return array


def _origin(about: Array) -> Origin:
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
    by_key = {name: _split(arrays[name], arrays["key_counts"]) for name in BY_KEY}
    by_channel = {name: _split(arrays[name], arrays["channel_counts"]) for name in BY_CHANNEL}
    return {
        tensor: Summary(
            arrays["lows"][at],
            arrays["highs"][at],
            Counts(by_key["keys"][at], by_key["numbers"][at]),
            int(arrays["sizes"][at]),
            Channels(
                by_channel["channel_lows"][at],
                by_channel["channel_highs"][at],
                ExactSum(by_channel["coarse"][at], by_channel["fine"][at]),
            ),
        )
        for at, tensor in enumerate(origin.tensors)
    }


def _split(joined: Array, lengths: Array) -> list[Array]:
    return np.split(joined, np.cumsum(lengths)[:-1])
