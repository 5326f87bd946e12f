"""The report of a run: built from its results, merged with the previous one, written as files."""

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from qconvert import __version__
from qconvert.backends.base import Coverage, Engine, EngineVariant
from qconvert.calibrate.calibration import Calibration
from qconvert.core import atomic, config_file, onnx_io
from qconvert.core.config import GateConfig
from qconvert.core.errors import QConvertError, UsageError
from qconvert.core.run_files import ENGINES
from qconvert.images.listing import Images
from qconvert.measure.accuracy import BASELINE, BF16_UNSCORED, Accuracy
from qconvert.measure.chain import ChainTimes
from qconvert.measure.evidence import Evidence
from qconvert.measure.latency import EngineLatencies
from qconvert.measure.layer_errors import LayerError
from qconvert.measure.machine import describe_machine
from qconvert.measure.memory import Footprint, PeakMemory
from qconvert.measure.mixed_result import MixedResult
from qconvert.report import html, json_file, markdown, metrics, tables
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
from qconvert.run.context import RunContext
from qconvert.run.run_folder import CARD, HTML, LAYERS, MARKDOWN, REPORT, RunFolder
from qconvert.run.targets import Target
from qconvert.run.variants import ChosenVariants, VariantGraph

ONLY_PLANNED = "not run: only planned"


@dataclass(frozen=True)
class RunResults:
    """The results of the steps, by variant, by its name, or by backend (`mixes`)."""

    chosen: ChosenVariants
    graphs: Mapping[EngineVariant, VariantGraph]
    calibration: Calibration | None = None
    evaluation: Images | None = None
    mixes: Mapping[str, MixedResult] = field(default_factory=dict)
    built: Mapping[str, tuple[Engine, bool]] = field(default_factory=dict)  # True: from the cache
    latencies: EngineLatencies = field(default_factory=dict)
    scores: Mapping[str, Accuracy] = field(default_factory=dict)
    footprints: Mapping[str, Footprint] = field(default_factory=dict)
    chain: ChainTimes | None = None
    layers: Mapping[str, tuple[LayerError, ...] | str] = field(default_factory=dict)  # or why not
    evidence: Evidence = field(default_factory=Evidence)
    seconds: Mapping[str, float] = field(default_factory=dict)
    not_scored_reason: str = ""


def build_report(
    results: RunResults, context: RunContext, command: str, preprocess: Mapping[str, object]
) -> Report:
    """Return the report of a run, without gates and verdict."""
    config, folder, calibration = context.config, context.folder, None
    if results.calibration is not None:
        calibration = ImageSetInfo(
            path=str(config.calibration.images or folder.calibration),
            count=int(results.calibration.image_indices.size),
            sha256=results.calibration.origin.fingerprint,
        )
    report = Report(
        tool=f"qconvert {__version__}",
        created=timestamp(),
        model=str(config.model),
        command=command,
        config=config_file.as_dict(config),
        machine=describe_machine(),
        baseline=None,
        baseline_bytes=onnx_io.saved_bytes(folder.model),
        variants=tuple(_variant_result(variant, results) for variant in results.graphs),
        seconds=dict(results.seconds),
        run_notes=results.chosen.notes,
        preprocess=dict(preprocess),
        calibration=calibration,
        mixes=dict(results.mixes),
        evidence=results.evidence,
        chain=results.chain,
    )
    if results.evaluation is None:
        return report
    return with_evaluation(report, results.evaluation, results.scores, results.calibration)


def with_evaluation(
    report: Report, images: Images, scores: Mapping[str, Accuracy], calibration: Calibration | None
) -> Report:
    """Return the report with the images of the evaluation, and how many were calibrated on."""
    own, hashes = dict(images.preprocessing), set[str]()
    if calibration is not None:
        origin = calibration.origin
        hashes = {origin.images[int(index)].sha256 for index in calibration.image_indices}
    info = ImageSetInfo(
        path=str(images.source),
        count=scores[BASELINE].images if BASELINE in scores else len(images.names),
        # It covers labels and preprocessing too.
        sha256=images.digest(),
        prepared={} if own == report.preprocess else own,
    )
    return replace(
        report,
        baseline=scores.get(BASELINE),
        evaluation=info,
        shared_images=sum(entry.sha256 in hashes for entry in images.manifest()),
    )


