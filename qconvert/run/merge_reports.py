"""Merge a new report with the previous one of its run: engines that were not rebuilt stay in it."""

from collections.abc import Collection
from dataclasses import replace

from qconvert.core.config import GateConfig
from qconvert.core.errors import QConvertError
from qconvert.measure.evidence import Evidence
from qconvert.report import json_file
from qconvert.report.metrics import NOT_TIMED_TOGETHER
from qconvert.report.model import Report, VariantResult
from qconvert.report.verdict import conclude
from qconvert.run.run_folder import REPORT, RunFolder

OTHER_IMAGES = "its accuracy was measured on other images"


def previous_report(run: RunFolder) -> Report | None:
    """Return the report that a run has, if it can be read."""
    file = run.root / REPORT
    try:
        return json_file.load(file) if file.is_file() else None
    except QConvertError:  # of another version, or damaged: it is written anew
        return None


def merge_with_previous(new: Report, run: RunFolder, limits: GateConfig) -> Report:
    """Return the new report with the other engines of the run.

    Their accuracy stays if it is of the same images; latencies compare only where engines were
    timed together. A previous report of another model has nothing to add.
    """
    previous = previous_report(run)
    if previous is None or previous.baseline_bytes != new.baseline_bytes:
        return new
    existing = {
        variant.name: variant
        for variant in previous.variants
        if variant.engine is not None and run.engine(variant.name).is_dir()
    }
    # Without evaluation images in this run, the accuracy of unchanged engines still holds.
    reuse_accuracy = new.evaluation is None and previous.evaluation is not None
    if reuse_accuracy:
        new = replace(
            new,
            baseline=previous.baseline,
            evaluation=previous.evaluation,
            shared_images=previous.shared_images,
        )
    # A variant that is only planned does not replace its engine.
    rebuilt = [row for row in new.variants if row.engine or row.name not in existing]
    new = replace(new, variants=tuple(rebuilt), baseline=new.baseline or previous.baseline)
    new_names = {row.name for row in rebuilt}
    kept = {name: existing[name] for name in existing if name not in new_names}
    unchanged = {
        row.name
        for row in rebuilt
        if row.name in existing and _engine_hash(row) == _engine_hash(existing[row.name])
    }
    variants = [
        _with_previous(row, existing[row.name], reuse_accuracy=reuse_accuracy)
        if row.name in unchanged
        else row
        for row in rebuilt
    ]
    others = [_without_incomparable(row, previous, new) for row in kept.values()]
    merged = replace(
        new,
        variants=(*others, *variants),
        mixes={**previous.mixes, **new.mixes},
        evidence=_merged_evidence(new, previous, unchanged | kept.keys()),
    )
    only_planned = any(variant.engine is None for variant in merged.variants)
    return conclude(merged, GateConfig() if only_planned else limits)


def _with_previous(
    row: VariantResult, before: VariantResult, *, reuse_accuracy: bool
) -> VariantResult:
    """Add what was measured and noted before of the very same engine."""
    reasons = dict(row.unmeasured)
    if reuse_accuracy and before.accuracy is not None:
        row = replace(row, accuracy=before.accuracy)
        reasons.pop("accuracy", None)
    if before.layers and not row.layers:
        row = replace(row, layers=before.layers)
        reasons.pop("layers", None)
    notes = tuple(dict.fromkeys((*before.notes, *row.notes)))
    return replace(row, notes=notes, unmeasured=reasons)


def _without_incomparable(variant: VariantResult, previous: Report, new: Report) -> VariantResult:
    """Remove the measurements that compare with nothing in the new report."""
    reasons = dict(variant.unmeasured)
    timed_anew = any(row.latency for row in new.variants) or new.machine != previous.machine
    if variant.latency and timed_anew:
        variant = replace(variant, latency=())
        reasons["latency"] = NOT_TIMED_TOGETHER
    if variant.accuracy is not None and not _same_images(previous, new):
        variant = replace(variant, accuracy=None)
        reasons["accuracy"] = OTHER_IMAGES
    return replace(variant, unmeasured=reasons)


def _merged_evidence(new: Report, previous: Report, unchanged: Collection[str]) -> Evidence:
    """Return the new evidence, completed by the previous one of engines that did not change."""
    if not unchanged:
        return new.evidence
    evidence, before = new.evidence, previous.evidence
    thumbnails = before.thumbnails if _same_images(previous, new) else ()
    return Evidence(
        ranges=evidence.ranges or tuple(row for row in before.ranges if row.variant in unchanged),
        weights=evidence.weights or before.weights,
        feature_maps=evidence.feature_maps or before.feature_maps,
        thumbnails=evidence.thumbnails or thumbnails,
        classes={**(before.classes or {}), **(evidence.classes or {})},
    )


def _engine_hash(variant: VariantResult) -> str:
    return variant.engine.sha256 if variant.engine is not None else ""


def _same_images(previous: Report, new: Report) -> bool:
    """Return whether accuracies compare: by the images' hash, whatever their folder is called."""
    if new.evaluation is None:
        return True
    return previous.evaluation is not None and previous.evaluation.sha256 == new.evaluation.sha256
