"""A new report beside the one that a run had: engines that were not made again stay in it."""

from collections.abc import Collection, Mapping
from dataclasses import replace

from qconvert.config import Gate
from qconvert.errors import QConvertError
from qconvert.pipeline.run_folder import REPORT, RunFolder
from qconvert.report import as_json
from qconvert.report.conclude import conclude
from qconvert.report.evidence import Evidence
from qconvert.report.model import Report, Variant
from qconvert.report.reasons import ELSEWHERE

OTHERS = "its answers were compared on other images"


def joined(new: Report, run: RunFolder, limits: Gate) -> Report:
    """Return the new report with the engines that the run has besides.

    Their accuracies stay where they are of these images; latencies compare only where they were
    taken in turns. A report that cannot be read any more, or is of another model, has nothing to
    give.
    """
    before = report_before(run)
    if before is None or before.baseline_bytes != new.baseline_bytes:
        return new
    there = {
        each.name: each
        for each in before.variants
        if each.engine is not None and _is_there(each, run)
    }
    # What is only planned takes the place of no engine.
    made = tuple(each for each in new.variants if each.engine or each.name not in there)
    new = _with_known_layers(_with_known_answers(replace(new, variants=made), before), before)
    here = {each.name for each in made}
    kept = tuple(_comparable(each, before, new) for each in there.values() if each.name not in here)
    staying = {each.name for each in kept}
    staying |= {each.name for each in made if each.name in there and _same(each, there[each.name])}
    whole = replace(
        new,
        variants=(*kept, *(_with_known_notes(each, there) for each in new.variants)),
        baseline=new.baseline or before.baseline,
        mixes={**before.mixes, **new.mixes},
        evidence=_evidence(new, before, staying),
    )
    planned = any(each.engine is None for each in whole.variants)
    return conclude(whole, Gate() if planned else limits)


def _evidence(new: Report, before: Report, staying: Collection[str]) -> Evidence:
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


def _with_known_notes(row: Variant, there: Mapping[str, Variant]) -> Variant:
    """Return a row with what was noted when the very same engine was made from nothing."""
    known = there.get(row.name)
    if known is None or not _same(row, known):
        return row
    return replace(row, notes=tuple(dict.fromkeys((*known.notes, *row.notes))))


def report_before(run: RunFolder) -> Report | None:
    """Return the report that a run has, if it can be read."""
    file = run.root / REPORT
    try:
        return as_json.load(file) if file.is_file() else None
    except QConvertError:  # of another version, or damaged: it is written anew
        return None


def _with_known_answers(new: Report, before: Report) -> Report:
    """Return the new report with answers that were compared before of the very same engines.

    So where no images are at hand now.
    """
    if new.evaluation is not None or before.evaluation is None:
        return new
    earlier = {each.name: each for each in before.variants if each.engine is not None}
    rows = []
    for row in new.variants:
        same = earlier.get(row.name)
        if same is None or _sha(same) != _sha(row) or same.accuracy is None:
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


def _with_known_layers(new: Report, before: Report) -> Report:
    """Return the new report with what was found out before of the layers of the same engines."""
    earlier = {(each.name, _sha(each)): each.layers for each in before.variants if each.layers}
    rows = []
    for row in new.variants:
        known = earlier.get((row.name, _sha(row)), ())
        if row.layers or not known:
            rows.append(row)
            continue
        reasons = {name: why for name, why in row.unmeasured.items() if name != "layers"}
        rows.append(replace(row, layers=known, unmeasured=reasons))
    return replace(new, variants=tuple(rows))


def _same(a: Variant, b: Variant) -> bool:
    return _sha(a) == _sha(b) != ""


def _sha(variant: Variant) -> str:
    return variant.engine.sha256 if variant.engine is not None else ""


def _is_there(variant: Variant, run: RunFolder) -> bool:
    return run.engine(variant.name).is_dir()


def _comparable(variant: Variant, before: Report, new: Report) -> Variant:
    """Return a row without the figures that compare with nothing in the new report."""
    reasons = dict(variant.unmeasured)
    latency, accuracy = variant.latency, variant.accuracy
    timed = any(each.latency for each in new.variants) or new.machine != before.machine
    if latency and timed:
        latency, reasons["latency"] = (), ELSEWHERE
    if accuracy is not None and not _same_images(before, new):
        accuracy, reasons["accuracy"] = None, OTHERS
    return replace(variant, latency=latency, accuracy=accuracy, unmeasured=reasons)


def _same_images(before: Report, new: Report) -> bool:
    """Say whether answers compare; a folder may be written another way, its images tell."""
    if new.evaluation is None:
        return True
    return before.evaluation is not None and before.evaluation.sha256 == new.evaluation.sha256
