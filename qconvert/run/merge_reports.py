"""A new report beside the one that a run had: engines that were not made again stay in it."""

from collections.abc import Collection, Mapping
from dataclasses import replace

from qconvert.core.config import GateConfig
from qconvert.core.errors import QConvertError
from qconvert.measure.evidence import Evidence
from qconvert.report import json_file
from qconvert.report.metrics import NOT_TIMED_TOGETHER
from qconvert.report.model import Report, VariantResult
from qconvert.report.verdict import conclude
from qconvert.run.run_folder import REPORT, RunFolder

OTHER_IMAGES = "its answers were compared on other images"


def merge_with_previous(new: Report, run: RunFolder, limits: GateConfig) -> Report:
    """Return the new report with the engines that the run has besides.

    Their accuracies stay where they are of these images; latencies compare only where they were
    taken in turns. A report that cannot be read any more, or is of another model, has nothing to
    give.
    """
    before = previous_report(run)
    if before is None or before.baseline_bytes != new.baseline_bytes:
        return new
    there = {
        each.name: each
        for each in before.variants
        if each.engine is not None and _engine_exists(each, run)
    }
    # What is only planned takes the place of no engine.
    made = tuple(each for each in new.variants if each.engine or each.name not in there)
    new = _with_previous_layers(
        _with_previous_accuracy(replace(new, variants=made), before), before
    )
    here = {each.name for each in made}
    kept = tuple(
        _without_incomparable(each, before, new) for each in there.values() if each.name not in here
    )
    staying = {each.name for each in kept}
    staying |= {
        each.name for each in made if each.name in there and _same_engine(each, there[each.name])
    }
    whole = replace(
        new,
        variants=(*kept, *(_with_previous_notes(each, there) for each in new.variants)),
        baseline=new.baseline or before.baseline,
        mixes={**before.mixes, **new.mixes},
        evidence=_merged_evidence(new, before, staying),
    )
    planned = any(each.engine is None for each in whole.variants)
    return conclude(whole, GateConfig() if planned else limits)


def _merged_evidence(new: Report, before: Report, staying: Collection[str]) -> Evidence:
    """Return what is shown of the errors; of engines that stay what was shown before."""
    found, known = new.evidence, before.evidence
    if not staying:
        return found
    pictures = known.thumbnails if _same_images(before, new) else ()
    return Evidence(
        ranges=found.ranges or tuple(each for each in known.ranges if each.variant in staying),
        weights=found.weights or known.weights,
        feature_maps=found.feature_maps or known.feature_maps,
        thumbnails=found.thumbnails or pictures,
        classes={**(known.classes or {}), **(found.classes or {})},
    )


def _with_previous_notes(row: VariantResult, there: Mapping[str, VariantResult]) -> VariantResult:
    """Return a row with what was noted when the very same engine was made from nothing."""
    known = there.get(row.name)
    if known is None or not _same_engine(row, known):
        return row
    return replace(row, notes=tuple(dict.fromkeys((*known.notes, *row.notes))))


def previous_report(run: RunFolder) -> Report | None:
    """Return the report that a run has, if it can be read."""
    file = run.root / REPORT
    try:
        return json_file.load(file) if file.is_file() else None
    except QConvertError:  # of another version, or damaged: it is written anew
        return None


def _with_previous_accuracy(new: Report, before: Report) -> Report:
    """Return the new report with answers that were compared before of the very same engines.

    So where no images are at hand now.
    """
    if new.evaluation is not None or before.evaluation is None:
        return new
    earlier = {each.name: each for each in before.variants if each.engine is not None}
    rows = []
    for row in new.variants:
        same = earlier.get(row.name)
        if same is None or _engine_sha(same) != _engine_sha(row) or same.accuracy is None:
            rows.append(row)
            continue
        reasons = {name: why for name, why in row.unmeasured.items() if name != "accuracy"}
        rows.append(replace(row, accuracy=same.accuracy, unmeasured=reasons))
    return replace(
        new,
        variants=tuple(rows),
        baseline=before.baseline,
        evaluation=before.evaluation,
        shared_images=before.shared_images,
    )


def _with_previous_layers(new: Report, before: Report) -> Report:
    """Return the new report with what was found out before of the layers of the same engines."""
    earlier = {
        (each.name, _engine_sha(each)): each.layers for each in before.variants if each.layers
    }
    rows = []
    for row in new.variants:
        known = earlier.get((row.name, _engine_sha(row)), ())
        if row.layers or not known:
            rows.append(row)
            continue
        reasons = {name: why for name, why in row.unmeasured.items() if name != "layers"}
        rows.append(replace(row, layers=known, unmeasured=reasons))
    return replace(new, variants=tuple(rows))


def _same_engine(a: VariantResult, b: VariantResult) -> bool:
    return _engine_sha(a) == _engine_sha(b) != ""


def _engine_sha(variant: VariantResult) -> str:
    return variant.engine.sha256 if variant.engine is not None else ""


def _engine_exists(variant: VariantResult, run: RunFolder) -> bool:
    return run.engine(variant.name).is_dir()


def _without_incomparable(variant: VariantResult, before: Report, new: Report) -> VariantResult:
    """Return a row without the figures that compare with nothing in the new report."""
    reasons = dict(variant.unmeasured)
    latency, accuracy = variant.latency, variant.accuracy
    timed = any(each.latency for each in new.variants) or new.machine != before.machine
    if latency and timed:
        latency, reasons["latency"] = (), NOT_TIMED_TOGETHER
    if accuracy is not None and not _same_images(before, new):
        accuracy, reasons["accuracy"] = None, OTHER_IMAGES
    return replace(variant, latency=latency, accuracy=accuracy, unmeasured=reasons)


def _same_images(before: Report, new: Report) -> bool:
    """Say whether answers compare; a folder may be written another way, its images tell."""
    if new.evaluation is None:
        return True
    return before.evaluation is not None and before.evaluation.sha256 == new.evaluation.sha256
