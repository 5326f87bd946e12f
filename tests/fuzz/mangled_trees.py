"""JSON and TOML spoiled as trees: keys and values that are wrong, in files that are whole."""

import json
import random
from collections.abc import Iterator
from typing import Any

import tomli_w

from tests.fuzz import words

Place = tuple[Any, Any]


def mangle(chance: random.Random, tree: Any) -> Any:
    """Change one to three places of a tree."""
    for _ in range(chance.choice((1, 1, 2, 3))):
        places = list(_places(tree))
        if not places:
            return _value(chance, tree)
        holder, key = chance.choice(places)
        _change(chance, holder, key)
    return tree


def json_text(tree: Any) -> bytes:
    """Return a tree as JSON, with the words for NaN and infinity that Python also writes."""
    return json.dumps(tree, ensure_ascii=False, indent=1).encode("utf-8", "surrogatepass")


def toml_text(tree: Any) -> bytes:
    """Return a tree as TOML; what TOML cannot hold becomes text."""
    return tomli_w.dumps(_for_toml(tree)).encode()


def _for_toml(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _for_toml(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_for_toml(value) for value in tree]
    return tree if isinstance(tree, str | bool | int | float) else "none"


def _places(tree: Any) -> Iterator[Place]:
    """Yield every holder with each key of it."""
    keys = (
        list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    )
    for key in keys:
        yield tree, key
        yield from _places(tree[key])


def _change(chance: random.Random, holder: Any, key: Any) -> None:
    ways = ("value", "value", "value", "drop", "rename", "double", "swap")
    match chance.choice(ways):
        case "drop":
            del holder[key]
        case "rename" if isinstance(holder, dict):
            holder[words.name(chance)] = holder.pop(key)
        case "double" if isinstance(holder, list):
            holder.extend(holder[:])
        case "swap":
            other = chance.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
            holder[key], holder[other] = holder[other], holder[key]
        case _:
            holder[key] = _value(chance, holder[key])


def _value(chance: random.Random, old: Any) -> Any:
    """Return something else: of the same type at an edge, or of another type."""
    if chance.random() < 0.5 and isinstance(old, int | float) and not isinstance(old, bool):
        return words.integer(chance) if isinstance(old, int) else words.number(chance)
    if chance.random() < 0.5 and isinstance(old, str):
        return chance.choice((words.name(chance), old.upper(), old[:-1], old + old))
    return chance.choice(
        (None, True, False, [], {}, "", words.name(chance), words.integer(chance),
         words.number(chance), [old], {"a": old}, str(old), [words.integer(chance)] * 3,
         nested(200))
    )  # fmt: skip


def nested(depth: int) -> Any:
    """Return a list in a list in a list."""
    made: Any = []
    for _ in range(depth):
        made = [made]
    return made
