"""The report of a target: read from its run, merged with the previous one, written in each form."""

import hashlib
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from qconvert import __version__
from qconvert.backends.base import Engine
from qconvert.core import onnx_io
from qconvert.core.atomic import write_text
from qconvert.core.config import GateConfig
from qconvert.core.errors import QConvertError, UsageError
from qconvert.measure.evidence import Evidence
from qconvert.measure.machine import describe_machine
from qconvert.report import json_file
from qconvert.report.html import render_html
from qconvert.report.markdown import render_markdown
from qconvert.report.metrics import NOT_TIMED_TOGETHER
from qconvert.report.model import EngineInfo, Report, VariantResult
from qconvert.report.model_card import render_card
from qconvert.report.tables import layers_csv
from qconvert.report.verdict import conclude
from qconvert.run.run_folder import CARD, ENGINES, HTML, LAYERS, MARKDOWN, REPORT, RunFolder
from qconvert.run.targets import Target


def read_report(target: Target) -> Report:
    """Return the report of a run with a row for each of its engines and for no other.

    Engines that belong to no run have an empty report.
    """
    if target.run is None:
        return Report(
            tool=f"qconvert {__version__}",
            created=timestamp(),
            model=str(target.model),
            command="",
            config={},
            machine=describe_machine(),
            baseline=None,
            baseline_bytes=model_bytes(target.model),
            variants=tuple(
                _unmeasured_row(name, engine, str(engine.folder))
                for name, engine in target.engines.items()
            ),
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
    rows = (
        _unmeasured_row(name, engine, f"{ENGINES}/{engine.folder.name}")
        for name, engine in target.engines.items()
    )
    return replace(
        report, variants=tuple(previous.get((row.name, _engine_hash(row)), row) for row in rows)
    )


def engine_info(engine: Engine, path: str, seconds: float = 0.0, *, cached: bool) -> EngineInfo:
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
        build_seconds=seconds,
        stored=cached,
        made_with=dict(engine.made_with),
    )


def timestamp() -> str:
    """Return the time of a report."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def model_bytes(path: Path) -> int:
    """Return the size of an ONNX model, external data included."""
    return sum(file.stat().st_size for file in onnx_io.model_files(path))


def previous_report(run: RunFolder) -> Report | None:
    """Return the report that a run has, if it can be read."""
    file = run.root / REPORT
    try:
        return json_file.load(file) if file.is_file() else None
    except QConvertError:  # of another version, or damaged: it is written anew
        return None


def merge_with_previous(new: Report, run: RunFolder, limits: GateConfig) -> Report:
    """Return the new report with the engines of the run that were not rebuilt.

    Their accuracy is kept if it was measured on the same images; latencies compare only where engines were
    timed together. A previous report of another model has nothing to add.
    """
    previous = previous_report(run)
    if previous is None or previous.baseline_bytes != new.baseline_bytes:
        return new
    existing = {
        row.name: row
        for row in previous.variants
        if row.engine is not None and run.engine(row.name).is_dir()
    }
    # A variant that is only planned does not replace its engine.
    rebuilt = [row for row in new.variants if row.engine or row.name not in existing]
    # Without evaluation images in this run, the accuracy of unchanged engines still holds.
    reuse_accuracy = new.evaluation is None and previous.evaluation is not None
    new = replace(
        new,
        variants=tuple(rebuilt),
        baseline=new.baseline or previous.baseline,
        evaluation=new.evaluation or previous.evaluation,
        shared_images=(previous if reuse_accuracy else new).shared_images,
    )
    unchanged, rows = set(existing), []
    for row in rebuilt:
        before, completed = existing.pop(row.name, None), row
        if before is None or _engine_hash(row) != _engine_hash(before):
            unchanged.discard(row.name)
        else:
            notes = tuple(dict.fromkeys((*before.notes, *row.notes)))
            completed = replace(row, notes=notes)
            if reuse_accuracy and before.accuracy is not None:
                completed = with_measurement(completed, "accuracy", before.accuracy)
            if before.layers and not row.layers:
                completed = with_measurement(completed, "layers", before.layers)
        rows.append(completed)
    others = [_without_incomparable(row, previous, new) for row in existing.values()]
    merged = replace(
        new,
        variants=(*others, *rows),
        mixes={**previous.mixes, **new.mixes},
        evidence=_merge_evidence(new, previous, unchanged) if unchanged else new.evidence,
    )
    only_planned = any(variant.engine is None for variant in merged.variants)
    return conclude(merged, GateConfig() if only_planned else limits)


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
    write_text(run.root / REPORT, json_file.dumps(report))
    write_text(run.root / MARKDOWN, render_markdown(report))
    write_text(run.root / HTML, render_html(report, report_images(report, run.root)))
    layers = {row.name: row.layers for row in report.variants if row.layers}
    if layers:
        write_text(run.root / LAYERS, layers_csv(layers))
    if report.best:
        write_text(run.root / CARD, render_card(report))
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


def _unmeasured_row(name: str, engine: Engine, path: str) -> VariantResult:
    info = engine_info(engine, path, cached=True)
    return VariantResult(name, engine.backend, engine.precision, info)


def _engine_hash(row: VariantResult) -> str:
    return row.engine.sha256 if row.engine is not None else ""


def _same_images(previous: Report, new: Report) -> bool:
    """Return whether accuracies compare: by the images' hash, whatever their folder is called."""
    if new.evaluation is None:
        return True
    return previous.evaluation is not None and previous.evaluation.sha256 == new.evaluation.sha256


def _without_incomparable(row: VariantResult, previous: Report, new: Report) -> VariantResult:
    """Remove measurements that cannot be compared within the new report."""
    timed_anew = any(other.latency for other in new.variants) or new.machine != previous.machine
    if row.latency and timed_anew:
        row = with_measurement(row, "latency", (), NOT_TIMED_TOGETHER)
    if row.accuracy is not None and not _same_images(previous, new):
        row = with_measurement(row, "accuracy", None, "its accuracy was measured on other images")
    return row


def _merge_evidence(new: Report, previous: Report, unchanged: set[str]) -> Evidence:
    """Complete the new evidence by the previous one of engines that did not change."""
    evidence, before = new.evidence, previous.evidence
    return Evidence(
        ranges=evidence.ranges or tuple(row for row in before.ranges if row.variant in unchanged),
        weights=evidence.weights or before.weights,
        feature_maps=evidence.feature_maps or before.feature_maps,
        thumbnails=evidence.thumbnails
        or (before.thumbnails if _same_images(previous, new) else ()),
        classes={**(before.classes or {}), **(evidence.classes or {})},
    )
