"""One file spoiled by what it is: a tree, a graph, arrays, or just bytes."""

import json
import random
import tomllib
from pathlib import Path

from tests.fuzz import mangled_arrays, mangled_bytes, mangled_onnx, mangled_trees


def damage(chance: random.Random, file: Path, secret: Path) -> None:
    """Spoil, empty, remove or replace one file of a folder that qconvert wrote."""
    if not file.is_file() or file.is_symlink():
        return
    match chance.choice(("content",) * 8 + ("drop", "empty", "folder", "link")):
        case "drop":
            file.unlink()
        case "empty":
            file.write_bytes(b"")
        case "folder":
            file.unlink()
            file.mkdir()
        case "link":
            file.unlink()
            file.symlink_to(chance.choice((secret, "nothing", "/dev/null", ".")))
        case _:
            _spoil(chance, file)


def tree_or_bytes(chance: random.Random, file: Path) -> None:
    """Spoil a JSON or TOML file; one that is no tree any more is only bytes."""
    data = file.read_bytes()
    toml = file.suffix == ".toml"
    try:
        tree = tomllib.loads(data.decode()) if toml else json.loads(data)
    except (ValueError, RecursionError):
        tree = None
    if tree is None or chance.random() < 0.25:
        file.write_bytes(mangled_bytes.mangle(chance, data))
        return
    text = mangled_trees.toml_text if toml else mangled_trees.json_text
    file.write_bytes(text(mangled_trees.mangle(chance, tree)))


def _spoil(chance: random.Random, file: Path) -> None:
    data = file.read_bytes()
    match file.suffix:
        case _ if not data:
            file.write_bytes(chance.randbytes(20))
        case ".json" | ".toml":
            tree_or_bytes(chance, file)
        case ".onnx" if chance.random() < 0.7:
            file.write_bytes(mangled_onnx.mangle(chance, data))
        case ".npz" if chance.random() < 0.7:
            file.write_bytes(mangled_arrays.mangle(chance, data))
        case _:
            file.write_bytes(mangled_bytes.mangle(chance, data))
