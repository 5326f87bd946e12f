"""Everything that a run found out, put into one report."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from qconvert import __version__
from qconvert.backends.base import Availability, Coverage, EngineVariant
from qconvert.calibrate.calibration import Calibration
from qconvert.core import config_file, onnx_io
from qconvert.core.config import Config, GateConfig
from qconvert.measure.accuracy import BASELINE, BF16_UNSCORED, Accuracy
from qconvert.measure.evidence import Evidence
from qconvert.measure.latency import EngineLatencies
from qconvert.measure.machine import describe_machine
from qconvert.measure.memory import PeakMemory
from qconvert.measure.mixed_result import MixedResult
from qconvert.report.model import (
    EngineInfo,
    ImageSetInfo,
    MemoryUse,
    OperatorCoverage,
    Report,
    UnquantizedNode,
)
from qconvert.report.model import VariantResult as Row
from qconvert.report.verdict import conclude
from qconvert.run.built_engines import BuiltEngine, engine_sha256
from qconvert.run.explain_errors import ErrorAnalysis
from qconvert.run.job_images import EvaluationSet
from qconvert.run.run_folder import ENGINES, RunFolder
from qconvert.run.variant_graphs import VariantGraph

ONLY_PLANNED = "not run: only planned"


@dataclass(frozen=True)
class RunResults:
    """What the steps of a run found out, by the names of the variants.

    `unscored` says why no answers were compared, where none were.
    """

    graphs: Mapping[EngineVariant, VariantGraph]
    availability: Mapping[str, Availability]
    built: Mapping[str, BuiltEngine] = field(default_factory=dict)
    latencies: EngineLatencies = field(default_factory=dict)
    scores: Mapping[str, Accuracy] = field(default_factory=dict)
    coverage: Mapping[str, Coverage] = field(default_factory=dict)
    memory: Mapping[str, PeakMemory] = field(default_factory=dict)
    analysis: ErrorAnalysis = field(default_factory=ErrorAnalysis)
    evidence: Evidence = field(default_factory=Evidence)
    seconds: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    not_scored_reason: str = ""


@dataclass(frozen=True)
class RunInfo:
    """What the report is about, beside its figures."""

    config: Config
    run: RunFolder
    command: str
    preprocess: Mapping[str, object]
    calibration: Calibration | None = None
    evaluation: EvaluationSet | None = None
    mixes: Mapping[str, MixedResult] = field(default_factory=dict)


def build_report(info: RunInfo, results: RunResults, limits: GateConfig) -> Report:
    """Return the report of a run, gates judged and the verdict spoken."""
    settings = config_file.as_dict(info.config)
    calibrated = _calibration_info(info)
    report = Report(
        tool=f"qconvert {__version__}",
        created=timestamp(),
        model=str(info.config.model),
        command=info.command,
        config=settings,
        machine=describe_machine(),
        baseline=results.scores.get(BASELINE),
        baseline_bytes=sum(file.stat().st_size for file in onnx_io.model_files(info.run.model)),
        variants=tuple(
            _variant_result(each, graph, results) for each, graph in results.graphs.items()
        ),
        seconds=dict(results.seconds),
        run_notes=results.notes,
        preprocess=dict(info.preprocess),
        calibration=calibrated,
        evaluation=evaluation_info(info.evaluation, results.scores, info.config, info.preprocess),
        shared_images=shared_image_count(info.calibration, info.evaluation),
        mixes=dict(info.mixes),
        evidence=results.evidence,
    )
    return conclude(report, limits)


def _variant_result(variant: EngineVariant, graph: VariantGraph, found: RunResults) -> Row:
    name = variant.name
    built, covered, peak = (
        found.built.get(name), found.coverage.get(name), found.memory.get(name)
    )  # fmt: skip
    plan = graph.plan
    return Row(
        name=name,
        backend=variant.backend,
        precision=variant.precision,
        engine=_engine_info(built) if built is not None else None,
        latency=found.latencies.get(name, ()),
        accuracy=found.scores.get(name),
        memory=MemoryUse(peak.bytes) if peak is not None and peak.bytes is not None else None,
        by_provider=dict(covered.by_provider) if covered is not None else {},
        by_precision=_by_precision(covered),
        quantized=plan.quantized if plan is not None else 0,
        candidates=len(plan.layers) if plan is not None else 0,
        unquantized=_unquantized_nodes(graph),
        unmeasured=dict(_unmeasured_reasons(variant, found)),
        notes=(*graph.notes, *(built.engine.notes if built is not None else ())),
        layers=found.analysis.layers.get(name, ()),
        operators=_operator_coverage(graph),
    )


def _engine_info(built: BuiltEngine) -> EngineInfo:
    engine = built.engine
    return EngineInfo(
        path=f"{ENGINES}/{engine.folder.name}",
        files=engine.files,
        bytes=engine.bytes,
        sha256=engine_sha256(engine),
        build_seconds=built.seconds,
        stored=built.stored,
        made_with=dict(engine.made_with),
    )


def _unquantized_nodes(graph: VariantGraph) -> tuple[UnquantizedNode, ...]:
    if graph.plan is None:
        return ()
    layers = graph.plan.layers.items()
    return tuple(UnquantizedNode(node, each.op, each.left) for node, each in layers if each.left)


def _operator_coverage(graph: VariantGraph) -> tuple[OperatorCoverage, ...]:
    layers = graph.plan.layers.values() if graph.plan is not None else ()
    whole = Counter(each.op for each in layers)
    done = Counter(each.op for each in layers if not each.left)
    return tuple(OperatorCoverage(op, nodes, done[op]) for op, nodes in whole.most_common())


def _unmeasured_reasons(variant: EngineVariant, found: RunResults) -> dict[str, str]:
    """Say of each empty field why it is empty."""
    name, said = variant.name, found.availability[variant.backend]
    idle = said.reason if name in found.built else ONLY_PLANNED
    reasons: dict[str, str] = {}
    if name not in found.built:
        reasons["engine"] = ONLY_PLANNED if said.builds else said.reason
    if name not in found.latencies:
        reasons["latency"] = reasons["by_provider"] = idle
    if name not in found.scores:
        simulated = variant.precision == "bf16" and not said.runs
        reasons["accuracy"] = found.not_scored_reason or (BF16_UNSCORED if simulated else idle)
    covered = found.coverage.get(name)
    if covered is None or covered.by_precision is None:
        reasons["by_precision"] = covered.unknown if covered is not None else idle
    peak = found.memory.get(name)
    if peak is None or peak.bytes is None:
        reasons["memory"] = peak.reason if peak is not None else "measured for CPU engines only"
    if name in found.analysis.not_analyzed:
        reasons["layers"] = found.analysis.not_analyzed[name]
    return reasons


def _by_precision(covered: Coverage | None) -> dict[str, int] | None:
    found = covered.by_precision if covered is not None else None
    return dict(found) if found is not None else None


def _calibration_info(about: RunInfo) -> ImageSetInfo | None:
    seen, path = about.calibration, about.config.calibration.images
    if seen is None:
        return None
    return ImageSetInfo(
        str(path or about.run.calibration), int(seen.image_indices.size), seen.origin.fingerprint
    )


def timestamp() -> str:
    """Return the time of a report."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def evaluation_info(
    evaluation_set: EvaluationSet | None,
    scores: Mapping[str, Accuracy],
    config: Config,
    preprocess: Mapping[str, object],
) -> ImageSetInfo | None:
    """Return what answers were compared on; the hash covers labels and preprocessing too."""
    if evaluation_set is None:
        return None
    count = scores[BASELINE].images if BASELINE in scores else len(evaluation_set.images.names)
    path, own = (
        str(config.evaluate.images or evaluation_set.images.root),
        dict(evaluation_set.preprocessing),
    )
    return ImageSetInfo(path, count, evaluation_set.digest(), {} if own == preprocess else own)


def shared_image_count(
    calibration: Calibration | None, evaluation_set: EvaluationSet | None
) -> int:
    """Return how many images both calibration and evaluation saw, by their content."""
    if calibration is None or evaluation_set is None:
        return 0
    known = {calibration.origin.images[int(at)].sha256 for at in calibration.image_indices}
    return sum(entry.sha256 in known for entry in evaluation_set.images.manifest().entries)
