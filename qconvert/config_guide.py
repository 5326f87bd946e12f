"""Settings as people and editors read them: every key with its type, default and meaning."""

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args, get_type_hints

from qconvert import config_file
from qconvert.config import ADAPTER, Config


@dataclass(frozen=True)
class Setting:
    """One key of the settings file, as documentation shows it."""

    table: str
    key: str
    kind: str
    default: object
    text: str


def settings(table: type = Config, prefix: str = "") -> Iterator[Setting]:
    """Yield every key of the tree, a table's own keys before the tables below it."""
    hints = get_type_hints(table, include_extras=True)
    below: list[tuple[type, str]] = []
    for entry in dataclasses.fields(table):
        bare, info = get_args(hints[entry.name])[:2]
        key = entry.name.replace("_", "-")
        if dataclasses.is_dataclass(bare) and isinstance(bare, type):
            below.append((bare, f"{prefix}.{key}".lstrip(".")))
        else:
            yield Setting(prefix, key, _kind(bare), entry.default, str(info.description))
    for deeper, name in below:
        yield from settings(deeper, name)


def commented(model: str | None) -> str:
    """Return a settings file with every setting as a comment, its default and its meaning."""
    lines = ["# Settings of qconvert. What stands behind `#` is the default or an example."]
    table = ""
    for setting in settings():
        if setting.table != table:
            table = setting.table
            lines += ["", f"[{table}]"]
        value = model if setting.key == "model" else setting.default
        text = "" if value is None else f" = {config_file.one_line(value)}"
        mark = "" if setting.key == "model" and model else "# "
        lines.append(f"{mark}{setting.key}{text or ' ='}".ljust(28) + f"  # {setting.text}")
    return "\n".join(lines) + "\n"


def schema() -> dict[str, Any]:
    """Return the JSON Schema of a settings file, for editors."""
    return ADAPTER.json_schema(by_alias=True)


def _kind(hint: object) -> str:
    """Return a type in words: `int`, `"dynamic"` or `list of str`."""
    args = get_args(hint)
    if str(hint).startswith("typing.Literal"):
        return " or ".join(json.dumps(value) for value in args)
    if str(hint).startswith("tuple["):
        return f"list of {_kind(args[0])}"
    if str(hint).startswith("typing.Annotated"):
        return _kind(args[0])
    if args:
        return " or ".join(_kind(arg) for arg in args if arg is not type(None))
    return hint.__name__ if isinstance(hint, type) else str(hint)