def read_report(target: Target) -> Report:
    """Return the report of a run, or an empty one, with a row for each of its engines."""
    rows = []
    for name, engine in target.engines.items():
        path = f"{ENGINES}/{engine.folder.name}" if target.run else str(engine.folder)
        info = replace(_engine_info(engine, path), build_seconds=0.0)
        rows.append(VariantResult(name, engine.backend, engine.precision, info))
    if target.run is None:
        return Report(
            tool=f"qconvert {__version__}",
            created=timestamp(),
            model=str(target.model),
            command="",
            config={},
            machine=describe_machine(),
            baseline=None,
            baseline_bytes=onnx_io.saved_bytes(target.model),
            variants=tuple(rows),
        )
    file = target.run.root / REPORT
    if not file.is_file():
        raise UsageError(
            f"`{target.run.root}` has no report yet: its build was interrupted",
            hint=f"`qconvert build --from {target.run.root}` resumes it",
        )
    report = json_file.load(file)
    # An interrupted build may have put another engine there.
    previous = {(row.name, _engine_hash(row)): row for row in report.variants}
    variants = tuple(previous.get((row.name, _engine_hash(row)), row) for row in rows)
    return replace(report, variants=variants)


def _engine_info(engine: Engine, path: str, *, cached: bool = True) -> EngineInfo:
    """Return what a report says of an engine; `path` is relative to the run."""
    digest = hashlib.sha256()
    for name in engine.files:
        with (engine.folder / name).open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return EngineInfo(
        path=path,
        files=engine.files,
        bytes=engine.bytes,
        sha256=digest.hexdigest(),
        build_seconds=engine.build_seconds,
        stored=cached,
        made_with=dict(engine.made_with),
    )


