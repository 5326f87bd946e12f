"""The jobs as functions: `qconvert.build` and the others.

They do what the commands of the same name do, take the commands' options by the same names, and
return what the commands show. What has no name here is in `settings`, by its key in qconvert.toml:
`{"quantize.method": "auto"}`; `config` names such a file. Nothing is printed: `tell` hears of every
step. What goes wrong is a `QConvertError`; its hint names the command's options.
"""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, TypedDict, Unpack

from qconvert import config_file, store
from qconvert.calibrate.calibration import Calibration
from qconvert.config import Config
from qconvert.config_errors import near
from qconvert.errors import UsageError
from qconvert.images.reading import Reading
from qconvert.pipeline import build as building
from qconvert.pipeline import calibrate as calibrating
from qconvert.pipeline import export as exporting
from qconvert.pipeline import measuring_again, opened, targets
from qconvert.pipeline import quantize as quantizing
from qconvert.pipeline.export import Exported
from qconvert.pipeline.finished import Run, finished
from qconvert.pipeline.opened import OpenEngine
from qconvert.pipeline.progress import Progress, Tell, silent
from qconvert.pipeline.quantize import Quantized
from qconvert.pipeline.requests import Request
from qconvert.pipeline.run_folder import SETTINGS, RunFolder
from qconvert.report.model import Report

__all__ = [
    "Calibration",
    "Exported",
    "OpenEngine",
    "Progress",
    "Quantized",
    "Report",
    "Run",
    "bench",
    "build",
    "calibrate",
    "evaluate",
    "export",
    "open_engine",
    "open_run",
    "quantize",
    "resume",
]

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


def build(
    model: Model | None = None,
    *,
    output: Place,
    tell: Tell = silent,
    **options: Unpack[BuildOptions],
) -> Run:
    """Make engines of a model, time and score them; `output` is the folder of the run.

    Takes `images`, `count`, `eval`, `labels`, `backends`, `precisions`, `inputs`, `weights`,
    `trust`, `fresh`, `settings`, `config`. The same call again goes on where it was. Gates are
    settings, such as `gate.max-drop`; those that fail are in the report, and
    `Run.require_gates` raises.
    """
    config = _config(model, options, BuildOptions)
    order = building.Order(
        Path(output),
        _spelled("build", model, {"output": output, **options}),
        trust=options.get("trust", False),
    )
    shelf = store.default(fresh=options.get("fresh", False))
    return Run(order.out, building.build(config, order, shelf, tell))


def resume(run: Place, *, tell: Tell = silent, **options: Unpack[EngineOptions]) -> Run:
    """Go on in a run, also one made elsewhere; this needs no model and no image again.

    Takes `eval`, `labels`, `backends`, `precisions`, `settings`.
    """
    folder = RunFolder(Path(run))
    folder.settings()
    below = Common(config=options.get("config", folder.root / SETTINGS))
    config = _config(None, {**options, **below}, EngineOptions)
    order = building.Order(folder.root, _spelled("resume", run, options), resumed=True)
    return Run(folder.root, building.build(config, order, store.default(), tell))


def export(
    model: Model | None = None,
    *,
    output: Place,
    tell: Tell = silent,
    **options: Unpack[ImageOptions],
) -> Exported:
    """Turn a model into one clean ONNX file `output`, checked against the model.

    Takes `inputs`, `weights`, `images`, `trust`, `settings`, `config`.
    """
    config = _config(model, options, ImageOptions)
    trust = options.get("trust", False)
    return exporting.export(config, Path(output), store.default(), tell, trust=trust)


def calibrate(
    model: Model | None = None,
    *,
    output: Place,
    tell: Tell = silent,
    **options: Unpack[ImageOptions],
) -> Calibration:
    """Measure over `images` what every tensor of a model holds, and save it as `output` (.npz).

    Takes `images`, `count`, `inputs`, `weights`, `trust`, `settings`, `config`.
    """
    config = _config(model, options, ImageOptions)
    job = calibrating.Job(Path(output), trust=options.get("trust", False))
    return calibrating.calibrate(config, job, store.default(), tell)


