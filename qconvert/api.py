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
from typing import Literal, TypedDict, Unpack, get_args, get_origin

from qconvert.calibrate.calibration import Calibration
from qconvert.core import config_file
from qconvert.core.config import Config
from qconvert.core.errors import UsageError, did_you_mean
from qconvert.core.progress import Progress, ProgressCallback, ignore_progress
from qconvert.package import pack
from qconvert.package.pack import Format, PackageOptions, Packed
from qconvert.report.model import Report
from qconvert.run import bench_job, evaluate_job, finished_run, search_job, targets
from qconvert.run import build as building
from qconvert.run import calibrate as calibrating
from qconvert.run import export as exporting
from qconvert.run import quantize as quantizing
from qconvert.run.context import JobContext, open_context
from qconvert.run.export import Exported
from qconvert.run.finished_run import OpenEngine, Run, load_run
from qconvert.run.quantize import Quantized, QuantizeRequest
from qconvert.run.run_folder import RunFolder
from qconvert.run.search_job import SearchSummary

StrPath = str | os.PathLike[str]

# A model as on the command line, or the function that makes it in place of its name.
ModelSource = StrPath | Callable[[], object]

# The arguments that stand for a setting.
ARGUMENT_SETTINGS = {
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
LIST_ARGUMENTS = ("inputs", "backends", "precisions")


class CommonArguments(TypedDict, total=False):
    """What every job takes: more settings by their keys, and a file of settings below them."""

    settings: Mapping[str, object]
    config: StrPath


class SourceArguments(CommonArguments, total=False):
    """What reading a model can need."""

    inputs: Sequence[str]
    weights: StrPath
    trust: bool


class ImageArguments(SourceArguments, total=False):
    """The images to calibrate on, or to compare an export on, at most `count` of them."""

    images: StrPath
    count: int


class EvaluateArguments(CommonArguments, total=False):
    """The images that answers are compared on."""

    eval: StrPath
    labels: StrPath


class EngineArguments(EvaluateArguments, total=False):
    """The engines to make."""

    backends: Sequence[str]
    precisions: Sequence[str]


class BuildArguments(EngineArguments, ImageArguments, total=False):
    """What a build takes; with `fresh` nothing stored is used."""

    fresh: bool


class QuantizeArguments(ImageArguments, total=False):
    """What to rewrite a model to, and what is known of its ranges: a calibration, or a plan."""

    backend: Literal["cpu", "cuda", "tensorrt", "tensorrt-rtx"]
    precision: Literal["int8", "fp16", "bf16"]
    calibration: StrPath
    plan: StrPath


class SearchArguments(EvaluateArguments, ImageArguments, total=False):
    """For which backend to search, and the points that answers may lose."""

    backends: Sequence[str]
    budget: float
    fresh: bool


class PackageArguments(TypedDict, total=False):
    """Which engine to pack, and what to call it and its classes."""

    engine: str
    name: str
    classes: StrPath


def load_config(
    model: ModelSource | None,
    options: Mapping[str, object],
    known: type,
    below: Config | None = None,
) -> Config:
    """Return the settings of a job; arguments win over `settings`, and those over `config`."""
    found = merge_settings(
        options, known, {} if model is None else {"model": _model_name(model)}, below
    )
    if found.model is None:
        raise UsageError("there is no model", hint="name one, or `model = ...` in `config`")
    return found


def merge_settings(
    options: Mapping[str, object],
    known: type,
    given: Mapping[str, object],
    below: Config | None = None,
) -> Config:
    """Return what arguments, settings and file say, over the settings `below`."""
    require_known_arguments(options, known)
    values = {
        ARGUMENT_SETTINGS[name]: _setting_value(name, value)
        for name, value in options.items()
        if name in ARGUMENT_SETTINGS
    }
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


def require_known_arguments(options: Mapping[str, object], known: type) -> None:
    """Refuse an argument that a function does not have, and words that it does not know."""
    names = list(known.__annotations__)
    for name, value in options.items():
        if name not in names:
            more = "; all else is in `settings`" if "settings" in names else ""
            raise UsageError(
                f"there is no argument `{name}`{did_you_mean(name, names)}",
                hint=f"it takes {', '.join(names)}{more}",
            )
        require_choice(name, value, known.__annotations__[name])


def require_choice(name: str, value: object, kind: object) -> None:
    """Refuse a word that is none of those that an argument may be."""
    words = get_args(kind) if get_origin(kind) is Literal else ()
    if words and value not in words:
        raise UsageError(
            f"there is no {name} `{value}`{did_you_mean(str(value), words)}",
            hint=f"there are {', '.join(f'`{each}`' for each in words)}",
        )


def _setting_value(name: str, value: object) -> object:
    """Return a value as a settings file has it; one word may stand for a list of one."""
    if name in LIST_ARGUMENTS and isinstance(value, str):
        return [value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _model_name(model: ModelSource) -> str:
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


def format_call(function: str, first: object, options: Mapping[str, object]) -> str:
    """Return a call as it could be typed, for the report."""
    shown = [] if first is None else [_format_value(first)]
    shown += [f"{name}={_format_value(value)}" for name, value in options.items()]
    return f"qconvert.{function}({', '.join(shown)})"


def _format_value(value: object) -> str:
    if isinstance(value, os.PathLike):
        return repr(os.fspath(value))
    return str(getattr(value, "__qualname__", repr(value)))


__all__ = [
    "Calibration",
    "Exported",
    "OpenEngine",
    "Packed",
    "Progress",
    "Quantized",
    "Report",
    "Run",
    "SearchSummary",
    "bench",
    "build",
    "calibrate",
    "evaluate",
    "export",
    "open_engine",
    "open_run",
    "package",
    "quantize",
    "resume",
    "search",
]


def build(
    model: ModelSource | None = None,
    *,
    output: StrPath,
    progress: ProgressCallback = ignore_progress,
    **options: Unpack[BuildArguments],
) -> Run:
    """Make engines of a model, time and score them; `output` is the folder of the run.

    Takes `images`, `count`, `eval`, `labels`, `backends`, `precisions`, `inputs`, `weights`,
    `trust`, `fresh`, `settings`, `config`. The same call again goes on where it was. Gates are
    settings, such as `gate.max-drop`; those that fail are in the report, and
    `Run.require_gates` raises.
    """
    config = load_config(model, options, BuildArguments)
    order = building.BuildRequest(
        Path(output),
        format_call("build", model, {"output": output, **options}),
    )
    return Run(order.out.absolute(), building.build(_context(config, progress, options), order))


def resume(
    run: StrPath,
    *,
    progress: ProgressCallback = ignore_progress,
    **options: Unpack[EngineArguments],
) -> Run:
    """Go on in a run, also one made elsewhere; this needs no model and no image again.

    Takes `eval`, `labels`, `backends`, `precisions`, `settings`, `config`; what they do not say
    is as the run has it.
    """
    folder = RunFolder(Path(run))
    config = load_config(None, options, EngineArguments, folder.settings())
    order = building.BuildRequest(folder.root, format_call("resume", run, options), resumed=True)
    report = building.build(_context(config, progress), order)
    return Run(folder.root.absolute(), report)


def export(
    model: ModelSource | None = None,
    *,
    output: StrPath,
    progress: ProgressCallback = ignore_progress,
    **options: Unpack[ImageArguments],
) -> Exported:
    """Turn a model into one clean ONNX file `output`, checked against the model.

    Takes `inputs`, `weights`, `images`, `trust`, `settings`, `config`.
    """
    config = load_config(model, options, ImageArguments)
    return exporting.export(_context(config, progress, options), Path(output))


def calibrate(
    model: ModelSource | None = None,
    *,
    output: StrPath,
    progress: ProgressCallback = ignore_progress,
    **options: Unpack[ImageArguments],
) -> Calibration:
    """Measure over `images` what every tensor of a model holds, and save it as `output` (.npz).

    Takes `images`, `count`, `inputs`, `weights`, `trust`, `settings`, `config`.
    """
    config = load_config(model, options, ImageArguments)
    request = calibrating.CalibrationRequest(Path(output))
    return calibrating.calibrate(_context(config, progress, options), request)


def quantize(
    model: ModelSource | None = None,
    *,
    output: StrPath,
    progress: ProgressCallback = ignore_progress,
    **options: Unpack[QuantizeArguments],
) -> Quantized:
    """Rewrite a model for a `backend` (cpu) in a `precision` (int8), and save it as `output`.

    Ranges come from `images`, from a `calibration` file, or from a `plan`. Takes also `count`,
    `inputs`, `weights`, `trust`, `settings`, `config`.
    """
    config = load_config(model, options, QuantizeArguments)
    request = QuantizeRequest(
        out=Path(output),
        backend=options.get("backend", "cpu"),
        precision=options.get("precision", "int8"),
        calibration=_optional_path(options.get("calibration")),
        plan=_optional_path(options.get("plan")),
    )
    return quantizing.quantize(_context(config, progress, options), request)


def bench(
    engines: StrPath | Sequence[StrPath],
    *,
    progress: ProgressCallback = ignore_progress,
    **options: Unpack[CommonArguments],
) -> Report:
    """Time engines in turns: those of a run, or `RUN/engines/NAME` and ONNX files.

    Takes `settings`, such as `bench.batch-sizes`, and `config`.
    """
    target = targets.resolve(_paths(engines))
    config = _target_config(target, options, CommonArguments)
    return bench_job.bench(target, _context(config, progress))


def evaluate(
    engines: StrPath | Sequence[StrPath],
    *,
    progress: ProgressCallback = ignore_progress,
    **options: Unpack[EvaluateArguments],
) -> Report:
    """Compare the answers of engines on the images of `eval` with FP32 and with `labels`.

    Takes also `settings` and `config`.
    """
    target = targets.resolve(_paths(engines))
    config = _target_config(target, options, EvaluateArguments)
    return evaluate_job.evaluate(target, _context(config, progress))


def package(
    run: StrPath, *, format: Format, output: StrPath, **options: Unpack[PackageArguments]
) -> Packed:
    """Pack an engine of a run for `onnxruntime` or `triton`, into the folder `output`.

    Takes `engine` (that of the verdict), `name`, and `classes`, a file with a name a line.
    """
    require_known_arguments(options, PackageArguments)
    require_choice("format", format, Format)
    classes = _optional_path(options.get("classes"))
    chosen = options.get("engine", ""), options.get("name", "")
    return pack.write_package(open_run(run), PackageOptions(format, Path(output), *chosen, classes))


def search(
    model: ModelSource | None = None,
    *,
    output: StrPath,
    progress: ProgressCallback = ignore_progress,
    **options: Unpack[SearchArguments],
) -> SearchSummary:
    """Find the least of a model that must leave INT8 for its answers to keep a `budget`.

    Takes `images`, `count`, `eval`, `labels`, `backends` (one), `inputs`, `weights`, `trust`,
    `fresh`, `settings`, `config`. The mix, its plan and all trials lie in the folder `output`;
    where no mix keeps the budget, `mix.outcome` of what is returned is `none`.
    """
    config = load_config(model, options, SearchArguments)
    folder = search_job.SearchFolder(Path(output))
    return search_job.run_search(_context(config, progress, options), folder)


def open_run(folder: StrPath) -> Run:
    """Return a run that `build` or `qconvert build` made, from its folder."""
    return load_run(Path(folder).absolute())


def open_engine(path: StrPath) -> OpenEngine:
    """Load an engine, `RUN/engines/NAME`, or an ONNX file, which runs on the CPU."""
    return finished_run.open_engine(Path(path))


def _context(
    config: Config, progress: ProgressCallback, options: Mapping[str, object] | None = None
) -> JobContext:
    flags = {name: bool((options or {}).get(name)) for name in ("trust", "fresh")}
    return open_context(config, progress, **flags)


def _target_config(target: targets.Target, options: Mapping[str, object], known: type) -> Config:
    """Return the settings for engines that are there: those of their run, and the arguments."""
    own = target.run.settings() if target.run is not None else None
    return merge_settings(options, known, {}, own)


def _optional_path(given: StrPath | None) -> Path | None:
    return None if given is None else Path(given)


def _paths(given: StrPath | Sequence[StrPath]) -> list[Path]:
    return [Path(given)] if isinstance(given, str | os.PathLike) else [Path(each) for each in given]
