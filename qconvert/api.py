"""The jobs as functions: `qconvert.build` and the others.

They do what the commands of the same name do, take their options by the same names, and return what
the commands show. All other settings go into `settings`, by their key in qconvert.toml:
`{"quantize.method": "auto"}`; `config` names a settings file. Nothing is printed: `progress` is
called at every step. Errors are `QConvertError`s; their hints name the options of the commands.
"""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack, get_args, get_origin

from qconvert.calibrate.calibration import Calibration
from qconvert.core import config_file
from qconvert.core.config import Backend, Config, Task, keyword_settings, option_table
from qconvert.core.errors import UsageError, did_you_mean
from qconvert.core.formats import RewrittenPrecision
from qconvert.core.progress import Progress, ProgressCallback, ignore_progress
from qconvert.package import Format, pack
from qconvert.package.pack import Packed
from qconvert.report.model import Report
from qconvert.run import bench as bench_job
from qconvert.run import build as build_job
from qconvert.run import calibrate as calibrate_job
from qconvert.run import evaluate as evaluate_job
from qconvert.run import export as export_job
from qconvert.run import quantize as quantize_job
from qconvert.run import search as search_job
from qconvert.run import targets
from qconvert.run.context import JobContext, open_context
from qconvert.run.export import Exported
from qconvert.run.quantize import Quantized
from qconvert.run.quantize_request import QuantizeRequest
from qconvert.run.run_folder import RunFolder
from qconvert.run.search import SearchSummary
from qconvert.run.targets import OpenEngine, Run, load_run
from qconvert.run.tune import TuneRequest

__all__ = ["Calibration", "Exported", "OpenEngine", "Packed", "Progress", "Quantized", "Report"]
__all__ += ["Run", "SearchSummary"]
__all__ += ["bench", "build", "calibrate", "evaluate", "export", "package", "quantize", "resume"]
__all__ += ["open_engine", "open_run", "search", "tune"]

StrPath = str | os.PathLike[str]

# A model as on the command line, or the function that makes it instead of its name.
ModelSource = StrPath | Callable[[], object]


class CommonArguments(TypedDict, total=False):
    """More settings by their dotted keys, a settings file that they override, and a callback."""

    settings: Mapping[str, object]
    config: StrPath
    progress: ProgressCallback


class ImageArguments(CommonArguments, total=False):
    """How the source is read, and at most `count` images for calibration or comparison."""

    inputs: Sequence[str]
    weights: StrPath
    trust: bool
    images: StrPath
    count: int


class EvaluateArguments(CommonArguments, total=False):
    """The images on which outputs are compared, their labels, and how outputs are read."""

    eval: StrPath
    labels: StrPath
    task: Task
    decode: str
    metric: str


class EngineArguments(EvaluateArguments, total=False):
    """The engines to build."""

    backends: Sequence[str]
    precisions: Sequence[str]


class TuneArguments(EvaluateArguments, total=False):
    """The backends whose engines are trained; `fresh` ignores cached results."""

    backends: Sequence[str]
    fresh: bool


class BuildArguments(EngineArguments, ImageArguments, total=False):
    """The engines, the images and the source; `fresh` ignores cached results."""

    fresh: bool


class QuantizeArguments(ImageArguments, total=False):
    """The target, and a calibration file or a plan instead of images."""

    backend: Backend
    precision: RewrittenPrecision
    calibration: StrPath
    plan: StrPath


class SearchArguments(EvaluateArguments, ImageArguments, total=False):
    """The backend to search for, and the points that the result may lose."""

    backends: Sequence[str]
    budget: float
    fresh: bool


class PackageArguments(TypedDict, total=False):
    """The engine to pack, its name, and a file with the names of its classes."""

    engine: str
    name: str
    classes: StrPath


def build(
    model: ModelSource | None = None, *, output: StrPath, **options: Unpack[BuildArguments]
) -> Run:
    """Build engines of a model, time and evaluate them; `output` is the folder of the run.

    Options: `images`, `count`, `eval`, `labels`, `task`, `decode`, `metric`, `backends`,
    `precisions`, `inputs`, `weights`, `trust`, `fresh`, `settings`, `config`. The same call again
    resumes the run. Gates are settings, such as `gate.max-drop`; those that fail are in the report,
    and `Run.require_gates` raises.
    """
    context = _open_model_job(model, options, BuildArguments)
    call = _format_call("build", model, {"output": output, **options})
    report = build_job.build(context, Path(output), call)
    return Run(Path(output).absolute(), report)


