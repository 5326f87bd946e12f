"""From measurements to a judgement: gates, notes, the best variant and the verdict."""

from dataclasses import replace

from qconvert.config import Gate as Limits
from qconvert.report.gates import judge
from qconvert.report.model import Report
from qconvert.report.notes import sentences
from qconvert.report.verdict import best, verdict


def conclude(report: Report, limits: Limits) -> Report:
    """Return the report with all that follows from its measurements; the same when done again."""
    judged = replace(report, gates=judge(report, limits))
    judged = replace(judged, notes=sentences(judged))
    chosen = best(judged)
    return replace(judged, best=chosen.name if chosen else "", verdict=verdict(judged))
