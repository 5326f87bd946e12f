"""The settings as one flat table, for options, keyword arguments and documentation."""

import json
import types
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from qconvert.core.config import Config, Setting


@dataclass(frozen=True)
class Option:
    """One setting: its table and key, its bare type, its default, and what `config` says of it."""

    table: str
    key: str
    type: Any
    default: Any
    setting: Setting

    @property
    def path(self) -> str:
        """The dotted key, as `calibration.count`."""
        return f"{self.table}.{self.key}".lstrip(".")

    @property
    def keyword(self) -> str:
        """The argument of the same meaning in Python: the option's name, plural for lists."""
        name = self.key if self.is_list else self.setting.option.lstrip("-")
        return name.replace("-", "_")

    @property
    def is_list(self) -> bool:
        """Whether any number of words may be given."""
        args = get_args(self.type)
        return (
            get_origin(self.type) is tuple
            and args[-1] is ...
            and (args[0] is str or get_origin(args[0]) is Literal)
        )

    @property
    def type_name(self) -> str:
        """The type in words: `int`, `"dynamic"` or `list of str`."""
        return _type_name(self.type)


@cache
def option_table() -> dict[str, Option]:
    """Return every setting by its dotted key, in the order of the settings file."""
    return {option.path: option for option in _walk(Config, "")}


def keyword_settings() -> dict[str, str]:
    """Return the dotted key that each keyword argument of the Python functions sets."""
    return {
        option.keyword: option.path for option in option_table().values() if option.setting.option
    }


def keys_at(path: tuple[str, ...]) -> list[str]:
    """Return the keys of the table at `path`; none where that is no table."""
    table: type = Config
    for name in path:
        hint = get_type_hints(table).get(name.replace("-", "_"))
        if not (isinstance(hint, type) and is_dataclass(hint)):
            return []
        table = hint
    return [entry.name.replace("_", "-") for entry in fields(table)]


def literals(hint: Any) -> tuple[str, ...]:
    """Return the words that a type allows, also as one member of a union or item of a list."""
    if get_origin(hint) is Literal:
        return get_args(hint)
    return tuple(word for arg in get_args(hint) for word in literals(arg))


def _walk(table: type, path: str) -> Iterator[Option]:
    """Yield the settings of a table, then those of the tables in it."""
    hints = get_type_hints(table)
    nested: list[tuple[str, type]] = []
    for entry in fields(table):
        key = entry.name.replace("_", "-")
        if "setting" in entry.metadata:
            yield Option(path, key, hints[entry.name], entry.default, entry.metadata["setting"])
        else:
            nested.append((f"{path}.{key}".lstrip("."), hints[entry.name]))
    for name, inner in nested:
        yield from _walk(inner, name)


def _type_name(hint: Any) -> str:
    args = [arg for arg in get_args(hint) if arg is not type(None)]
    match get_origin(hint):
        case origin if origin is Literal:
            return " or ".join(json.dumps(word) for word in args)
        case origin if origin is tuple:
            return f"list of {_type_name(args[0])}"
        case origin if origin in (Union, types.UnionType):
            return " or ".join(map(_type_name, args))
    return str(hint.__name__)
