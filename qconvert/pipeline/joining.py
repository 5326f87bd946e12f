"""A new report beside the one that a run had: engines that were not made again stay in it."""

from dataclasses import replace

from qconvert.config import Gate
from qconvert.pipeline.run_folder import REPORT, RunFolder
from qconvert.report import as_json
from qconvert.report.conclude import conclude
from qconvert.report.model import Report, Variant

ELSEWHERE = "timed on another machine before, which compares with nothing here"
OTHERS = "its answers were compared on other images"


def joined(new: Report, run: RunFolder, limits: Gate) -> Report:
    """Return the new report with the engines that the run has besides.

    Their latencies stay where they are of this machine, their accuracies where they are of these
    images; a report that cannot be read any more, or is of another model, has nothing to give.
    """
    file = run.root / REPORT
    if not file.is_file():
        return new
    before = as_json.load(file)
    known = {each.name for each in new.variants}
    kept = tuple(
        _comparable(each, before, new)
        for each in before.variants
        if each.name not in known and each.engine is not None and _is_there(each, run)
    )
    if not kept or before.baseline_bytes != new.baseline_bytes:
        return new
    baseline = new.baseline or before.baseline
    rows = replace(new, variants=(*kept, *new.variants), baseline=baseline)
    if new.evaluation is None:
        rows = replace(rows, evaluation=before.evaluation)
    return conclude(rows, limits)


def _is_there(variant: Variant, run: RunFolder) -> bool:
    return run.engine(variant.name).is_dir()


def _comparable(variant: Variant, before: Report, new: Report) -> Variant:
    """Return a row without the figures that compare with nothing in the new report."""
    reasons = dict(variant.unmeasured)
    latency, accuracy = variant.latency, variant.accuracy
    if latency and before.machine != new.machine:
        latency, reasons["latency"] = (), ELSEWHERE
    if accuracy is not None and new.evaluation not in (None, before.evaluation):
        accuracy, reasons["accuracy"] = None, OTHERS
    return replace(variant, latency=latency, accuracy=accuracy, unmeasured=reasons)
