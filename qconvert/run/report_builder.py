"""Build the report of a run from the results of its steps."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from qconvert import __version__
from qconvert.backends.base import Availability, Coverage, EngineVariant
from qconvert.calibrate.calibration import Calibration
from qconvert.core import config_file
from qconvert.core.config import GateConfig
from qconvert.measure.accuracy import BASELINE, BF16_UNSCORED, Accuracy
from qconvert.measure.evidence import Evidence
from qconvert.measure.latency import EngineLatencies
from qconvert.measure.machine import describe_machine
from qconvert.measure.memory import PeakMemory
from qconvert.measure.mixed_result import MixedResult
from qconvert.report.model import (
    ImageSetInfo,
    MemoryUse,
    OperatorCoverage,
    Report,
    UnquantizedNode,
    VariantResult,
)
from qconvert.report.verdict import conclude
from qconvert.run.bench import Footprint
from qconvert.run.context import EvaluationSet, RunContext
from qconvert.run.explain_errors import ErrorAnalysis
from qconvert.run.report_files import engine_info, model_bytes, timestamp
from qconvert.run.run_folder import ENGINES
from qconvert.run.targets import BuiltEngine
from qconvert.run.variants import VariantGraph

ONLY_PLANNED = "not run: only planned"


@dataclass(frozen=True)
class RunResults:
    """The results of the steps, by variant, by its name, or by backend (`mixes`).

    `not_scored_reason` says why no accuracy was measured, where none was.
    """

    graphs: Mapping[EngineVariant, VariantGraph]
    availability: Mapping[str, Availability]
    calibration: Calibration | None = None
    evaluation: EvaluationSet | None = None
    mixes: Mapping[str, MixedResult] = field(default_factory=dict)
    built: Mapping[str, BuiltEngine] = field(default_factory=dict)
    latencies: EngineLatencies = field(default_factory=dict)
    scores: Mapping[str, Accuracy] = field(default_factory=dict)
    footprints: Mapping[str, Footprint] = field(default_factory=dict)
    analysis: ErrorAnalysis = field(default_factory=ErrorAnalysis)
    evidence: Evidence = field(default_factory=Evidence)
    seconds: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    not_scored_reason: str = ""


def build_report(
    results: RunResults,
    context: RunContext,
    command: str,
    preprocess: Mapping[str, object],
    limits: GateConfig,
) -> Report:
    """Return the report of a run with its gates evaluated and its verdict."""
    config, folder, calibration = context.config, context.folder, None
    if results.calibration is not None:
        calibration = ImageSetInfo(
            path=str(config.calibration.images or folder.calibration),
            count=int(results.calibration.image_indices.size),
            sha256=results.calibration.origin.fingerprint,
        )
    evaluation = evaluation_info(
        results.evaluation, results.scores, config.evaluate.images, preprocess
    )
    report = Report(
        tool=f"qconvert {__version__}",
        created=timestamp(),
        model=str(config.model),
        command=command,
        config=config_file.as_dict(config),
        machine=describe_machine(),
        baseline=results.scores.get(BASELINE),
        baseline_bytes=model_bytes(folder.model),
        variants=tuple(_variant_result(variant, results) for variant in results.graphs),
        seconds=dict(results.seconds),
        run_notes=results.notes,
        preprocess=dict(preprocess),
        calibration=calibration,
        evaluation=evaluation,
        shared_images=shared_image_count(results.calibration, results.evaluation),
        mixes=dict(results.mixes),
        evidence=results.evidence,
    )
    return conclude(report, limits)


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


def _variant_result(variant: EngineVariant, results: RunResults) -> VariantResult:
    """Return the row of an engine, with the reason for every empty field."""
    name, graph, availability = variant.name, results.graphs[variant], results.availability
    backend, built = availability[variant.backend], results.built.get(name)
    not_run = ONLY_PLANNED if built is None else backend.reason
    engine, notes, reasons = None, graph.notes, {}
    if built is None:
        reasons["engine"] = ONLY_PLANNED if backend.builds else backend.reason
    else:
        path = f"{ENGINES}/{built.engine.folder.name}"
        engine = engine_info(built.engine, path, built.seconds, cached=built.stored)
        notes = (*notes, *built.engine.notes)
    if name not in results.latencies:
        reasons["latency"] = reasons["by_provider"] = not_run
    if name not in results.scores:
        unscored = variant.precision == "bf16" and not backend.runs
        reasons["accuracy"] = results.not_scored_reason or (BF16_UNSCORED if unscored else not_run)
    # An engine that did not run has no measurements.
    coverage, peak = (
        Coverage({}, None, not_run),
        PeakMemory(None, reason="measured for CPU engines only"),
    )
    if footprint := results.footprints.get(name):
        coverage, peak = footprint.coverage, footprint.peak
    if coverage.by_precision is None:
        reasons["by_precision"] = coverage.unknown
    if peak.bytes is None:
        reasons["memory"] = peak.reason
    if name in results.analysis.not_analyzed:
        reasons["layers"] = results.analysis.not_analyzed[name]
    layers = graph.plan.layers if graph.plan is not None else {}
    nodes = Counter(layer.op for layer in layers.values())
    quantized = Counter(layer.op for layer in layers.values() if not layer.left)
    return VariantResult(
        name=name,
        backend=variant.backend,
        precision=variant.precision,
        engine=engine,
        latency=results.latencies.get(name, ()),
        accuracy=results.scores.get(name),
        memory=MemoryUse(peak.bytes) if peak.bytes is not None else None,
        by_provider=dict(coverage.by_provider),
        by_precision=dict(coverage.by_precision) if coverage.by_precision is not None else None,
        quantized=quantized.total(),
        candidates=len(layers),
        unquantized=tuple(
            UnquantizedNode(node, layer.op, layer.left)
            for node, layer in layers.items()
            if layer.left
        ),
        unmeasured=reasons,
        notes=notes,
        layers=results.analysis.layers.get(name, ()),
        operators=tuple(
            OperatorCoverage(op, count, quantized[op]) for op, count in nodes.most_common()
        ),
    )
