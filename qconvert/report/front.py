"""The trade-off between speed and right answers: who is on the front, and who is behind whom."""

from dataclasses import dataclass, replace

from qconvert.measure.accuracy import Accuracy
from qconvert.report import figures
from qconvert.report.model import Report, Variant

# What answers are judged by: the first that all timed variants have.
SCORES = {
    "top1": "top-1, %",
    "agreement": "answers as FP32, %",
    "sqnr_db": "SQNR of the outputs, dB",
}


@dataclass(frozen=True)
class Placed:
    """A variant on the plane of speed and answers; `behind` is one that is better in both.

    `off` is how far either may be off: the spread of the timings, and half the 95 % interval of
    the score's change from FP32.
    """

    variant: Variant
    ms: float
    score: float
    bytes: int
    off: tuple[float, float] = (0.0, 0.0)
    behind: str = ""


@dataclass(frozen=True)
class Front:
    """The variants that were both timed and scored, the fastest first, and what the score is.

    `limit` is the least score that a gate lets pass.
    """

    placed: tuple[Placed, ...]
    score: str
    limit: float | None = None


def front(report: Report) -> Front:
    """Return the variants on the plane; where they share no score there are none."""
    timed = [each for each in report.variants if figures.headline(each) is not None]
    name = next((each for each in SCORES if timed and all(_has(v, each) for v in timed)), "")
    if not name:
        return Front((), "")
    points = [
        Placed(
            each,
            figures.ms_an_image(each),
            _score(each.accuracy, name),
            each.engine.bytes if each.engine is not None else 0,
            (figures.spread_an_image(each), _half_width(each.accuracy, name)),
        )
        for each in timed
    ]
    placed = [
        replace(each, behind=_behind(each, points))
        for each in sorted(points, key=lambda each: (each.ms, each.variant.name))
    ]
    return Front(tuple(placed), SCORES[name], _limit(report, name))


def _limit(report: Report, name: str) -> float | None:
    """Return the least score that the gates let pass, where one is about this score."""
    limits = {gate.name: gate.limit for gate in report.gates}
    if name == "agreement":
        return limits.get("min-agreement")
    top1 = report.baseline.top1 if report.baseline is not None else None
    if name != "top1" or top1 is None or "max-drop" not in limits:
        return None
    return top1 - limits["max-drop"]


def _behind(point: Placed, others: list[Placed]) -> str:
    """Return the best of those that are no worse in either and better in one."""
    better = [
        each
        for each in others
        if (each.ms, each.score) != (point.ms, point.score)
        and each.ms <= point.ms
        and each.score >= point.score
    ]
    best = min(better, key=lambda each: (each.ms, each.variant.name), default=None)
    return best.variant.name if best is not None else ""


def _has(variant: Variant, name: str) -> bool:
    accuracy = variant.accuracy
    return accuracy is not None and getattr(accuracy, name) is not None


def _score(accuracy: Accuracy | None, name: str) -> float:
    """Return a score; an infinite SQNR, that of equal outputs, is drawn as a very good one."""
    return min(float(getattr(accuracy, name)), 120.0)


def _half_width(accuracy: Accuracy | None, name: str) -> float:
    """Return how far a score's change from FP32 may be off, where that is known."""
    half = accuracy.half_width_pp if accuracy is not None and name == "top1" else None
    return half or 0.0
