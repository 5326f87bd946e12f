"""Settings read strictly from TOML, laid over with what was typed, and printed back whole."""

import dataclasses
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pydantic
import tomli_w

from qconvert import config_errors
from qconvert.config import ADAPTER, Config
from qconvert.errors import UsageError, reason

FILE_NAME = "qconvert.toml"
MODEL_FILES = (".onnx", ".pt2", ".pt", ".pth")

Given = Mapping[str, object]


def find(chosen: Path | None) -> Path | None:
    """Return the settings file to use: the chosen one, else `./qconvert.toml` if there is one."""
    if chosen is not None:
        return chosen
    here = Path(FILE_NAME)
    return here if here.is_file() else None


def load(
    file: Path | None,
    given: Given | None = None,
    given_in: str = "command line",
    below: Config | None = None,
) -> Config:
    """Read a settings file, lay it over those `below`, and `given` (dotted key to value) over both.

    Errors say that `given` was `given_in` the command line, or wherever it was. Where other images
    are named to evaluate on, the labels and the count of those `below` are not theirs.
    """
    text = _read(file) if file else ""
    try:
        tree = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"{file}: not valid TOML: {reason(error)}",
            hint="`qconvert init` writes a file to start from",
        ) from None
    if file:
        tree = _anchor(tree, Config, file.parent)
    given = dict(given or {})
    for key, value in given.items():
        _assign(tree, key.split("."), value)
    if below is not None:
        tree = _over(_for_images_of(tree, plain(below)), tree)
    try:
        return ADAPTER.validate_python(tree)
    except pydantic.ValidationError as error:
        wrong = config_errors.explain(error, text, (given_in, given), keys_at)
        count = "1 setting is wrong" if len(wrong) == 1 else f"{len(wrong)} settings are wrong"
        in_file = any(not each.startswith(f"{given_in}: ") for each in wrong)
        raise UsageError(
            f"{file if file and in_file else given_in}: {count}",
            details=wrong,
            hint="`qconvert init` writes down every setting and what it means",
        ) from None


def assignments(pairs: tuple[str, ...]) -> dict[str, object]:
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
    return tomli_w.dumps(plain(config))


def one_line(value: object) -> str:
    """Return a value as TOML on one line."""
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(one_line, value))}]"
    return tomli_w.dumps({"_": value})[4:].strip()


def plain(config: Config) -> dict[str, Any]:
    """Return the settings as plain values, defaults filled in, spelled as in the file."""
    values: dict[str, Any] = ADAPTER.dump_python(
        config, mode="json", by_alias=True, exclude_none=True
    )
    return values


def keys_at(path: tuple[str, ...]) -> list[str]:
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
            f"`{file}` cannot be read: {reason(error)}", hint="settings are a TOML file in UTF-8"
        ) from None


def _anchor(tree: dict[str, Any], table: type, folder: Path) -> dict[str, Any]:
    """Make relative paths in a file relative to that file, whatever folder the command runs in."""
    hints = get_type_hints(table)
    anchored = dict(tree)
    for key, value in tree.items():
        hint = hints.get(key.replace("-", "_"))
        if isinstance(value, dict) and isinstance(hint, type):
            anchored[key] = _anchor(value, hint, folder)
        elif isinstance(value, str) and _is_file(key, value, hint):
            anchored[key] = str(folder / value)
    return anchored


def _is_file(key: str, value: str, hint: object) -> bool:
    if hint is Path or Path in get_args(hint):
        return True
    return (key == "model" and value.endswith(MODEL_FILES)) or (
        key == "weights" and value != "random"
    )


def _for_images_of(tree: dict[str, Any], below: dict[str, Any]) -> dict[str, Any]:
    """Return settings without what they say of the evaluation images, where `tree` has others."""
    before, table = below["evaluate"], tree.get("evaluate")
    now = table.get("images") if isinstance(table, dict) else None
    if "images" not in before or not isinstance(now, str | Path):
        return below
    same = Path(before["images"]).absolute() == Path(now).absolute()
    return below if same else {**below, "evaluate": {}}


def _over(below: dict[str, Any], tree: dict[str, Any]) -> dict[str, Any]:
    """Lay settings over others, key by key in every table."""
    both = {**below, **tree}
    for key, value in tree.items():
        under = below.get(key)
        if isinstance(value, dict) and isinstance(under, dict):
            both[key] = _over(under, value)
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
