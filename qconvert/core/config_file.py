"""Settings read strictly from TOML, laid over with what was typed, and printed back whole."""

import dataclasses
import json
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pydantic
import tomli_w

from qconvert.core.config import CONFIG_ADAPTER, Config
from qconvert.core.errors import UsageError, did_you_mean, first_line

_KEY = r"""(?:[\w-]+|"[^"]*"|'[^']*')"""
_DOTTED = rf"{_KEY}(?:\s*\.\s*{_KEY})*"
_HEADER = re.compile(rf"^\s*(\[\[?)\s*({_DOTTED})\s*\]")
_ENTRY = re.compile(rf"^\s*({_DOTTED})\s*=(.*)$")

KeyPath = tuple[str, ...]

# What pydantic calls by its Python name.
PYDANTIC_MESSAGES = {
    "tuple_type": "Input should be a list",
    "dataclass_type": "Input should be a table",
    "too_short": "Input should name at least one",
}


def explain_errors(
    error: pydantic.ValidationError,
    text: str,
    given: tuple[str, Mapping[str, object]],
    keys_at: Callable[[KeyPath], Sequence[str]],
) -> list[str]:
    """Return one line a mistake, in the order of the file, then of what was given elsewhere.

    `given` says where that was, and what.
    """
    lines = _key_lines(text)
    told: dict[tuple[int, str, str], list[str]] = {}
    for problem in error.errors(include_url=False):
        path = _key_path(problem["loc"], keys_at)
        name = ".".join(path)
        line = _nearest_line(lines, path)
        where = f"line {line}" if line else "settings"
        if any(_contains_key(key, name) or _contains_key(name, key) for key in given[1]):
            line, where = len(text) + 1, given[0]
        found = told.setdefault((line, where, name), [])
        # A list whose items are all refused is also told to be too short.
        if problem["type"] != "too_short" or not found:
            found.append(_message(problem, path, keys_at))
    # A value that may be of two kinds is wrong twice, once for each; that is one mistake.
    return [
        f"{where}: {name}: {', or: '.join(told[key])}"
        for key in sorted(told)
        for _, where, name in [key]
    ]


def _contains_key(whole: str, part: str) -> bool:
    return part == whole or part.startswith(f"{whole}.")


