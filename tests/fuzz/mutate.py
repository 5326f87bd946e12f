"""Mutators of files: bytes, trees, arrays and graphs, in one table by file suffix.

A mutator takes a random generator and the content of a file, and returns content with one to three
changes. The same generator makes the same changes.
"""

import io
import json
import random
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
from numpy.lib import format as npy
from numpy.typing import NDArray

from tests.fuzz.mutate_onnx import mutate_onnx
from tests.fuzz.values import any_float, any_integer, any_name

Mutator = Callable[[random.Random, bytes], bytes]

EXTREME_BYTES = (
    b"\x00" * 8,
    b"\xff" * 8,
    b"\xff" * 9 + b"\x01",
    b"\x7f" + b"\xff" * 7,
    b"\x80" + b"\0" * 7,
)


def mutate_bytes(rng: random.Random, data: bytes) -> bytes:
    """Change bytes without regard to their meaning, in one or two ways."""
    for _ in range(rng.choice((1, 1, 2))):
        data = _change_bytes(rng, data) or b"\0"
    return data


def _change_bytes(rng: random.Random, data: bytes) -> bytes:
    start, position = rng.randrange(len(data)), rng.randrange(len(data) + 1)
    match rng.choice(("truncate", "flip", "overwrite", "splice", "cut")):
        case "truncate":
            return data[:position] if rng.random() < 0.8 else data[position:]
        case "flip":
            changed = bytearray(data)
            for _ in range(rng.choice((1, 1, 2, 8, 64))):
                changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
            return bytes(changed)
        case "overwrite":
            new = rng.choice((*EXTREME_BYTES, rng.randbytes(rng.randrange(1, 64))))
            return data[:start] + new + data[start + len(new) :]
        case "splice":
            piece = data[start : start + rng.choice((1, 8, 100, 5000))]
            new = rng.choice((piece, rng.randbytes(len(piece)), piece * 20))
            return data[:position] + new + data[position:]
        case _:
            return data[:start] + data[start + rng.choice((1, 4, 30, 1000)) :]


def mutate_tree(rng: random.Random, tree: Any) -> Any:
    """Change one to three keys or values of a tree of JSON or TOML."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        places = list(_places(tree))
        if not places:
            return _other_value(rng, tree)
        holder, key = rng.choice(places)
        match rng.choice(("value", "value", "value", "drop", "rename", "double", "swap")):
            case "drop":
                del holder[key]
            case "rename" if isinstance(holder, dict):
                holder[any_name(rng)] = holder.pop(key)
            case "double" if isinstance(holder, list):
                holder.extend(holder[:])
            case "swap":
                keys = list(holder) if isinstance(holder, dict) else range(len(holder))
                other = rng.choice(keys)
                holder[key], holder[other] = holder[other], holder[key]
            case _:
                holder[key] = _other_value(rng, holder[key])
    return tree


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Yield each dict and list in a tree with each of its keys."""
    if isinstance(tree, dict | list):
        for key in list(tree) if isinstance(tree, dict) else range(len(tree)):
            yield tree, key
            yield from _places(tree[key])


def _other_value(rng: random.Random, old: Any) -> Any:
    """Return an extreme value of the same type, or a value of another type."""
    if rng.random() < 0.5 and isinstance(old, int | float) and not isinstance(old, bool):
        return any_integer(rng) if isinstance(old, int) else any_float(rng)
    if rng.random() < 0.5 and isinstance(old, str):
        return rng.choice((any_name(rng), old.upper(), old[:-1], old + old))
    nested: Any = []
    for _ in range(200):
        nested = [nested]
    return rng.choice(
        (None, True, False, [], {}, "", any_name(rng), any_integer(rng), any_float(rng), [old],
         {"a": old}, str(old), [any_integer(rng)] * 3, nested)
    )  # fmt: skip


def json_bytes(tree: Any) -> bytes:
    """Return a tree as JSON, with the NaN and infinity that Python also writes."""
    return json.dumps(tree, ensure_ascii=False, indent=1).encode("utf-8", "surrogatepass")


def toml_bytes(tree: Any) -> bytes:
    """Return a tree as TOML; values that TOML has no type for become text."""
    return tomli_w.dumps(_toml_values(tree)).encode()


