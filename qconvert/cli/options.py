"""The options that several commands share, and the settings that they set.

Options of settings are generated from the tables.
"""

import contextlib
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial, reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

import click

from qconvert.cli import console
from qconvert.core.config import Backend, Option, keys_at, literals, option_table, type_name
from qconvert.core.errors import UsageError
from qconvert.core.progress import ignore_progress

if TYPE_CHECKING:
    from qconvert.run.context import JobContext

BACKENDS: tuple[str, ...] = get_args(Backend)  # `--help` does not import the backends
Decorator = Callable[[Any], Any]
PATH = click.Path(path_type=Path)
FILE = click.Path(path_type=Path, dir_okay=False)
FOLDER = click.Path(path_type=Path, file_okay=False)


def command(*examples: str) -> Callable[[Callable[..., None]], click.Command]:
    """Return a decorator that makes a command with `-v` and `-q`, and examples under its help."""

    def make_command(function: Callable[..., None]) -> click.Command:
        epilog = "\n  ".join(["\b\nExamples:", *examples])
        click_command = click.command(epilog=epilog)(function)
        click_command.params += VERBOSITY_OPTIONS
        return click_command

    return make_command


def _set_verbosity(ctx: click.Context, parameter: click.Parameter, count: int) -> None:
    console.VERBOSITY.level += -count if parameter.name == "quiet" else count
    if parameter.name == "verbose" and count > 1:
        logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s", force=True)


_counted = partial(
    click.Option, count=True, expose_value=False, is_eager=True, callback=_set_verbosity
)
VERBOSITY_OPTIONS = (
    _counted(["-v", "--verbose"], help="More details; -vv: logs of libraries."),
    _counted(["-q", "--quiet"], help="Errors only; -qq: exit code only."),
)


class SettingOption(click.Option):
    """An option that sets one or more settings; its parameter is named after their dotted keys."""

    def __init__(self, flags: Sequence[str] = (), *, paths: Sequence[str], **replaced: Any) -> None:
        option = option_table()[paths[0]]
        words = literals(option.type)
        attributes: dict[str, Any] = {"help": _help(option), "metavar": option.metavar or None}
        if option.type in (bool, bool | None):
            # A flag that is not given sets nothing, so that `--no-NAME` can set false.
            attributes |= {"is_flag": True, "default": None}
        elif Path in get_args(option.type):
            attributes["type"] = PATH
        elif option.is_list:
            attributes["multiple"] = True
            if words:
                attributes["callback"] = lambda ctx, parameter, texts: tuple(
                    word for text in texts for word in map(str.strip, text.split(",")) if word
                )
        elif words and not option.metavar:
            attributes["type"] = click.Choice(words)
        elif option.type is not str:
            attributes["type"] = lambda text: _parse_setting(option, text)
            attributes["metavar"] = option.metavar or type_name(option.type).upper()
        super().__init__(flags or [option.flag], **attributes | replaced)
        self.name = ",".join(paths)


def _parse_setting(option: Option, text: str) -> object:
    """Read a number, a list of numbers, or a word in place of them, as the type of a setting."""
    try:
        return _parse(text, option.type, "x" if "x" in option.metavar else ",")
    except (ValueError, ZeroDivisionError):
        kinds = {"int": "a whole number", "float": "a number"}
        kind = kinds.get(type_name(option.type), option.metavar)
        raise click.BadParameter(f"`{text}` is not {kind}") from None


