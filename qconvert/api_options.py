"""The arguments of the functions, and the settings that they stand for."""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, TypedDict, get_args, get_origin

from qconvert import config_file
from qconvert.config import Config
from qconvert.config_errors import near
from qconvert.errors import UsageError

Place = str | os.PathLike[str]

# A model as on the command line, or the function that makes it in place of its name.
Model = Place | Callable[[], object]

# The arguments that stand for a setting.
KEYS = {
    "inputs": "export.inputs",
    "weights": "export.weights",
    "images": "calibration.images",
    "count": "calibration.count",
    "eval": "evaluate.images",
    "labels": "evaluate.labels",
    "backends": "build.backends",
    "precisions": "build.precisions",
    "budget": "search.budget",
}
MANY = ("inputs", "backends", "precisions")


class Common(TypedDict, total=False):
    """What every job takes: more settings by their keys, and a file of settings below them."""

    settings: Mapping[str, object]
    config: Place


class SourceOptions(Common, total=False):
    """What reading a model can need."""

    inputs: Sequence[str]
    weights: Place
    trust: bool


class ImageOptions(SourceOptions, total=False):
    """The images to calibrate on, or to compare an export on, at most `count` of them."""

    images: Place
    count: int


class ScoreOptions(Common, total=False):
    """The images that answers are compared on."""

    eval: Place
    labels: Place


class EngineOptions(ScoreOptions, total=False):
    """The engines to make."""

    backends: Sequence[str]
    precisions: Sequence[str]


class BuildOptions(EngineOptions, ImageOptions, total=False):
    """What a build takes; with `fresh` nothing stored is used."""

    fresh: bool


class QuantizeOptions(ImageOptions, total=False):
    """What to rewrite a model to, and what is known of its ranges: a calibration, or a plan."""

    backend: Literal["cpu", "cuda", "tensorrt", "tensorrt-rtx"]
    precision: Literal["int8", "fp16", "bf16"]
    calibration: Place
    plan: Place


class SearchOptions(ScoreOptions, ImageOptions, total=False):
    """For which backend to search, and the points that answers may lose."""

    backends: Sequence[str]
    budget: float
    fresh: bool


class PackageOptions(TypedDict, total=False):
    """Which engine to pack, and what to call it and its classes."""

    engine: str
    name: str
    classes: Place


def config_of(
    model: Model | None,
    options: Mapping[str, object],
    known: type,
    below: Config | None = None,
) -> Config:
    """Return the settings of a job; arguments win over `settings`, and those over `config`."""
    found = load(options, known, {} if model is None else {"model": _name(model)}, below)
    if found.model is None:
        raise UsageError("there is no model", hint="name one, or `model = ...` in `config`")
    return found


def load(
    options: Mapping[str, object],
    known: type,
    given: Mapping[str, object],
    below: Config | None = None,
) -> Config:
    """Return what arguments, settings and file say, over the settings `below`."""
    require_known(options, known)
    values = {KEYS[name]: _plain(name, value) for name, value in options.items() if name in KEYS}
    more, file = options.get("settings", {}), options.get("config")
    if not isinstance(more, Mapping):
        raise UsageError(
            f"`settings` takes a mapping, not {type(more).__name__}",
            hint='as {"quantize.method": "mse"}',
        )
    if not isinstance(file, str | os.PathLike | None):
        raise UsageError(f"`config` names a file, and is {type(file).__name__}", hint="a path")
    place = None if file is None else Path(os.fspath(file))
    return config_file.load(place, {**more, **values, **given}, "arguments", below)


def require_known(options: Mapping[str, object], known: type) -> None:
    """Refuse an argument that a function does not have, and words that it does not know."""
    names = list(known.__annotations__)
    for name, value in options.items():
        if name not in names:
            more = "; all else is in `settings`" if "settings" in names else ""
            raise UsageError(
                f"there is no argument `{name}`{near(name, names)}",
                hint=f"it takes {', '.join(names)}{more}",
            )
        require_word(name, value, known.__annotations__[name])


def require_word(name: str, value: object, kind: object) -> None:
    """Refuse a word that is none of those that an argument may be."""
    words = get_args(kind) if get_origin(kind) is Literal else ()
    if words and value not in words:
        raise UsageError(
            f"there is no {name} `{value}`{near(str(value), words)}",
            hint=f"there are {', '.join(f'`{each}`' for each in words)}",
        )


def _plain(name: str, value: object) -> object:
    """Return a value as a settings file has it; one word may stand for a list of one."""
    if name in MANY and isinstance(value, str):
        return [value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _name(model: Model) -> str:
    """Return how a model is written on the command line."""
    if isinstance(model, str | os.PathLike):
        return os.fspath(model)
    module, name = getattr(model, "__module__", ""), getattr(model, "__qualname__", "")
    if not name or getattr(sys.modules.get(module), name, None) is not model:
        what = f"`{name}`" if name else f"a {type(model).__name__}"
        raise UsageError(
            f"{what} cannot be found again by its name",
            hint="give the function that makes the network: one of a module, without arguments",
        )
    return f"{module}:{name}"


def spelled(function: str, first: object, options: Mapping[str, object]) -> str:
    """Return a call as it could be typed, for the report."""
    shown = [] if first is None else [_shown(first)]
    shown += [f"{name}={_shown(value)}" for name, value in options.items()]
    return f"qconvert.{function}({', '.join(shown)})"


def _shown(value: object) -> str:
    if isinstance(value, os.PathLike):
        return repr(os.fspath(value))
    return str(getattr(value, "__qualname__", repr(value)))