def _message(
    problem: Mapping[str, object], path: KeyPath, keys_at: Callable[[KeyPath], Sequence[str]]
) -> str:
    if problem["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return "unknown setting" + did_you_mean(path[-1], keys_at(path[:-1]))
    if problem["type"] == "literal_error":
        allowed = re.findall("'([^']*)'", str(problem["msg"]))
        return str(problem["msg"]) + did_you_mean(str(problem["input"]), allowed)
    said = str(problem["msg"]).removeprefix("Value error, ")
    return PYDANTIC_MESSAGES.get(str(problem["type"]), said)


def _key_path(
    location: Sequence[str | int], keys_at: Callable[[KeyPath], Sequence[str]]
) -> KeyPath:
    """Keep the part of pydantic's location that names keys; the rest names members of unions."""
    path: KeyPath = ()
    for part in location:
        known = keys_at(path)
        if path and not known:
            break
        path = (*path, str(part))
    return path


def _nearest_line(lines: Mapping[KeyPath, int], path: KeyPath) -> int:
    while path and path not in lines:
        path = path[:-1]
    return lines.get(path, 0)


def _key_lines(text: str) -> dict[KeyPath, int]:
    """Find the line of every key; `tomllib` keeps no positions."""
    found: dict[KeyPath, int] = {}
    table: KeyPath = ()
    for number, line in _lines_outside_strings(text):
        if header := _HEADER.match(line):
            table = _split_key(header[2])
            found.setdefault(table, number)
        elif entry := _ENTRY.match(line):
            found.setdefault(table + _split_key(entry[1]), number)
    return found


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


def _split_key(dotted: str) -> KeyPath:
    return tuple(part.strip("\"'") for part in re.findall(_KEY, dotted))


FILE_NAME = "qconvert.toml"
MODEL_FILES = (".onnx", ".pt2", ".pt", ".pth")

Overrides = Mapping[str, object]


def find(path: Path | None) -> Path | None:
    """Return the settings file to use: the chosen one, else `./qconvert.toml` if there is one."""
    if path is not None:
        return path
    here = Path(FILE_NAME)
    return here if here.is_file() else None


def load(
    path: Path | None,
    overrides: Overrides | None = None,
    overrides_source: str = "command line",
    base: Config | None = None,
) -> Config:
    """Read a settings file, lay it over those `below`, and `given` (dotted key to value) over both.

    Errors say that `given` was `given_in` the command line, or wherever it was. Where other images
    are named to evaluate on, the labels and the count of those `below` are not theirs.
    """
    text = _read(path) if path else ""
    try:
        tree = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"{path}: not valid TOML: {first_line(error)}",
            hint="`qconvert init` writes a file to start from",
        ) from None
    if path:
        tree = _resolve_paths(tree, Config, path.parent)
    overrides = dict(overrides or {})
    for key, value in overrides.items():
        _assign(tree, key.split("."), value)
    if base is not None:
        tree = _merge(_without_other_images_labels(tree, as_dict(base)), tree)
    try:
        return CONFIG_ADAPTER.validate_python(tree)
    except pydantic.ValidationError as error:
        wrong = explain_errors(error, text, (overrides_source, overrides), valid_keys)
        count = "1 setting is wrong" if len(wrong) == 1 else f"{len(wrong)} settings are wrong"
        in_file = any(not each.startswith(f"{overrides_source}: ") for each in wrong)
        raise UsageError(
            f"{path if path and in_file else overrides_source}: {count}",
            details=wrong,
            hint="`qconvert init` writes down every setting and what it means",
        ) from None


def parse_assignments(pairs: tuple[str, ...]) -> dict[str, object]:
    """Read `--set KEY=VALUE`; a value that is not TOML is taken as a string."""
    read: dict[str, object] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise UsageError(
                f"`--set {pair}` is not KEY=VALUE", hint="for example `--set export.opset=21`"
            )
        try:
            parsed = tomllib.loads(f"value = {value}")
        except (ValueError, RecursionError):
            parsed = {"value": value}
        read[key.strip()] = parsed["value"] if len(parsed) == 1 else value
    return read


def dumps(config: Config) -> str:
    """Return the settings as TOML, defaults filled in, so that a run can be repeated from it."""
    return tomli_w.dumps(as_dict(config))


def toml_value(value: object) -> str:
    """Return a value as TOML on one line."""
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(toml_value, value))}]"
    return tomli_w.dumps({"_": value})[4:].strip()


def as_dict(config: Config) -> dict[str, Any]:
    """Return the settings as plain values, defaults filled in, spelled as in the file."""
    values: dict[str, Any] = CONFIG_ADAPTER.dump_python(
        config, mode="json", by_alias=True, exclude_none=True
    )
    return values


def valid_keys(path: tuple[str, ...]) -> list[str]:
    """Return the keys that may stand in the table at `path`, for a suggestion."""
    table: type = Config
    for name in path:
        hint = get_type_hints(table).get(name.replace("-", "_"))
        if not (isinstance(hint, type) and dataclasses.is_dataclass(hint)):
            return []
        table = hint
    return [entry.name.replace("_", "-") for entry in dataclasses.fields(table)]


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UsageError(
            f"`{file}` does not exist", hint="write one with `qconvert init`"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"`{file}` cannot be read: {first_line(error)}",
            hint="settings are a TOML file in UTF-8",
        ) from None


def _resolve_paths(tree: dict[str, Any], table: type, folder: Path) -> dict[str, Any]:
    """Make relative paths in a file relative to that file, whatever folder the command runs in."""
    hints = get_type_hints(table)
    anchored = dict(tree)
    for key, value in tree.items():
        hint = hints.get(key.replace("-", "_"))
        if isinstance(value, dict) and isinstance(hint, type):
            anchored[key] = _resolve_paths(value, hint, folder)
        elif isinstance(value, str) and _is_path_setting(key, value, hint):
            anchored[key] = str(folder / value)
    return anchored