def _toml_values(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _toml_values(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_toml_values(value) for value in tree]
    return tree if isinstance(tree, str | bool | int | float) else "none"


def mutate_json(rng: random.Random, data: bytes) -> bytes:
    """Change a JSON file as a tree, or as bytes if it is none."""
    return _mutate_text(rng, data, json.loads, json_bytes)


def mutate_toml(rng: random.Random, data: bytes) -> bytes:
    """Change a TOML file as a tree, or as bytes if it is none."""
    return _mutate_text(rng, data, lambda text: tomllib.loads(text.decode()), toml_bytes)


def _mutate_text(
    rng: random.Random, data: bytes, parse: Callable[[bytes], Any], write: Callable[[Any], bytes]
) -> bytes:
    try:
        tree = parse(data)
    except (ValueError, RecursionError):
        return mutate_bytes(rng, data)
    return mutate_bytes(rng, data) if rng.random() < 0.25 else write(mutate_tree(rng, tree))


def mutate_npz(rng: random.Random, data: bytes) -> bytes:
    """Change one or two members of an archive of arrays, which stays an archive."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
        compressed = any(member.compress_type for member in archive.infolist())
    for _ in range(rng.choice((1, 1, 2))):
        if members:
            _change_member(rng, members)
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED if compressed else 0) as archive:
        for name, member in members.items():
            archive.writestr(zipfile.ZipInfo(name or "x"), member, compress_type=None)
    return content.getvalue()


def _change_member(rng: random.Random, members: dict[str, bytes]) -> None:
    name = rng.choice(sorted(members))
    match rng.choice(("array",) * 3 + ("json", "drop", "rename", "bytes", "add", "huge")):
        case "drop":
            del members[name]
        case "rename":
            members[any_name(rng) + ".npy"] = members.pop(name)
        case "bytes":
            members[name] = mutate_bytes(rng, members[name])
        case "add":
            members[any_name(rng)] = members[name]
        case "json" if "about.npy" in members:
            members["about.npy"] = _mutate_json_array(rng, members["about.npy"])
        case "huge":
            members[name] = npy_bytes(np.zeros((1, 10_000_000), np.uint8))
        case _:
            members[name] = mutate_npy(rng, members[name])


def _mutate_json_array(rng: random.Random, data: bytes) -> bytes:
    """Change the JSON that a calibration file stores as an array of bytes."""
    try:
        tree = json.loads(npy.read_array(io.BytesIO(data)).tobytes())
    except ValueError:
        return data
    return npy_bytes(np.frombuffer(json_bytes(mutate_tree(rng, tree)), np.uint8))


def mutate_npy(rng: random.Random, data: bytes) -> bytes:
    """Change an array, or only the shape and type that its header states."""
    try:
        array = npy.read_array(io.BytesIO(data))
    except ValueError:
        return mutate_bytes(rng, data)
    return _false_header(rng, data) if rng.random() < 0.3 else npy_bytes(_other_array(rng, array))


def npy_bytes(array: NDArray[Any]) -> bytes:
    """Return an array as an .npy file."""
    content = io.BytesIO()
    npy.write_array(content, array, allow_pickle=True)
    return content.getvalue()


def _false_header(rng: random.Random, data: bytes) -> bytes:
    shape = tuple(abs(any_integer(rng)) for _ in range(rng.randrange(4)))
    dtype = rng.choice(("<f4", "<f8", "|O", "|S1000000000", "<U9", "|V8", "<i8", "|b1", "<c16"))
    header = {"descr": dtype, "fortran_order": rng.random() < 0.3, "shape": shape}
    content = io.BytesIO()
    npy.write_array_header_1_0(content, header)
    return content.getvalue() + data[128:]


def _other_array(rng: random.Random, array: NDArray[Any]) -> NDArray[Any]:
    dtypes = (np.float64, np.float16, np.int64, np.uint8, np.bool_, np.complex64, np.str_, object)
    flat = array if array.ndim else array.reshape(1)
    shape = rng.choice(((-1,), (1, -1), (-1, 1, 1), (*array.shape, 1)))
    changes: tuple[Callable[[], NDArray[Any]], ...] = (
        lambda: array.astype(rng.choice(dtypes)),
        lambda: array.reshape(shape),
        lambda: np.concatenate([array.ravel(), array.ravel()]),
        lambda: flat[:-1],
        lambda: flat[:0],
        lambda: np.frombuffer(rng.randbytes(array.nbytes), array.dtype).reshape(array.shape),
        lambda: _with_extremes(rng, array),
        lambda: _with_extremes(rng, array),
    )
    with np.errstate(all="ignore"):
        return rng.choice(changes)()


def _with_extremes(rng: random.Random, array: NDArray[Any]) -> NDArray[Any]:
    """Set some elements to an extreme of their type."""
    changed = array.copy().ravel()
    if not changed.size or changed.dtype.kind not in "iuf":
        return array
    extreme: Any = any_float(rng)
    if changed.dtype.kind in "iu":
        limits = np.iinfo(changed.dtype)
        extreme = min(max(any_integer(rng), limits.min), limits.max)
    count = rng.choice((1, 1, 10, 1000))
    changed[[rng.randrange(changed.size) for _ in range(count)]] = extreme
    return changed.reshape(array.shape)


MUTATORS: dict[str, Mutator] = {
    ".json": mutate_json,
    ".toml": mutate_toml,
    ".npz": mutate_npz,
    ".npy": mutate_npy,
    ".onnx": mutate_onnx,
}


def mutate_file(rng: random.Random, file: Path) -> None:
    """Change a file by its format in 7 of 10 cases, otherwise as bytes."""
    data = file.read_bytes()
    if not data:
        file.write_bytes(rng.randbytes(20))
        return
    mutator = MUTATORS.get(file.suffix, mutate_bytes) if rng.random() < 0.7 else mutate_bytes
    try:
        file.write_bytes(mutator(rng, data))
    except zipfile.BadZipFile:  # a second change of the same file
        file.write_bytes(mutate_bytes(rng, data))


def damage_file(rng: random.Random, file: Path, secret: Path) -> None:
    """Change, empty, remove or replace a file; `secret` is one that links must not reach."""
    if not file.is_file() or file.is_symlink():
        return
    match rng.choice(("content",) * 8 + ("drop", "empty", "folder", "link")):
        case "drop":
            file.unlink()
        case "empty":
            file.write_bytes(b"")
        case "folder":
            file.unlink()
            file.mkdir()
        case "link":
            file.unlink()
            file.symlink_to(rng.choice((secret, "nothing", "/dev/null", ".")))
        case _:
            mutate_file(rng, file)
