"""The jobs as functions: `qconvert.build` and the others.

They do what the commands of the same name do, take the commands' options by the same names, and
return what the commands show. What has no name here is in `settings`, by its key in qconvert.toml:
`{"quantize.method": "auto"}`; `config` names such a file. Nothing is printed: `tell` hears of every
step. What goes wrong is a `QConvertError`; its hint names the command's options.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Unpack

from qconvert import store
from qconvert.api_options import (
    BuildOptions,
    Common,
    EngineOptions,
    ImageOptions,
    Model,
    PackageOptions,
    Place,
    QuantizeOptions,
    ScoreOptions,
    SearchOptions,
    config_of,
    load,
    require_known,
    require_word,
    spelled,
)
from qconvert.calibrate.calibration import Calibration
from qconvert.config import Config
from qconvert.images.reading import Reading
from qconvert.pipeline import build as building
from qconvert.pipeline import calibrate as calibrating
from qconvert.pipeline import export as exporting
from qconvert.pipeline import measuring_again, mixing, opened, targets
from qconvert.pipeline import quantize as quantizing
from qconvert.pipeline.export import Exported
from qconvert.pipeline.finished import Run, finished
from qconvert.pipeline.mixing import Searched
from qconvert.pipeline.opened import OpenEngine
from qconvert.pipeline.progress import Progress, Tell, silent
from qconvert.pipeline.quantize import Quantized
from qconvert.pipeline.requests import Request
from qconvert.pipeline.run_folder import RunFolder
from qconvert.report.model import Report
from qconvert.serving import package as packing
from qconvert.serving.package import Format, Packed, Wanted

__all__ = [
    "Calibration",
    "Exported",
    "OpenEngine",
    "Packed",
    "Progress",
    "Quantized",
    "Report",
    "Run",
    "Searched",
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
    config = config_of(model, options, BuildOptions)
    order = building.Order(
        Path(output),
        spelled("build", model, {"output": output, **options}),
        trust=options.get("trust", False),
    )
    shelf = store.default(fresh=options.get("fresh", False))
    return Run(order.out.absolute(), building.build(config, order, shelf, tell))


def resume(run: Place, *, tell: Tell = silent, **options: Unpack[EngineOptions]) -> Run:
    """Go on in a run, also one made elsewhere; this needs no model and no image again.

    Takes `eval`, `labels`, `backends`, `precisions`, `settings`, `config`; what they do not say
    is as the run has it.
    """
    folder = RunFolder(Path(run))
    config = config_of(None, options, EngineOptions, folder.settings())
    order = building.Order(folder.root, spelled("resume", run, options), resumed=True)
    report = building.build(config, order, store.default(), tell)
    return Run(folder.root.absolute(), report)


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
    config = config_of(model, options, ImageOptions)
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
    config = config_of(model, options, ImageOptions)
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
    config = config_of(model, options, QuantizeOptions)
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


def package(
    run: Place, *, format: Format, output: Place, **options: Unpack[PackageOptions]
) -> Packed:
    """Pack an engine of a run for `onnxruntime` or `triton`, into the folder `output`.

    Takes `engine` (that of the verdict), `name`, and `classes`, a file with a name a line.
    """
    require_known(options, PackageOptions)
    require_word("format", format, Format)
    classes = _path(options.get("classes"))
    chosen = options.get("engine", ""), options.get("name", "")
    return packing.package(open_run(run), Wanted(format, Path(output), *chosen, classes))


def search(
    model: Model | None = None,
    *,
    output: Place,
    tell: Tell = silent,
    **options: Unpack[SearchOptions],
) -> Searched:
    """Find the least of a model that must leave INT8 for its answers to keep a `budget`.

    Takes `images`, `count`, `eval`, `labels`, `backends` (one), `inputs`, `weights`, `trust`,
    `fresh`, `settings`, `config`. The mix, its plan and all trials lie in the folder `output`;
    where no mix keeps the budget, `mix.outcome` of what is returned is `none`.
    """
    config = config_of(model, options, SearchOptions)
    shelf = store.default(fresh=options.get("fresh", False))
    return mixing.find_mix(
        config, mixing.Job(Path(output), options.get("trust", False)), shelf, tell
    )


def open_run(folder: Place) -> Run:
    """Return a run that `build` or `qconvert build` made, from its folder."""
    return finished(Path(folder).absolute())


def open_engine(path: Place) -> OpenEngine:
    """Load an engine, `RUN/engines/NAME`, or an ONNX file, which runs on the CPU."""
    return opened.open_engine(Path(path))


def _of_target(target: targets.Target, options: Mapping[str, object], known: type) -> Config:
    """Return the settings for engines that are there: those of their run, and the arguments."""
    own = target.run.settings() if target.run is not None else None
    return load(options, known, {}, own)


def _path(given: Place | None) -> Path | None:
    return None if given is None else Path(given)


def _paths(given: Place | Sequence[Place]) -> list[Path]:
    return [Path(given)] if isinstance(given, str | os.PathLike) else [Path(each) for each in given]