def _is_path_setting(key: str, value: str, hint: object) -> bool:
    if hint is Path or Path in get_args(hint):
        return True
    return (key == "model" and value.endswith(MODEL_FILES)) or (
        key == "weights" and value != "random"
    )


def _without_other_images_labels(tree: dict[str, Any], below: dict[str, Any]) -> dict[str, Any]:
    """Return settings without what they say of the evaluation images, where `tree` has others."""
    before, table = below["evaluate"], tree.get("evaluate")
    now = table.get("images") if isinstance(table, dict) else None
    if "images" not in before or not isinstance(now, str | Path):
        return below
    same = Path(before["images"]).absolute() == Path(now).absolute()
    return below if same else {**below, "evaluate": {}}


def _merge(below: dict[str, Any], tree: dict[str, Any]) -> dict[str, Any]:
    """Lay settings over others, key by key in every table."""
    both = {**below, **tree}
    for key, value in tree.items():
        under = below.get(key)
        if isinstance(value, dict) and isinstance(under, dict):
            both[key] = _merge(under, value)
    return both


def _assign(tree: dict[str, Any], path: list[str], value: object) -> None:
    for name in path[:-1]:
        inner = tree.setdefault(name, {})
        if not isinstance(inner, dict):
            raise UsageError(
                f"`{'.'.join(path)}`: `{name}` is a value, not a table",
                hint="`qconvert init` writes down every setting and what it means",
            )
        tree = inner
    tree[path[-1]] = value


@dataclass(frozen=True)
class Setting:
    """One key of the settings file, as documentation shows it."""

    table: str
    key: str
    type_name: str
    default: object
    description: str


def list_settings(table: type = Config, prefix: str = "") -> Iterator[Setting]:
    """Yield every key of the tree, a table's own keys before the tables below it."""
    hints = get_type_hints(table, include_extras=True)
    below: list[tuple[type, str]] = []
    for entry in dataclasses.fields(table):
        bare, info = get_args(hints[entry.name])[:2]
        key = entry.name.replace("_", "-")
        if dataclasses.is_dataclass(bare) and isinstance(bare, type):
            below.append((bare, f"{prefix}.{key}".lstrip(".")))
        else:
            yield Setting(prefix, key, _type_name(bare), entry.default, str(info.description))
    for deeper, name in below:
        yield from list_settings(deeper, name)


def commented_toml(model: str | None) -> str:
    """Return a settings file with every setting as a comment, its default and its meaning."""
    lines = ["# Settings of qconvert. What stands behind `#` is the default or an example."]
    table = ""
    for setting in list_settings():
        if setting.table != table:
            table = setting.table
            lines += ["", f"[{table}]"]
        value = model if setting.key == "model" else setting.default
        text = "" if value is None else f" = {toml_value(value)}"
        mark = "" if setting.key == "model" and model else "# "
        lines.append(f"{mark}{setting.key}{text or ' ='}".ljust(28) + f"  # {setting.description}")
    return "\n".join(lines) + "\n"


def settings_schema() -> dict[str, Any]:
    """Return the JSON Schema of a settings file, for editors."""
    return CONFIG_ADAPTER.json_schema(by_alias=True)


def _type_name(hint: object) -> str:
    """Return a type in words: `int`, `"dynamic"` or `list of str`."""
    args = get_args(hint)
    if str(hint).startswith("typing.Literal"):
        return " or ".join(json.dumps(value) for value in args)
    if str(hint).startswith("tuple["):
        return f"list of {_type_name(args[0])}"
    if str(hint).startswith("typing.Annotated"):
        return _type_name(args[0])
    if args:
        return " or ".join(_type_name(arg) for arg in args if arg is not type(None))
    return hint.__name__ if isinstance(hint, type) else str(hint)
