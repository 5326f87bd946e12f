"""Settings: read strictly from TOML, merged with the command line, and written back in full."""

import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import pydantic
import tomli_w

from qconvert.core.config import Config, keys_at, option_table
from qconvert.core.errors import UsageError, did_you_mean, first_line

FILE_NAME = "qconvert.toml"
INIT_HINT = "`qconvert init` writes a file with every setting and its meaning"

Overrides = Mapping[str, object]  # dotted key to value
_ADAPTER = pydantic.TypeAdapter(Config)


def load(
    path: Path | None,
    overrides: Overrides | None = None,
    source: str = "command line",
    base: Config | None = None,
) -> Config:
    """Return the settings of `base`, a file and `overrides`, which errors call `source`."""
    text, tree = _read(path) if path else ("", {})
    for dotted, value in (overrides or {}).items():
        *names, last = dotted.split(".")
        table = tree
        for name in names:
            table = table.setdefault(name, {})
            if not isinstance(table, dict):
                raise UsageError(f"`{dotted}`: `{name}` is a value, not a table", hint=INIT_HINT)
        table[last] = value
    if base is not None:
        tree = _merge(as_dict(base), tree)
    try:
        return _ADAPTER.validate_python(tree)
    except pydantic.ValidationError as error:
        problems = _explain(error, text, source, overrides or {})
        summary = f"{len(problems)} settings are wrong" if problems[1:] else "1 setting is wrong"
        place: Path | str = path or source
        if all(problem.startswith(f"{source}: ") for problem in problems):
            place, problems = source, [problem.removeprefix(f"{source}: ") for problem in problems]
        raise UsageError(f"{place}: {summary}", details=problems, hint=INIT_HINT) from None


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
    return dict(_ADAPTER.dump_python(config, mode="json", by_alias=True, exclude_none=True))


def dumps(config: Config) -> str:
    """Return the settings as TOML, defaults filled in, so that a run can be repeated from it."""
    return tomli_w.dumps(as_dict(config))


def absolute_paths(config: Config) -> Config:
    """Return the settings with absolute paths, so that they are valid in any working folder."""
    return _ADAPTER.validate_python(_resolve_paths(as_dict(config), Path.cwd()))


def toml_value(value: object) -> str:
    """Return a value as TOML on one line."""
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(toml_value, value))}]"
    return tomli_w.dumps({"_": value})[4:].strip()


def commented_toml(model: str | None) -> str:
    """Return a settings file with every setting as a comment, its default and its meaning."""
    lines = ["# Settings of qconvert. Each line shows the default or an example."]
    table = ""
    for option in option_table().values():
        if option.table != table:
            table = option.table
            lines += ["", f"[{table}]"]
        value = model if option.key == "model" else option.default
        text = "" if value is None else f" {toml_value(value)}"
        mark = "" if option.key == "model" and model else "# "
        lines.append(f"{mark}{option.key} ={text}".ljust(28) + f"  # {option.description}")
    return "\n".join(lines) + "\n"


def _read(path: Path) -> tuple[str, dict[str, Any]]:
    """Return the text of a settings file, and its content with paths relative to the file."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UsageError(
            f"`{path}` does not exist", hint="write one with `qconvert init`"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"`{path}` cannot be read: {first_line(error)}",
            hint="settings are a TOML file in UTF-8",
        ) from None
    try:
        return text, _resolve_paths(tomllib.loads(text), path.parent)
    except (ValueError, RecursionError) as error:
        end = f"at line {len(text.splitlines())}, the end of the document"
        message = first_line(error).replace("at end of document", end)
        raise UsageError(f"{path}: not valid TOML: {message}", hint=INIT_HINT) from None


def _resolve_paths(tree: dict[str, Any], folder: Path) -> dict[str, Any]:
    for option in option_table().values():
        table = tree.get(option.table) if option.table else tree
        if not isinstance(table, dict) or not isinstance(value := table.get(option.key), str):
            continue
        if (
            Path in get_args(option.type)
            or (option.key == "model" and value.endswith((".onnx", ".pt2", ".pt", ".pth")))
            or (option.key == "weights" and value != "random")
        ):
            table[option.key] = str(folder / value)
    return tree


def _merge(base: dict[str, Any], tree: dict[str, Any]) -> dict[str, Any]:
    """Override settings key by key; labels and count belong to the evaluation images of `base`."""
    merged = {**base, **tree}
    for name, table in tree.items():
        if isinstance(table, dict) and isinstance(base.get(name), dict):
            merged[name] = {**base[name], **table}
    before, now = base["evaluate"].get("images"), merged["evaluate"]
    images = now.get("images") if isinstance(now, dict) else None
    if before is not None and isinstance(images, str | Path):
        is_same = Path(before).absolute() == Path(images).absolute()
        merged["evaluate"] = now if is_same else tree["evaluate"]
    return merged


# --- errors, each with its line ---

_KEY = r"""(?:[\w-]+|"[^"]*"|'[^']*')"""
_DOTTED = rf"{_KEY}(?:\s*\.\s*{_KEY})*"
_HEADER = re.compile(rf"^\s*\[\[?\s*({_DOTTED})\s*\]")
_ENTRY = re.compile(rf"^\s*({_DOTTED})\s*=")
_LONG_STRING = re.compile(r"(\"{3}|'{3}).*?\1", re.DOTALL)


def _explain(
    error: pydantic.ValidationError, text: str, source: str, overrides: Overrides
) -> list[str]:
    """Return one line per invalid setting, in the order of the file, then the overrides."""
    key_lines = _key_lines(text)
    messages: dict[tuple[int, str, str], list[str]] = {}
    for problem in error.errors(include_url=False):
        # The rest of a location names members of unions.
        path: tuple[str, ...] = ()
        for part in problem["loc"]:
            if path and not keys_at(path):
                break
            path = (*path, str(part))
        name = ".".join(path)
        prefixes = (path[:depth] for depth in range(len(path), 0, -1))
        line = next((key_lines[prefix] for prefix in prefixes if prefix in key_lines), 0)
        place = f"line {line}" if line else "settings"
        if any(f"{name}.".startswith(f"{key}.") or key.startswith(f"{name}.") for key in overrides):
            line, place = len(text) + 1, source
        message = problem["msg"].removeprefix("Value error, ")
        match problem["type"]:
            case "unexpected_keyword_argument" | "extra_forbidden":
                message = "unknown setting" + did_you_mean(path[-1], keys_at(path[:-1]))
            case "literal_error":
                message += did_you_mean(str(problem["input"]), re.findall("'([^']*)'", message))
            # Where pydantic uses the names of Python.
            case "tuple_type":
                message = "Input should be a list"
            case "dataclass_type":
                message = "Input should be a table"
        messages.setdefault((line, place, name), []).append(message)
    # A value that matches no member of a union has a message for each member.
    return [
        f"{place}: {name}: {', or: '.join(messages[line, place, name])}"
        for line, place, name in sorted(messages)
    ]


def _key_lines(text: str) -> dict[tuple[str, ...], int]:
    """Return the first line of every table and key; `tomllib` does not keep them."""
    lines: dict[tuple[str, ...], int] = {}
    table: tuple[str, ...] = ()
    text = _LONG_STRING.sub(lambda string: "\n" * string[0].count("\n"), text)
    for number, line in enumerate(text.splitlines(), 1):
        if match := _HEADER.match(line) or _ENTRY.match(line):
            key = tuple(part.strip("\"'") for part in re.findall(_KEY, match[1]))
            if match.re is _HEADER:
                table = key
            lines.setdefault(key if match.re is _HEADER else table + key, number)
    return lines
