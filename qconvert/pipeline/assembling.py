"""Everything that a run found out, put into one report."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from qconvert import __version__, config_file, onnx_io
from qconvert.backends.base import Availability, Coverage
from qconvert.calibrate.calibration import Calibration
from qconvert.config import Config, Gate
from qconvert.measure.accuracy import Accuracy
from qconvert.measure.machine import machine
from qconvert.measure.memory import Peak
from qconvert.measure.mix import Mix
from qconvert.pipeline.analysing import Analysis
from qconvert.pipeline.engines import Built, hash_of
from qconvert.pipeline.graphs import Graph
from qconvert.pipeline.run_folder import ENGINES, RunFolder
from qconvert.pipeline.scoring import BASELINE, BF16, Exam
from qconvert.pipeline.timing import Timed
from qconvert.pipeline.variants import Variant
from qconvert.report.conclude import conclude
from qconvert.report.evidence import Evidence
from qconvert.report.model import Covered, EngineInfo, Images, Memory, Report, Unquantized
from qconvert.report.model import Variant as Row

NOT_RUN = "not run: only planned"


@dataclass(frozen=True)
class Findings:
    """What the steps of a run found out, by the names of the variants.

    `unscored` says why no answers were compared, where none were.
    """

    graphs: Mapping[Variant, Graph]
    available: Mapping[str, Availability]
    built: Mapping[str, Built] = field(default_factory=dict)
    timed: Timed = field(default_factory=dict)
    scores: Mapping[str, Accuracy] = field(default_factory=dict)
    coverage: Mapping[str, Coverage] = field(default_factory=dict)
    memory: Mapping[str, Peak] = field(default_factory=dict)
    analysis: Analysis = field(default_factory=Analysis)
    evidence: Evidence = field(default_factory=Evidence)
    seconds: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    unscored: str = ""


@dataclass(frozen=True)
class About:
    """What the report is about, beside its figures."""

    config: Config
    run: RunFolder
    command: str
    preprocess: Mapping[str, object]
    calibration: Calibration | None = None
    evaluation: Exam | None = None
    mixes: Mapping[str, Mix] = field(default_factory=dict)


def assemble(about: About, found: Findings, limits: Gate) -> Report:
    """Return the report of a run, gates judged and the verdict spoken."""
    settings = config_file.plain(about.config)
    calibrated = _calibrated(about)
    report = Report(
        tool=f"qconvert {__version__}",
        created=now(),
        model=str(about.config.model),
        command=about.command,
        config=settings,
        machine=machine(),
        baseline=found.scores.get(BASELINE),
        baseline_bytes=sum(file.stat().st_size for file in onnx_io.files(about.run.model)),
        variants=tuple(_row(each, graph, found) for each, graph in found.graphs.items()),
        seconds=dict(found.seconds),
        heard=found.notes,
        preprocess=dict(about.preprocess),
        calibration=calibrated,
        evaluation=evaluated(about.evaluation, found.scores, about.config, about.preprocess),
        shared_images=shared(about.calibration, about.evaluation),
        mixes=dict(about.mixes),
        evidence=found.evidence,
    )
    return conclude(report, limits)


def _row(variant: Variant, graph: Graph, found: Findings) -> Row:
    name = variant.name
    built, covered, peak = (
        found.built.get(name), found.coverage.get(name), found.memory.get(name)
    )  # fmt: skip
    plan = graph.plan
    return Row(
        name=name,
        backend=variant.backend,
        precision=variant.precision,
        engine=_engine(built) if built is not None else None,
        latency=found.timed.get(name, ()),
        accuracy=found.scores.get(name),
        memory=Memory(peak.bytes) if peak is not None and peak.bytes is not None else None,
        by_provider=dict(covered.by_provider) if covered is not None else {},
        by_precision=_known(covered),
        quantized=plan.quantized if plan is not None else 0,
        candidates=len(plan.layers) if plan is not None else 0,
        left=_left(graph),
        unmeasured=dict(_unmeasured(variant, found)),
        notes=(*graph.notes, *(built.engine.notes if built is not None else ())),
        layers=found.analysis.layers.get(name, ()),
        operators=_operators(graph),
    )


def _engine(built: Built) -> EngineInfo:
    engine = built.engine
    return EngineInfo(
        path=f"{ENGINES}/{engine.folder.name}",
        files=engine.files,
        bytes=engine.bytes,
        sha256=hash_of(engine),
        build_seconds=built.seconds,
        stored=built.stored,
        made_with=dict(engine.made_with),
    )


def _left(graph: Graph) -> tuple[Unquantized, ...]:
    if graph.plan is None:
        return ()
    layers = graph.plan.layers.items()
    return tuple(Unquantized(node, each.op, each.left) for node, each in layers if each.left)


def _operators(graph: Graph) -> tuple[Covered, ...]:
    layers = graph.plan.layers.values() if graph.plan is not None else ()
    whole = Counter(each.op for each in layers)
    done = Counter(each.op for each in layers if not each.left)
    return tuple(Covered(op, nodes, done[op]) for op, nodes in whole.most_common())


def _unmeasured(variant: Variant, found: Findings) -> dict[str, str]:
    """Say of each empty field why it is empty."""
    name, said = variant.name, found.available[variant.backend]
    idle = said.reason if name in found.built else NOT_RUN
    reasons: dict[str, str] = {}
    if name not in found.built:
        reasons["engine"] = NOT_RUN if said.builds else said.reason
    if name not in found.timed:
        reasons["latency"] = reasons["by_provider"] = idle
    if name not in found.scores:
        simulated = variant.precision == "bf16" and not said.runs
        reasons["accuracy"] = found.unscored or (BF16 if simulated else idle)
    covered = found.coverage.get(name)
    if covered is None or covered.by_precision is None:
        reasons["by_precision"] = covered.unknown if covered is not None else idle
    peak = found.memory.get(name)
    if peak is None or peak.bytes is None:
        reasons["memory"] = peak.reason if peak is not None else "measured for CPU engines only"
    if name in found.analysis.unknown:
        reasons["layers"] = found.analysis.unknown[name]
    return reasons


def _known(covered: Coverage | None) -> dict[str, int] | None:
    found = covered.by_precision if covered is not None else None
    return dict(found) if found is not None else None


def _calibrated(about: About) -> Images | None:
    seen, path = about.calibration, about.config.calibration.images
    if seen is None:
        return None
    return Images(str(path or about.run.calibration), int(seen.done.size), seen.origin.fingerprint)


def now() -> str:
    """Return the time of a report."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def evaluated(
    exam: Exam | None,
    scores: Mapping[str, Accuracy],
    config: Config,
    usual: Mapping[str, object],
) -> Images | None:
    """Return what answers were compared on; the hash covers labels and preprocessing too."""
    if exam is None:
        return None
    count = scores[BASELINE].images if BASELINE in scores else len(exam.images.names)
    path, own = str(config.evaluate.images or exam.images.root), dict(exam.preprocessing)
    return Images(path, count, exam.digest(), {} if own == usual else own)


def shared(seen: Calibration | None, exam: Exam | None) -> int:
    """Return how many images both calibration and evaluation saw, by their content."""
    if seen is None or exam is None:
        return 0
    known = {seen.origin.images[int(at)].sha256 for at in seen.done}
    return sum(entry.sha256 in known for entry in exam.images.listing().entries)