def resume(run: StrPath, **options: Unpack[EngineArguments]) -> Run:
    """Resume a run, also one made elsewhere, without its model and calibration images.

    Options: `eval`, `labels`, `task`, `decode`, `metric`, `backends`, `precisions`, `settings`,
    `config`. The settings of the run are the defaults.
    """
    folder = RunFolder(Path(run))
    context = _open_job(options, EngineArguments, folder.settings())
    call = _format_call("resume", run, options)
    report = build_job.build(context, folder.root, call, resumed=True)
    return Run(folder.root.absolute(), report)


def tune(
    run: StrPath,
    *,
    images: StrPath | None = None,
    count: int | None = None,
    steps: int | None = None,
    **options: Unpack[TuneArguments],
) -> Run:
    """Train the INT8 engines of a run to give the outputs of FP32, and build them again.

    It trains on `images` without labels, by default on those of the calibration, for `steps`
    (1000); an engine changes only if its outputs come nearer. Other options: `eval`, `labels`,
    `task`, `decode`, `metric`, `backends`, `fresh`, `settings`, `config`. This needs PyTorch.
    """
    folder = RunFolder(Path(run))
    context = _open_job(options, TuneArguments, folder.settings())
    call = _format_call("tune", run, {"images": images, "steps": steps, **options})
    request = TuneRequest(_optional_path(images), count, steps)
    report = build_job.build(context, folder.root, call, resumed=True, tuning=request)
    return Run(folder.root.absolute(), report)


def export(
    model: ModelSource | None = None, *, output: StrPath, **options: Unpack[ImageArguments]
) -> Exported:
    """Convert a model to one clean ONNX file `output`, and compare it with the model.

    Options: `inputs`, `weights`, `images`, `trust`, `settings`, `config`.
    """
    context = _open_model_job(model, options, ImageArguments)
    return export_job.export(context, Path(output))


def calibrate(
    model: ModelSource | None = None, *, output: StrPath, **options: Unpack[ImageArguments]
) -> Calibration:
    """Measure the value ranges of every tensor over `images`, and save them as `output` (.npz).

    Options: `images`, `count`, `inputs`, `weights`, `trust`, `settings`, `config`.
    """
    context = _open_model_job(model, options, ImageArguments)
    return calibrate_job.calibrate(context, Path(output))


def quantize(
    model: ModelSource | None = None, *, output: StrPath, **options: Unpack[QuantizeArguments]
) -> Quantized:
    """Rewrite a model for `backend` (cpu) in `precision` (int8), and save it as `output`.

    Ranges come from `images`, from a `calibration` file, or from a `plan`. Other options: `count`,
    `inputs`, `weights`, `trust`, `settings`, `config`.
    """
    context = _open_model_job(model, options, QuantizeArguments)
    target = options.get("backend", "cpu"), options.get("precision", "int8")
    files = _optional_path(options.get("calibration")), _optional_path(options.get("plan"))
    request = QuantizeRequest(Path(output), *target, *files)
    return quantize_job.quantize(context, request)


def search(
    model: ModelSource | None = None, *, output: StrPath, **options: Unpack[SearchArguments]
) -> SearchSummary:
    """Find the fewest blocks to keep in float so that accuracy stays within `budget`.

    Options: `images`, `count`, `eval`, `labels`, `task`, `decode`, `metric`, `backends` (one),
    `inputs`, `weights`, `trust`, `fresh`, `settings`, `config`. The result, its plan and all trials
    are in the folder `output`; `mix.outcome` is `none` if nothing stays within the budget.
    """
    context = _open_model_job(model, options, SearchArguments)
    return search_job.run_search(context, Path(output))


def bench(engines: StrPath | Sequence[StrPath], **options: Unpack[CommonArguments]) -> Report:
    """Time engines in interleaved rounds: all of a run, or `RUN/engines/NAME` and ONNX files.

    Options: `settings`, such as `bench.batch-sizes`, and `config`.
    """
    return bench_job.bench(*_open_target_job(engines, options, CommonArguments))


def evaluate(engines: StrPath | Sequence[StrPath], **options: Unpack[EvaluateArguments]) -> Report:
    """Compare the outputs of engines on the images of `eval` with FP32 and with `labels`.

    Other options: `task`, `decode`, `metric`, `settings` and `config`.
    """
    return evaluate_job.evaluate(*_open_target_job(engines, options, EvaluateArguments))


def package(
    run: StrPath, *, format: Format, output: StrPath, **options: Unpack[PackageArguments]
) -> Packed:
    """Pack an engine of a run for `onnxruntime` or `triton`, into the folder `output`.

    Options: `engine` (default: that of the verdict), `name`, and `classes`, a file with one name
    per line.
    """
    hints = {"format": Format, **PackageArguments.__annotations__}
    _require_known_arguments({"format": format, **options}, hints)
    classes = _optional_path(options.get("classes"))
    chosen = options.get("engine", ""), options.get("name", "")
    return pack.write_package(open_run(run), format, Path(output), *chosen, classes)


