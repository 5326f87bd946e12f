"""What `bench`, `evaluate` and `report` are pointed at: a run, engines of runs, or ONNX files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import onnx_ir as ir

from qconvert import __version__, backends, onnx_io
from qconvert.backends import installed
from qconvert.backends.base import INTEGER, Availability, Engine, Precision
from qconvert.errors import UsageError
from qconvert.feeds import TensorSpec
from qconvert.graph.patterns import is_quantized
from qconvert.measure.machine import machine
from qconvert.pipeline import engines as engine_files
from qconvert.pipeline.engines import ENGINE
from qconvert.pipeline.rehearsing import once, rehearse_engines
from qconvert.pipeline.run_folder import (
    CARD,
    ENGINES,
    HTML,
    LAYERS,
    MARKDOWN,
    REPORT,
    SETTINGS,
    RunFolder,
    put_text,
    require_own,
)
from qconvert.report import as_json
from qconvert.report.card import card
from qconvert.report.html import html
from qconvert.report.layers_csv import layers_csv
from qconvert.report.markdown import markdown
from qconvert.report.model import EngineInfo, Report, Variant


@dataclass(frozen=True)
class Target:
    """Engines by name, and the run they all belong to, if it is one."""

    engines: Mapping[str, Engine]
    run: RunFolder | None

    @property
    def available(self) -> dict[str, Availability]:
        """What each backend of the engines says of this machine."""
        here = installed.look()
        names = dict.fromkeys(engine.backend for engine in self.engines.values())
        return {name: backends.probe(name, here) for name in names}

    @property
    def reference(self) -> Path:
        """The model that answers are held against: the float model of a run, else the first.

        A model of integers is no such thing, and refused.
        """
        if self.run is not None:
            return self.run.model
        name, first = next(iter(self.engines.items()))
        if first.precision in INTEGER:
            floats = [n for n, each in self.engines.items() if each.precision not in INTEGER]
            raise UsageError(
                f"`{name}` is quantized, and answers are held against a float model",
                hint=f"name that first: `{(floats or ['MODEL.onnx'])[0]} {name}`",
            )
        return self.model

    @property
    def model(self) -> Path:
        """The float model of a run, else the first file, whatever it is."""
        if self.run is not None:
            return self.run.model
        first = next(iter(self.engines.values()))
        return first.folder / first.graph


def resolve(paths: Sequence[Path]) -> Target:
    """Find the engines that paths name."""
    if not paths:
        raise UsageError("nothing is named", hint="name a run, engines, or ONNX files")
    if len(paths) == 1 and (paths[0] / SETTINGS).is_file():
        run = RunFolder(paths[0])
        require_own(run.root)
        found = {name: engine_files.read(run.engine(name)).engine for name in run.engines()}
        if not found:
            raise UsageError(
                f"`{paths[0]}` has no engines yet",
                hint=f"`qconvert build --from {paths[0]}` builds them",
            )
        rehearse_engines(found.values())
        if run.model.is_file():
            once(run.model, run.model)
        return Target(found, run)
    engines: dict[str, Engine] = {}
    for path in paths:
        engine = _engine(path)
        name = path.name if path.name not in engines else str(path)
        engines[name] = engine
    rehearse_engines(engines.values())
    return Target(engines, None)


def require_same_inputs(graphs: Mapping[str, Path]) -> None:
    """Refuse graphs that do not take the same images: their answers compare with nothing."""
    taken = {name: onnx_io.inputs(onnx_io.load(path)) for name, path in graphs.items()}
    first, specs = next(iter(taken.items()))
    for name, others in taken.items():
        if len(others) != len(specs) or not all(map(_alike, others, specs)):
            ours, theirs = (", ".join(f"`{each}`" for each in some) for some in (others, specs))
            raise UsageError(
                f"`{name}` takes {ours}, and `{first}` takes {theirs}",
                hint="compare models of the same inputs, made from one another",
            )


def _alike(ours: TensorSpec, theirs: TensorSpec) -> bool:
    """Whether the same image fits both; batches may differ, and an open size fits any."""
    sizes = zip(ours.shape[1:], theirs.shape[1:], strict=False)
    same = all(a == b for a, b in sizes if isinstance(a, int) and isinstance(b, int))
    return ours.name == theirs.name and len(ours.shape) == len(theirs.shape) and same


def report_of(target: Target) -> Report:
    """Return the report of a run as it is, or one of loose engines in which nothing is measured."""
    if target.run is not None:
        file = target.run.root / REPORT
        if not file.is_file():
            raise UsageError(
                f"`{target.run.root}` has no report yet: it was not built to the end",
                hint=f"`qconvert build --from {target.run.root}` goes on",
            )
        return _with_all(as_json.load(file), target)
    return Report(
        tool=f"qconvert {__version__}",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        model=str(target.model),
        command="",
        config={},
        machine=machine(),
        baseline=None,
        baseline_bytes=sum(each.stat().st_size for each in onnx_io.files(target.model)),
        variants=tuple(
            Variant(name, each.backend, each.precision, _info(each))
            for name, each in target.engines.items()
        ),
    )


def _with_all(report: Report, target: Target) -> Report:
    """Return the report with a row for every engine that the run has, and for no other."""
    rows = {each.name: each for each in report.variants if each.engine is not None}
    found = []
    for name, each in target.engines.items():
        info = replace(_info(each), path=f"{ENGINES}/{each.folder.name}")
        known = rows.get(name)
        # A build that was stopped may have put another engine there.
        same = known is not None and known.engine and known.engine.sha256 == info.sha256
        found.append(known if known and same else Variant(name, each.backend, each.precision, info))
    return replace(report, variants=tuple(found))


def keep(report: Report, target: Target) -> Report:
    """Write a report into the run that it is about, in every form; each file appears whole."""
    if target.run is not None:
        put_all(report, target.run)
    return report


def put_all(report: Report, run: RunFolder) -> None:
    """Write a report into a run's folder in every form."""
    put_text(run.root / REPORT, as_json.dumps(report))
    put_text(run.root / MARKDOWN, markdown(report))
    put_text(run.root / HTML, html(report, pictures(report, run.root)))
    known = {each.name: each.layers for each in report.variants if each.layers}
    if known:
        put_text(run.root / LAYERS, layers_csv(known))
    if report.best:
        put_text(run.root / CARD, card(report))
    else:
        (run.root / CARD).unlink(missing_ok=True)


