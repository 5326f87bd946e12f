"""Settings read strictly from TOML, merged with what was typed, and written back whole.

Invalid settings are all reported at once, with line numbers.
"""

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pydantic
import tomli_w

from qconvert.core.config import Config
from qconvert.core.errors import UsageError, did_you_mean, first_line
from qconvert.core.option_table import keys_at, option_table

FILE_NAME = "qconvert.toml"
INIT_HINT = "`qconvert init` writes a file with every setting and its meaning"

Overrides = Mapping[str, object]  # dotted key to value


def find(path: Path | None) -> Path | None:
    """Return the settings file to use: the named one, else `./qconvert.toml` if there is one."""
    if path is None and Path(FILE_NAME).is_file():
        return Path(FILE_NAME)
    return path


def load(
    path: Path | None,
    overrides: Overrides | None = None,
    source: str = "command line",
    base: Config | None = None,
) -> Config:
    """Return the settings of `base`, overridden by those of a file, overridden by `overrides`.

    `source` says in errors where the overrides come from. If the file or the overrides name other
    evaluation images than `base`, its labels and count do not apply to them.
    """
    text = _read(path) if path else ""
    try:
        tree = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not valid TOML: {first_line(error)}", hint=INIT_HINT) from None
    if path:
        tree = _resolve_paths(tree, Config, path.parent)
    overrides = dict(overrides or {})
    for key, value in overrides.items():
        _assign(tree, key.split("."), value)
    if base is not None:
        tree = _merge(_base_for(tree, as_dict(base)), tree)
    try:
        return _adapter().validate_python(tree)
    except pydantic.ValidationError as error:
        problems = _explain(error, text, source, overrides)
        count = len(problems)
        summary = "1 setting is wrong" if count == 1 else f"{count} settings are wrong"
        in_file = any(not problem.startswith(f"{source}: ") for problem in problems)
        raise UsageError(
            f"{path if path and in_file else source}: {summary}", details=problems, hint=INIT_HINT
        ) from None


def parse_assignments(pairs: Sequence[str]) -> dict[str, object]:
    """Read `--set KEY=VALUE`; a value that is not TOML is taken as a string."""
    assignments: dict[str, object] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key.strip():
            raise UsageError(
                f"`--set {pair}` is not KEY=VALUE", hint="for example `--set export.opset=21`"
            )
        try:
            parsed = tomllib.loads(f"value = {text}")
        except (ValueError, RecursionError):
            parsed = {}
        assignments[key.strip()] = parsed["value"] if len(parsed) == 1 else text
    return assignments


def as_dict(config: Config) -> dict[str, Any]:
    """Return the settings as plain values, defaults filled in, spelled as in the file."""
    tree: dict[str, Any] = _adapter().dump_python(
        config, mode="json", by_alias=True, exclude_none=True
    )
    return tree


def dumps(config: Config) -> str:
    """Return the settings as TOML, defaults filled in, so that a run can be repeated from it."""
    return tomli_w.dumps(as_dict(config))


def absolute_paths(config: Config) -> Config:
    """Return the settings with absolute paths, so that they are valid in any working folder."""
    return _adapter().validate_python(_resolve_paths(as_dict(config), Config, Path.cwd()))


def toml_value(value: object) -> str:
    """Return a value as TOML on one line."""
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(toml_value, value))}]"
    return tomli_w.dumps({"_": value})[4:].strip()


def commented_toml(model: str | None) -> str:
    """Return a settings file with every setting as a comment, its default and its meaning."""
    lines = ["# Settings of qconvert. After `#` stands the default or an example."]
    table = ""
    for option in option_table().values():
        if option.table != table:
            table = option.table
            lines += ["", f"[{table}]"]
        value = model if option.key == "model" else option.default
        text = "" if value is None else f" {toml_value(value)}"
        mark = "" if option.key == "model" and model else "# "
        lines.append(f"{mark}{option.key} ={text}".ljust(28) + f"  # {option.setting.description}")
    return "\n".join(lines) + "\n"


def settings_schema() -> dict[str, Any]:
    """Return the JSON Schema of a settings file, for editors."""
    schema = _adapter().json_schema(by_alias=True)
    for option in option_table().values():
        table = schema
        if option.table:
            table = schema["$defs"][schema["properties"][option.table]["$ref"].rpartition("/")[2]]
        table["properties"][option.key]["description"] = option.setting.description
    return schema


@cache
def _adapter() -> pydantic.TypeAdapter[Config]:
    return pydantic.TypeAdapter(Config)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UsageError(
            f"`{path}` does not exist", hint="write one with `qconvert init`"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"`{path}` cannot be read: {first_line(error)}",
            hint="settings are a TOML file in UTF-8",
        ) from None


def _resolve_paths(tree: dict[str, Any], table: type, folder: Path) -> dict[str, Any]:
    """Make relative paths relative to `folder`, whatever folder the command runs in."""
    hints = get_type_hints(table)
    resolved = dict(tree)
    for key, value in tree.items():
        hint = hints.get(key.replace("-", "_"))
        if isinstance(value, dict) and isinstance(hint, type) and is_dataclass(hint):
            resolved[key] = _resolve_paths(value, hint, folder)
        elif isinstance(value, str) and _is_path(key, value, hint):
            resolved[key] = str(folder / value)
    return resolved