def open_run(folder: StrPath) -> Run:
    """Open the folder of a run that `build` or `qconvert build` made."""
    return load_run(Path(folder).absolute())


def open_engine(path: StrPath) -> OpenEngine:
    """Load an engine, `RUN/engines/NAME`, or an ONNX file, which runs on the CPU."""
    return targets.open_engine(Path(path))


def _open_model_job(
    model: ModelSource | None, options: Mapping[str, Any], arguments: type
) -> JobContext:
    """Return the context of a job that needs a model, which may be a function that makes it."""
    overrides = {}
    if isinstance(model, str | os.PathLike):
        overrides["model"] = os.fspath(model)
    elif model is not None:
        module, name = getattr(model, "__module__", ""), getattr(model, "__qualname__", "")
        if not name or getattr(sys.modules.get(module), name, None) is not model:
            subject = f"`{name}`" if name else f"a {type(model).__name__}"
            raise UsageError(
                f"{subject} cannot be imported by its name",
                hint="pass a module-level function that returns the network and needs no arguments",
            )
        overrides["model"] = f"{module}:{name}"
    context = _open_job(options, arguments, overrides=overrides)
    if context.config.model is None:
        raise UsageError("no model is named", hint="name one, or set `model = ...` in `config`")
    return context


def _open_target_job(
    engines: StrPath | Sequence[StrPath], options: Mapping[str, Any], arguments: type
) -> tuple[targets.Target, JobContext]:
    """Return finished engines and the context of a job on them: the settings of their run."""
    paths = [engines] if isinstance(engines, str | os.PathLike) else engines
    target = targets.resolve([Path(path) for path in paths])
    base = target.run.settings() if target.run is not None else None
    return target, _open_job(options, arguments, base)


def _open_job(
    options: Mapping[str, Any],
    arguments: type,
    base: Config | None = None,
    overrides: Mapping[str, object] | None = None,
) -> JobContext:
    """Return the context of a job: `base`, overridden by `config`, `settings`, and arguments."""
    _require_known_arguments(options, arguments.__annotations__)
    settings, path = options.get("settings", {}), options.get("config")
    if not isinstance(settings, Mapping):
        raise UsageError(
            f"`settings` must be a mapping, not {type(settings).__name__}",
            hint='for example {"quantize.method": "mse"}',
        )
    if not isinstance(path, str | os.PathLike | None):
        raise UsageError(
            f"`config` must be a path, not {type(path).__name__}", hint="name a settings file"
        )
    values = {**settings}
    for keyword, key in keyword_settings().items():
        if keyword in options:
            value = options[keyword]
            is_word = isinstance(value, str) and option_table()[key].is_list
            values[key] = [value] if is_word else value
    values |= overrides or {}
    values = {
        key: os.fspath(value) if isinstance(value, os.PathLike) else value
        for key, value in values.items()
    }
    config = config_file.load(_optional_path(path), values, "arguments", base)
    flags = {name: bool(options.get(name)) for name in ("trust", "fresh")}
    return open_context(config, options.get("progress", ignore_progress), **flags)


def _require_known_arguments(options: Mapping[str, object], hints: Mapping[str, object]) -> None:
    for name, value in options.items():
        if name not in hints:
            others = "; everything else is in `settings`" if "settings" in hints else ""
            raise UsageError(
                f"there is no argument `{name}`{did_you_mean(name, list(hints))}",
                hint=f"it accepts {', '.join(hints)}{others}",
            )
        words = get_args(hints[name]) if get_origin(hints[name]) is Literal else ()
        if words and value not in words:
            raise UsageError(
                f"there is no {name} `{value}`{did_you_mean(str(value), words)}",
                hint=f"one of {', '.join(f'`{word}`' for word in words)}",
            )


def _format_call(function: str, first: object, options: Mapping[str, object]) -> str:
    """Return a call as source text, for the report."""

    def text(value: object) -> str:
        if isinstance(value, os.PathLike):
            return repr(os.fspath(value))
        return str(getattr(value, "__qualname__", repr(value)))

    arguments = [] if first is None else [text(first)]
    arguments += [f"{name}={text(value)}" for name, value in options.items() if name != "progress"]
    return f"qconvert.{function}({', '.join(arguments)})"


def _optional_path(path: StrPath | None) -> Path | None:
    return None if path is None else Path(path)