def _parse(text: str, hint: Any, separator: str) -> object:
    """Convert text to a value of a type; raise ValueError if it is invalid."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is tuple:
        parts = text.split(separator)
        if args[-1] is not ... and len(parts) != len(args):
            raise ValueError
        return tuple(_parse(part.strip(), args[0], separator) for part in parts)
    if origin is not None and origin is not Literal:
        for member in args:
            with contextlib.suppress(ValueError):
                return _parse(text, member, separator)
    elif hint is int and (number := parse_int(text.removeprefix("-"))) is not None:
        return -number if text.startswith("-") else number
    elif hint is float:
        dividend, _, divisor = text.partition("/")
        if math.isfinite(quotient := float(dividend) / float(divisor or 1)):
            return quotient
    elif hint is str or text in args:
        return text
    raise ValueError


def parse_int(text: str) -> int | None:
    """Return a whole number; None if it is invalid, or too long for Python to read."""
    return int(text) if text.isdecimal() and len(text) <= 18 else None


def _help(option: Option) -> str:
    text, default = option.text, option.default
    if option.is_list:
        words = literals(option.type)
        text += f": {', '.join(words)}; repeat or comma" if words else "; repeatable"
    if option.unset:
        return f"{text} (default: {option.unset})."
    if isinstance(default, tuple):
        default = ",".join(map(str, default))
    if isinstance(default, float):
        default = f"{default:g}"
    return f"{text} (default: {default})." if default else f"{text}."


def setting_options(table: str, *keys: str) -> Decorator:
    """Return a decorator that adds the options of settings of one table, by default of all."""
    paths = [f"{table}.{key}" for key in keys or keys_at((table,))]
    with_flag = [path for path in paths if option_table()[path].flag]
    return _add(*(click.option(cls=SettingOption, paths=[path]) for path in with_flag))


def _add(*options: Decorator) -> Decorator:
    """Return a decorator that adds options in the order given."""
    return lambda command: reduce(lambda inner, add: add(inner), reversed(options), command)


def flag(name: str, text: str) -> Decorator:
    """Return an option without a value."""
    return click.option(name, is_flag=True, help=text)


def choice(name: str, words: Sequence[str], text: str, *names: str) -> Decorator:
    """Return an option with one of some words, the first by default."""
    kind, default = click.Choice(words), words[0]
    return click.option(name, *names, type=kind, default=default, show_default=True, help=text)


def count(name: str, text: str, **more: Any) -> Decorator:
    """Return an option with a positive number."""
    return click.option(name, type=click.IntRange(min=1), metavar="N", help=text, **more)


def repeated(name: str, names: str, metavar: str, text: str) -> Decorator:
    """Return an option that may be given several times, as parameter `names`."""
    return click.option(name, names, multiple=True, metavar=metavar, help=text)


def output(text: str, kind: click.Path = PATH, **more: Any) -> Decorator:
    """Return `-o`, the file or folder to write."""
    return click.option("-o", "--output", type=kind, help=text, **more)


preprocess_options = setting_options("preprocess")
image_options = _add(
    setting_options("calibration", "images", "count"),
    preprocess_options,
    setting_options("calibration", "max-broken"),
)
quantize_options = setting_options(
    "quantize",
    "method",
    "effort",
    "training-steps",
    "exclude",
    "only",
    "keep",
    "weight-bits",
    "activation-bits",
    "group",
    "zero-points",
    "portable",
    "rest",
)
engine_options = _add(
    setting_options("build"),
    setting_options("search", "budget"),
    click.option(cls=SettingOption, paths=["cuda.allow-fallback", "tensorrt.allow-fallback"]),
)
bench_options = setting_options("bench")
gate_options = setting_options("gate")
eval_options = _add(
    setting_options("evaluate"),
    count("--workers", "Threads that read images (default: one per core)."),
)
source_options = _add(
    setting_options("export", "inputs", "weights", "batch"),
    flag("--trust", "Allow the source to run the code that it contains."),
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
common_options = _add(
    click.option(
        "--config", type=FILE, help="Settings file (default: ./qconvert.toml if it exists)."
    ),
    repeated("--set", "assigned", "KEY=VALUE", "Override a setting; repeatable."),
    json_option,
)


def open_job(
    model: str | None, chosen: Mapping[str, Any], run: Path | None = None, *, engines: bool = False
) -> "JobContext":
    """Return the context of a command: settings of a run or of the settings file, and options.

    The file in the working folder is for new runs, and for `engines` without a run; these need no
    model.
    """
    from qconvert.core import config_file
    from qconvert.run.context import open_context
    from qconvert.run.run_folder import RunFolder

    path = chosen.get("config")
    if path is None and run is None and Path(config_file.FILE_NAME).is_file():
        path = Path(config_file.FILE_NAME)
        if not engines:
            console.info(f"settings from ./{path}")
    base = RunFolder(run).settings() if run is not None else None
    assigned = config_file.parse_assignments(chosen.get("assigned", ()))
    config = config_file.load(path, {**assigned, **read_settings(model, chosen)}, base=base)
    if config.model is None and not engines:
        raise UsageError(
            "no model is named", hint="name one, or set `model = ...` in qconvert.toml"
        )
    progress = ignore_progress if chosen.get("dry_run") else console.PROGRESS.update
    flags = {name: chosen.get(name, False) for name in ("trust", "fresh")}
    return open_context(config, progress, **flags)


def read_settings(model: str | None, options: Mapping[str, Any]) -> dict[str, object]:
    """Return the settings that options set, by dotted key; their parameters are named after it."""
    overrides: dict[str, object] = {} if model is None else {"model": model}
    for keys, value in options.items():
        if "." in keys and value is not None and value != ():
            overrides |= dict.fromkeys(keys.split(","), value)
    return overrides


def output_path(chosen: Path | None, model: str, suffix: str) -> Path:
    """Return the file to write: as chosen, else named after the model, in the working folder.

    It must not be the model itself.
    """
    path = chosen or Path(f"{model_name(model)}{suffix}")
    if path.resolve() != Path(model).resolve():
        return path
    if chosen is not None:
        raise UsageError(f"`{chosen}` is the source itself", hint="choose another name: `-o`")
    return Path(f"{model_name(model)}-clean{suffix}")


def model_name(model: str) -> str:
    """Return the name in `net.onnx`, `timm:net` and `package.module:net`."""
    from qconvert import sources

    is_file = sources.kind(model) in sources.FILE_KINDS
    return Path(model).stem if is_file else model.rpartition(":")[2]
