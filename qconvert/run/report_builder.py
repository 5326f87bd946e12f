"""Build the report of a run from the results of its steps."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from qconvert import __version__
from qconvert.backends.base import Availability, Coverage, Engine, EngineVariant
from qconvert.calibrate.calibration import Calibration
from qconvert.core import config_file, onnx_io
from qconvert.core.config import GateConfig
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
    VariantResult,
)
from qconvert.report.verdict import conclude
from qconvert.run.built_engines import BuiltEngine, engine_sha256
from qconvert.run.context import RunContext
from qconvert.run.explain_errors import ErrorAnalysis
from qconvert.run.job_images import EvaluationSet
from qconvert.run.run_folder import ENGINES
from qconvert.run.variant_graphs import VariantGraph

ONLY_PLANNED = "not run: only planned"
CPU_MEMORY_ONLY = "measured for CPU engines only"


@dataclass(frozen=True)
class RunResults:
    """The results of the steps, by variant or by its name.

    `not_scored_reason` says why no accuracy was measured, where none was.
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
    """What the report is about."""

    context: RunContext
    command: str
    preprocess: Mapping[str, object]
    calibration: Calibration | None = None
    evaluation: EvaluationSet | None = None
    mixes: Mapping[str, MixedResult] = field(default_factory=dict)


def build_report(info: RunInfo, results: RunResults, limits: GateConfig) -> Report:
    """Return the report of a run with its gates evaluated and its verdict."""
    config, folder, calibration = info.context.config, info.context.folder, None
    if info.calibration is not None:
        calibration = ImageSetInfo(
            path=str(config.calibration.images or folder.calibration),
            count=int(info.calibration.image_indices.size),
            sha256=info.calibration.origin.fingerprint,
        )
    report = Report(
        tool=f"qconvert {__version__}",
        created=timestamp(),
        model=str(config.model),
        command=info.command,
        config=config_file.as_dict(config),
        machine=describe_machine(),
        baseline=results.scores.get(BASELINE),
        baseline_bytes=sum(file.stat().st_size for file in onnx_io.model_files(folder.model)),
        variants=tuple(
            _variant_result(variant, graph, results) for variant, graph in results.graphs.items()
        ),
        seconds=dict(results.seconds),
        run_notes=results.notes,
        preprocess=dict(info.preprocess),
        calibration=calibration,
        evaluation=evaluation_info(
            info.evaluation, results.scores, config.evaluate.images, info.preprocess
        ),
        shared_images=shared_image_count(info.calibration, info.evaluation),
        mixes=dict(info.mixes),
        evidence=results.evidence,
    )
    return conclude(report, limits)


def engine_info(engine: Engine, path: str, seconds: float = 0.0, *, cached: bool) -> EngineInfo:
    """Return what a report says of an engine; `path` is relative to the run."""
    return EngineInfo(
        path=path,
        files=engine.files,
        bytes=engine.bytes,
        sha256=engine_sha256(engine),
        build_seconds=seconds,
        stored=cached,
        made_with=dict(engine.made_with),
    )


def timestamp() -> str:
    """Return the time of a report."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def evaluation_info(
    evaluation_set: EvaluationSet | None,
    scores: Mapping[str, Accuracy],
    path: Path | None,
    preprocess: Mapping[str, object],
) -> ImageSetInfo | None:
    """Return what accuracy was measured on; the hash covers labels and preprocessing too."""
    if evaluation_set is None:
        return None
    images, own = evaluation_set.images, dict(evaluation_set.preprocessing)
    return ImageSetInfo(
        path=str(path or images.root),
        count=scores[BASELINE].images if BASELINE in scores else len(images.names),
        sha256=evaluation_set.digest(),
        prepared={} if own == preprocess else own,
    )


def shared_image_count(
    calibration: Calibration | None, evaluation_set: EvaluationSet | None
) -> int:
    """Return how many evaluation images were calibration images too, by their content."""
    if calibration is None or evaluation_set is None:
        return 0
    origin = calibration.origin
    hashes = {origin.images[int(index)].sha256 for index in calibration.image_indices}
    return sum(entry.sha256 in hashes for entry in evaluation_set.images.manifest().entries)


def _variant_result(
    variant: EngineVariant, graph: VariantGraph, results: RunResults
) -> VariantResult:
    name = variant.name
    built, coverage = results.built.get(name), results.coverage.get(name)
    peak = results.memory.get(name)
    layers = graph.plan.layers if graph.plan is not None else {}
    nodes = Counter(layer.op for layer in layers.values())
    quantized = Counter(layer.op for layer in layers.values() if not layer.left)
    return VariantResult(
        name=name,
        backend=variant.backend,
        precision=variant.precision,
        engine=None
        if built is None
        else engine_info(
            built.engine,
            f"{ENGINES}/{built.engine.folder.name}",
            built.seconds,
            cached=built.stored,
        ),
        latency=results.latencies.get(name, ()),
        accuracy=results.scores.get(name),
        memory=MemoryUse(peak.bytes) if peak is not None and peak.bytes is not None else None,
        by_provider=dict(coverage.by_provider) if coverage is not None else {},
        by_precision=dict(coverage.by_precision)
        if coverage is not None and coverage.by_precision is not None
        else None,
        quantized=quantized.total(),
        candidates=len(layers),
        unquantized=tuple(
            UnquantizedNode(node, layer.op, layer.left)
            for node, layer in layers.items()
            if layer.left
        ),
        unmeasured=_unmeasured_reasons(variant, results),
        notes=(*graph.notes, *(built.engine.notes if built is not None else ())),
        layers=results.analysis.layers.get(name, ()),
        operators=tuple(
            OperatorCoverage(op, count, quantized[op]) for op, count in nodes.most_common()
        ),
    )


def _unmeasured_reasons(variant: EngineVariant, results: RunResults) -> dict[str, str]:
    """Return the reason for every empty field."""
    name, availability = variant.name, results.availability[variant.backend]
    not_run = availability.reason if name in results.built else ONLY_PLANNED
    reasons: dict[str, str] = {}
    if name not in results.built:
        reasons["engine"] = ONLY_PLANNED if availability.builds else availability.reason
    if name not in results.latencies:
        reasons["latency"] = reasons["by_provider"] = not_run
    if name not in results.scores:
        unscored = variant.precision == "bf16" and not availability.runs
        reasons["accuracy"] = results.not_scored_reason or (BF16_UNSCORED if unscored else not_run)
    coverage = results.coverage.get(name)
    if coverage is None or coverage.by_precision is None:
        reasons["by_precision"] = not_run if coverage is None else coverage.unknown
    peak = results.memory.get(name)
    if peak is None or peak.bytes is None:
        reasons["memory"] = CPU_MEMORY_ONLY if peak is None else peak.reason
    if name in results.analysis.not_analyzed:
        reasons["layers"] = results.analysis.not_analyzed[name]
    return reasons
