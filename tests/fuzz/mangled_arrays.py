"""Archives of arrays spoiled member by member, in archives that are still whole."""

import io
import random
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from tests.fuzz import mangled_bytes, mangled_trees, words

Members = dict[str, bytes]


def mangle(chance: random.Random, data: bytes) -> bytes:
    """Change one or two members of an .npz."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
        packed = any(each.compress_type for each in archive.infolist())
    for _ in range(chance.choice((1, 1, 2))):
        if members:
            _change(chance, members)
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED if packed else 0) as archive:
        for name, member in members.items():
            archive.writestr(zipfile.ZipInfo(name or "x"), member, compress_type=None)
    return content.getvalue()


def mangle_npy(chance: random.Random, data: bytes) -> bytes:
    """Change the array of an .npy, or only what its header claims."""
    try:
        array = npy.read_array(io.BytesIO(data))
    except ValueError:
        return mangled_bytes.mangle(chance, data)
    if chance.random() < 0.3:
        return claimed(chance, data)
    return written(_other(chance, array))


def claimed(chance: random.Random, data: bytes) -> bytes:
    """Let the header claim another shape or type than the bytes have."""
    shape = tuple(abs(words.integer(chance)) for _ in range(chance.randrange(4)))
    kind = chance.choice(("<f4", "<f8", "|O", "|S1000000000", "<U9", "|V8", "<i8", "|b1", "<c16"))
    header = {"descr": kind, "fortran_order": chance.random() < 0.3, "shape": shape}
    content = io.BytesIO()
    npy.write_array_header_1_0(content, header)
    return content.getvalue() + data[128:]


def written(array: NDArray[Any]) -> bytes:
    """Return an array as an .npy."""
    content = io.BytesIO()
    npy.write_array(content, array, allow_pickle=True)
    return content.getvalue()


def _change(chance: random.Random, members: Members) -> None:
    name = chance.choice(sorted(members))
    match chance.choice(
        ("array", "array", "array", "json", "drop", "rename", "bytes", "add", "link")
    ):
        case "drop":
            del members[name]
        case "rename":
            members[words.name(chance) + ".npy"] = members.pop(name)
        case "bytes":
            members[name] = mangled_bytes.mangle(chance, members[name])
        case "add":
            members[words.name(chance)] = members[name]
        case "json" if "about.npy" in members:
            members["about.npy"] = _about(chance, members["about.npy"])
        case "link":
            members[name] = written(np.zeros((1, 10_000_000), np.uint8))
        case _:
            members[name] = mangle_npy(chance, members[name])


def _about(chance: random.Random, data: bytes) -> bytes:
    """Change the JSON that a calibration file says about itself."""
    import json

    try:
        tree = json.loads(npy.read_array(io.BytesIO(data)).tobytes())
    except ValueError:
        return data
    text = mangled_trees.json_text(mangled_trees.mangle(chance, tree))
    return written(np.frombuffer(text, np.uint8))


def _other(chance: random.Random, array: NDArray[Any]) -> NDArray[Any]:
    kinds = (np.float64, np.float16, np.int64, np.uint8, np.bool_, np.complex64, np.str_, object)
    flat = array if array.ndim else array.reshape(1)
    shape = chance.choice(((-1,), (1, -1), (-1, 1, 1), (*array.shape, 1)))
    ways: tuple[Callable[[], NDArray[Any]], ...] = (
        lambda: array.astype(chance.choice(kinds)),
        lambda: array.reshape(shape),
        lambda: np.concatenate([array.ravel(), array.ravel()]),
        lambda: flat[:-1],
        lambda: flat[:0],
        lambda: np.frombuffer(chance.randbytes(array.nbytes), array.dtype).reshape(array.shape),
        lambda: _edged(chance, array),
        lambda: _edged(chance, array),
    )
    with np.errstate(all="ignore"):
        return chance.choice(ways)()


def _edged(chance: random.Random, array: NDArray[Any]) -> NDArray[Any]:
    """Set some numbers to an edge of what their type holds."""
    changed = array.copy().ravel()
    if not changed.size or changed.dtype.kind not in "iuf":
        return array
    edge: Any = words.number(chance)
    if changed.dtype.kind in "iu":
        limits = np.iinfo(changed.dtype)
        edge = min(max(words.integer(chance), limits.min), limits.max)
    places = [chance.randrange(changed.size) for _ in range(chance.choice((1, 1, 10, 1000)))]
    changed[places] = edge
    return changed.reshape(array.shape)