def quantize(
    model: Model | None = None,
    *,
    output: Place,
    tell: Tell = silent,
    **options: Unpack[QuantizeOptions],
) -> Quantized:
    """Rewrite a model for a `backend` (cpu) in a `precision` (int8), and save it as `output`.

    Ranges come from `images`, from a `calibration` file, or from a `plan`. Takes also `count`,
    `inputs`, `weights`, `trust`, `settings`, `config`.
    """
    config = _config(model, options, QuantizeOptions)
    request = Request(
        out=Path(output),
        backend=options.get("backend", "cpu"),
        precision=options.get("precision", "int8"),
        calibration=_path(options.get("calibration")),
        plan=_path(options.get("plan")),
        trust=options.get("trust", False),
    )
    return quantizing.quantize(config, request, store.default(), tell)


def bench(
    engines: Place | Sequence[Place], *, tell: Tell = silent, **options: Unpack[Common]
) -> Report:
    """Time engines in turns: those of a run, or `RUN/engines/NAME` and ONNX files.

    Takes `settings`, such as `bench.batch-sizes`, and `config`.
    """
    target = targets.resolve(_paths(engines))
    return measuring_again.bench(target, _of_target(target, options, Common), tell)


def evaluate(
    engines: Place | Sequence[Place], *, tell: Tell = silent, **options: Unpack[ScoreOptions]
) -> Report:
    """Compare the answers of engines on the images of `eval` with FP32 and with `labels`.

    Takes also `settings` and `config`.
    """
    target = targets.resolve(_paths(engines))
    config = _of_target(target, options, ScoreOptions)
    return measuring_again.evaluate(target, config, Reading(), (store.default(), tell))


def open_run(folder: Place) -> Run:
    """Return a run that `build` or `qconvert build` made, from its folder."""
    return finished(Path(folder))


def open_engine(path: Place) -> OpenEngine:
    """Load an engine, `RUN/engines/NAME`, or an ONNX file, which runs on the CPU."""
    return opened.open_engine(Path(path))


def _config(model: Model | None, options: Mapping[str, object], known: type) -> Config:
    """Return the settings of a job; arguments win over `settings`, and those over `config`."""
    found = _load(options, known, {} if model is None else {"model": _name(model)})
    if found.model is None:
        raise UsageError("there is no model", hint="name one, or `model = ...` in `config`")
    return found


def _of_target(target: targets.Target, options: Mapping[str, object], known: type) -> Config:
    """Return the settings for engines that are there: those of their run, and the arguments."""
    own = {"config": target.run.root / SETTINGS} if target.run is not None else {}
    return _load({**own, **options}, known, {})


def _load(options: Mapping[str, object], known: type, given: Mapping[str, object]) -> Config:
    names = list(known.__annotations__)
    for name in options:
        if name not in names:
            raise UsageError(
                f"there is no argument `{name}`{near(name, names)}",
                hint=f"it takes {', '.join(names)}; all else is in `settings`",
            )
    values = {KEYS[name]: _plain(name, value) for name, value in options.items() if name in KEYS}
    more = options.get("settings", {})
    assert isinstance(more, Mapping)
    file = options.get("config")
    below = Path(os.fspath(file)) if isinstance(file, str | os.PathLike) else None
    return config_file.load(below, {**more, **values, **given}, given_in="arguments")


def _plain(name: str, value: object) -> object:
    """Return a value as a settings file has it; one word may stand for a list of one."""
    if name in MANY and isinstance(value, str):
        return [value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _name(model: Model) -> str:
    """Return how a model is written on the command line."""
    if isinstance(model, str | os.PathLike):
        return os.fspath(model)
    module, name = model.__module__, model.__qualname__
    if getattr(sys.modules.get(module), name, None) is not model:
        raise UsageError(
            f"`{name}` cannot be found again by its name",
            hint="give a function that stands in a module by itself, without arguments",
        )
    return f"{module}:{name}"


def _spelled(function: str, first: object, options: Mapping[str, object]) -> str:
    """Return a call as it could be typed, for the report."""
    shown = [] if first is None else [_shown(first)]
    shown += [f"{name}={_shown(value)}" for name, value in options.items()]
    return f"qconvert.{function}({', '.join(shown)})"


def _shown(value: object) -> str:
    if isinstance(value, os.PathLike):
        return repr(os.fspath(value))
    return str(getattr(value, "__qualname__", repr(value)))


def _path(given: Place | None) -> Path | None:
    return None if given is None else Path(given)


def _paths(given: Place | Sequence[Place]) -> list[Path]:
    return [Path(given)] if isinstance(given, str | os.PathLike) else [Path(each) for each in given]