def pictures(report: Report, folder: Path) -> dict[str, bytes]:
    """Return the pictures that a report names, as far as they lie in its folder."""
    shown = report.evidence
    names = {each.picture for each in shown.feature_maps}
    names |= {each.picture for each in shown.thumbnails}
    inside = (name for name in names if (folder / name).resolve().is_relative_to(folder.resolve()))
    return {name: (folder / name).read_bytes() for name in inside if (folder / name).is_file()}


def _engine(path: Path) -> Engine:
    if (path / ENGINE).is_file():
        return engine_files.read(path).engine
    if path.suffix == ".onnx" and path.is_file():
        return Engine(
            backend="cpu",
            precision=_precision(path),
            folder=path.parent,
            graph=path.name,
            files=(path.name, *_data_of(path)),
            made_with={},
        )
    if (path / SETTINGS).is_file():
        raise UsageError(
            f"`{path}` is a run, and a run is named alone",
            hint=f"beside others name its engines: `{path / ENGINES / 'NAME'}`",
        )
    raise UsageError(
        f"`{path}` is no run, no engine and no ONNX file",
        hint="name `RUN`, `RUN/engines/NAME` or `MODEL.onnx`",
    )


def _data_of(path: Path) -> list[str]:
    """Return the names of the files in which a model keeps its weights."""
    stored = (each for each in onnx_io.tensors(onnx_io.load(path)))
    return sorted({str(each.location) for each in stored if isinstance(each, ir.ExternalTensor)})


def _precision(path: Path) -> Precision:
    """Return the least precision that a graph holds."""
    model = onnx_io.load(path)
    if is_quantized(model):
        return "int8"
    kinds = {str(tensor.dtype) for tensor in onnx_io.tensors(model)}
    return "fp16" if "FLOAT16" in kinds else "bf16" if "BFLOAT16" in kinds else "fp32"


def _info(engine: Engine) -> EngineInfo:
    return EngineInfo(
        path=str(engine.folder),
        files=engine.files,
        bytes=engine.bytes,
        sha256=engine_files.hash_of(engine),
        build_seconds=0.0,
        stored=True,
        made_with=dict(engine.made_with),
    )