def timestamp() -> str:
    """Return the time of a report."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def previous_report(run: RunFolder) -> Report | None:
    """Return the report that a run has, if it can be read."""
    try:
        return json_file.load(run.root / REPORT)
    except QConvertError:  # missing, of another version, or damaged: it is written anew
        return None


def merge_with_previous(new: Report, run: RunFolder) -> Report:
    """Return the new report with the engines that were not rebuilt, and what still compares."""
    previous = previous_report(run)
    if previous is None or previous.baseline_bytes != new.baseline_bytes:
        return new
    existing = {
        row.name: row
        for row in previous.variants
        if row.engine is not None and run.engine(row.name).is_dir()
    }
    # A variant that is only planned does not replace its engine.
    rebuilt = {row.name: row for row in new.variants if row.engine or row.name not in existing}
    # Without evaluation images in this run, the accuracy of unchanged engines still holds.
    reuse_accuracy = new.evaluation is None and previous.evaluation is not None
    new = replace(
        new,
        variants=tuple(rebuilt.values()),
        baseline=new.baseline or previous.baseline,
        evaluation=new.evaluation or previous.evaluation,
        shared_images=(previous if reuse_accuracy else new).shared_images,
    )
    timed_anew = any(row.latency for row in new.variants) or new.machine != previous.machine
    hashes = {report.evaluation and report.evaluation.sha256 for report in (previous, new)}
    others, unchanged = [], set[str]()
    for name, before in existing.items():
        row = before
        if name not in rebuilt:
            if row.latency and timed_anew:
                row = with_measurement(row, "latency", (), metrics.NOT_TIMED_TOGETHER)
            if row.accuracy is not None and len(hashes) > 1:
                reason = "its accuracy was measured on other images"
                row = with_measurement(row, "accuracy", None, reason)
            others.append(row)
            unchanged.add(name)
        elif _engine_hash(rebuilt[name]) == _engine_hash(before):
            notes = tuple(dict.fromkeys((*before.notes, *rebuilt[name].notes)))
            row = replace(rebuilt[name], notes=notes)
            if reuse_accuracy and before.accuracy is not None:
                row = with_measurement(row, "accuracy", before.accuracy)
            # The weights are still those of that training.
            if before.training is not None and not (row.training and row.training.kept):
                row = replace(row, training=before.training)
            if before.layers and not row.layers:
                row = with_measurement(row, "layers", before.layers)
            rebuilt[name] = row
            unchanged.add(name)
    evidence, earlier = new.evidence, previous.evidence
    if unchanged:
        earlier_thumbnails = earlier.thumbnails if len(hashes) == 1 else ()
        evidence = Evidence(
            ranges=evidence.ranges
            or tuple(row for row in earlier.ranges if row.variant in unchanged),
            weights=evidence.weights or earlier.weights,
            feature_maps=evidence.feature_maps or earlier.feature_maps,
            thumbnails=evidence.thumbnails or earlier_thumbnails,
            classes={**(earlier.classes or {}), **(evidence.classes or {})},
        )
    rows, mixes = (*others, *rebuilt.values()), {**previous.mixes, **new.mixes}
    return replace(new, variants=rows, mixes=mixes, evidence=evidence)


def with_measurement(row: VariantResult, field: str, value: Any, reason: str = "") -> VariantResult:
    """Return the row with a measurement, or with the reason why it is empty."""
    reasons = {**row.unmeasured, field: reason}
    if value:
        del reasons[field]
    return replace(row, unmeasured=reasons, **{field: value})


def judge_and_store(report: Report, limits: GateConfig, target: Target) -> Report:
    """Return the report with these limits; the run folder keeps its own."""
    if target.run is not None:
        write_report(conclude(report, target.run.settings().gate), target.run)
    return conclude(report, limits)


def write_report(report: Report, run: RunFolder) -> None:
    """Write a report into the folder of a run in every form; each file is written atomically."""
    atomic.write_text(run.root / REPORT, json_file.dumps(report))
    atomic.write_text(run.root / MARKDOWN, markdown.render_markdown(report))
    atomic.write_text(run.root / HTML, html.render_html(report, report_images(report, run.root)))
    if layers := {row.name: row.layers for row in report.variants if row.layers}:
        atomic.write_text(run.root / LAYERS, tables.layers_csv(layers))
    if report.best:
        atomic.write_text(run.root / CARD, markdown.render_card(report))
    else:
        (run.root / CARD).unlink(missing_ok=True)


def report_images(report: Report, folder: Path) -> dict[str, bytes]:
    """Return the image files that a report names, if they are inside its folder."""
    names = [row.picture for row in report.evidence.feature_maps]
    names += [row.picture for row in report.evidence.thumbnails]
    files = {name: (folder / name).resolve() for name in names}
    return {
        name: file.read_bytes()
        for name, file in files.items()
        if file.is_relative_to(folder.resolve()) and file.is_file()
    }


def _engine_hash(row: VariantResult) -> str:
    return row.engine.sha256 if row.engine is not None else ""


def _variant_result(variant: EngineVariant, results: RunResults) -> VariantResult:
    """Return the row of an engine, with the reason for every empty field."""
    name, graph = variant.name, results.graphs[variant]
    backend = results.chosen.available[variant.backend]
    latency, accuracy = results.latencies.get(name), results.scores.get(name)
    layer_errors = results.layers.get(name, ())
    engine, notes, not_run = None, graph.notes, ONLY_PLANNED
    if name in results.built:
        built, cached = results.built[name]
        engine = _engine_info(built, f"{ENGINES}/{built.folder.name}", cached=cached)
        notes, not_run = (*notes, *built.notes), backend.reason
    not_scored = BF16_UNSCORED if variant.precision == "bf16" and not backend.runs else not_run
    not_measured = PeakMemory(None, reason="measured for CPU engines only")
    footprint = results.footprints.get(name, Footprint(Coverage({}, None, not_run), not_measured))
    coverage, peak = footprint.coverage, footprint.peak
    reasons = {
        "engine": "" if engine else ONLY_PLANNED if backend.builds else backend.reason,
        "latency": "" if latency is not None else not_run,
        "by_provider": "" if latency is not None else not_run,
        "accuracy": "" if accuracy else results.not_scored_reason or not_scored,
        "by_precision": "" if coverage.by_precision is not None else coverage.unknown,
        "memory": "" if peak.bytes is not None else peak.reason,
        "layers": layer_errors if isinstance(layer_errors, str) else "",
    }
    layers = graph.plan.layers if graph.plan is not None else {}
    nodes = Counter(layer.op for layer in layers.values())
    quantized = Counter(layer.op for layer in layers.values() if not layer.left)
    return VariantResult(
        name=name,
        backend=variant.backend,
        precision=variant.precision,
        engine=engine,
        latency=latency or (),
        accuracy=accuracy,
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
        unmeasured={field: reason for field, reason in reasons.items() if reason},
        notes=notes,
        layers=layer_errors if not isinstance(layer_errors, str) else (),
        operators=tuple(
            OperatorCoverage(op, count, quantized[op]) for op, count in nodes.most_common()
        ),
        training=graph.training,
    )