def _is_path(key: str, value: str, hint: object) -> bool:
    return (
        Path in get_args(hint)
        or (key == "model" and value.endswith((".onnx", ".pt2", ".pt", ".pth")))
        or (key == "weights" and value != "random")
    )


def _base_for(tree: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    """Return `base` without what it says of its evaluation images, if `tree` names others."""
    table = tree.get("evaluate")
    images = table.get("images") if isinstance(table, dict) else None
    old_images = base["evaluate"].get("images")
    if old_images is None or not isinstance(images, str | Path):
        return base
    same = Path(old_images).absolute() == Path(images).absolute()
    return base if same else {**base, "evaluate": {}}


def _merge(base: dict[str, Any], tree: dict[str, Any]) -> dict[str, Any]:
    """Override settings by others, key by key in every table."""
    merged = {**base, **tree}
    for key, value in tree.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            merged[key] = _merge(base[key], value)
    return merged


def _assign(tree: dict[str, Any], path: list[str], value: object) -> None:
    for name in path[:-1]:
        table = tree.setdefault(name, {})
        if not isinstance(table, dict):
            raise UsageError(
                f"`{'.'.join(path)}`: `{name}` is a value, not a table", hint=INIT_HINT
            )
        tree = table
    tree[path[-1]] = value


# --- errors, each with its line ---

_KEY = r"""(?:[\w-]+|"[^"]*"|'[^']*')"""
_DOTTED = rf"{_KEY}(?:\s*\.\s*{_KEY})*"
_HEADER = re.compile(rf"^\s*(\[\[?)\s*({_DOTTED})\s*\]")
_ENTRY = re.compile(rf"^\s*({_DOTTED})\s*=(.*)$")

# Where pydantic uses the names of Python.
_MESSAGES = {
    "tuple_type": "Input should be a list",
    "dataclass_type": "Input should be a table",
}

_KeyPath = tuple[str, ...]


def _explain(
    error: pydantic.ValidationError, text: str, source: str, overrides: Overrides
) -> list[str]:
    """Return one line per invalid setting, in the order of the file, then the overrides."""
    key_lines = _key_lines(text)
    messages: dict[tuple[int, str, str], list[str]] = {}
    for problem in error.errors(include_url=False):
        path = _key_path(problem["loc"])
        name = ".".join(path)
        depths = range(len(path), 0, -1)
        line = next((key_lines[path[:depth]] for depth in depths if path[:depth] in key_lines), 0)
        place = f"line {line}" if line else "settings"
        if any(f"{name}.".startswith(f"{key}.") or key.startswith(f"{name}.") for key in overrides):
            line, place = len(text) + 1, source
        messages.setdefault((line, place, name), []).append(_message(problem, path))
    # A value that matches no member of a union has a message for each member.
    return [
        f"{place}: {name}: {', or: '.join(messages[line, place, name])}"
        for line, place, name in sorted(messages)
    ]


def _message(problem: Mapping[str, Any], path: _KeyPath) -> str:
    message = str(problem["msg"]).removeprefix("Value error, ")
    match problem["type"]:
        case "unexpected_keyword_argument" | "extra_forbidden":
            return "unknown setting" + did_you_mean(path[-1], keys_at(path[:-1]))
        case "literal_error":
            words = re.findall("'([^']*)'", message)
            return message + did_you_mean(str(problem["input"]), words)
        case kind:
            return _MESSAGES.get(kind, message)


def _key_path(location: Sequence[str | int]) -> _KeyPath:
    """Return the part of pydantic's location that names keys; the rest names members of unions."""
    path: _KeyPath = ()
    for part in location:
        if path and not keys_at(path):
            break
        path = (*path, str(part))
    return path


def _key_lines(text: str) -> dict[_KeyPath, int]:
    """Return the first line of every table and key; `tomllib` does not keep them."""
    lines: dict[_KeyPath, int] = {}
    table: _KeyPath = ()
    for number, line in _lines_outside_strings(text):
        if header := _HEADER.match(line):
            table = _split_key(header[2])
            lines.setdefault(table, number)
        elif entry := _ENTRY.match(line):
            lines.setdefault(table + _split_key(entry[1]), number)
    return lines


def _lines_outside_strings(text: str) -> Iterator[tuple[int, str]]:
    """Yield the lines that do not start inside a multi-line string."""
    open_mark = ""
    for number, line in enumerate(text.splitlines(), 1):
        if not open_mark:
            yield number, line
        for mark in re.findall(r'"""|\'\'\'', line):
            if not open_mark:
                open_mark = mark
            elif mark == open_mark:
                open_mark = ""


def _split_key(dotted: str) -> _KeyPath:
    return tuple(part.strip("\"'") for part in re.findall(_KEY, dotted))
