"""What follows from the samples: ratios, and which latency stands for a variant."""

import math
from dataclasses import dataclass, replace

from qconvert.measure import stats
from qconvert.measure.accuracy import IDENTICAL, IDENTICAL_WHERE_FINITE, Accuracy
from qconvert.measure.latency import Latency
from qconvert.report.model import Report, VariantResult


def headline_latency(variant: VariantResult) -> Latency | None:
    """Return what stands for a variant: the smallest batch, whole calls where they were timed."""
    timed = [each for each in variant.latency if each.samples_ms]
    return min(timed, key=lambda each: (each.where == "device", each.batch), default=None)


def median_ms(variant: VariantResult) -> float | None:
    """Return the median of the headline."""
    latency = headline_latency(variant)
    return None if latency is None else stats.summarize_latency(latency).median_ms


def ms_per_image(variant: VariantResult) -> float:
    """Return what ranks variants by speed, whatever batches they take; infinite if untimed."""
    latency = headline_latency(variant)
    return (
        float("inf")
        if latency is None
        else stats.summarize_latency(latency).median_ms / latency.batch
    )


def spread_ms_per_image(variant: VariantResult) -> float:
    """Return how much the timings of an image spread about their median; 0 if untimed."""
    latency = headline_latency(variant)
    return 0.0 if latency is None else stats.summarize_latency(latency).spread_ms / latency.batch


def latency_at(variant: VariantResult, batch: int, where: str) -> Latency | None:
    """Return the latency of a variant at a batch size, if it was measured."""
    for each in variant.latency:
        if (each.batch, each.where) == (batch, where) and each.samples_ms:
            return each
    return None


def fp32_variant(report: Report, variant: VariantResult) -> VariantResult | None:
    """Return the fp32 engine of the same backend."""
    for each in report.variants:
        if each.backend == variant.backend and each.precision == "fp32":
            return each
    return None


def speedup(report: Report, variant: VariantResult, latency: Latency) -> float | None:
    """Return how many times faster than fp32 a latency is, timed in the same way."""
    base = fp32_variant(report, variant)
    found = None if base is None else latency_at(base, latency.batch, latency.where)
    return None if found is None else stats.speedup(found.samples_ms, latency.samples_ms)


def headline_speedup(report: Report, variant: VariantResult) -> float | None:
    """Return the speed-up of the headline."""
    latency = headline_latency(variant)
    return None if latency is None else speedup(report, variant, latency)


def size_ratio(report: Report, variant: VariantResult) -> float | None:
    """Return the size relative to the backend's fp32 engine, else to the FP32 ONNX file."""
    base = fp32_variant(report, variant)
    size = base.engine.bytes if base is not None and base.engine else report.baseline_bytes
    return variant.engine.bytes / size if variant.engine and size else None


def passes_gates(report: Report, variant: VariantResult) -> bool | None:
    """Say whether a variant keeps all limits it was judged by; None where there were none."""
    judged = [gate.passed for gate in report.gates if gate.variant == variant.name]
    return all(judged) if judged else None


# What answers are judged by: the first that all timed variants have.
SCORE_LABELS = {
    "top1": "top-1, %",
    "agreement": "answers as FP32, %",
    "sqnr_db": "SQNR of the outputs, dB",
}


@dataclass(frozen=True)
class TradeOffPoint:
    """A variant on the plane of speed and answers; `behind` is one that is better in both.

    `off` is how far either may be off: the spread of the timings, and half the 95 % interval of
    the score's change from FP32.
    """

    variant: VariantResult
    ms: float
    score: float
    bytes: int
    uncertainty: tuple[float, float] = (0.0, 0.0)
    dominated_by: str = ""


@dataclass(frozen=True)
class ParetoFront:
    """The variants that were both timed and scored, the fastest first, and what the score is.

    `limit` is the least score that a gate lets pass.
    """

    points: tuple[TradeOffPoint, ...]
    score_label: str
    min_score: float | None = None


def pareto_front(report: Report) -> ParetoFront:
    """Return the variants on the plane; where they share no score there are none."""
    timed = [each for each in report.variants if headline_latency(each) is not None]
    name = next(
        (each for each in SCORE_LABELS if timed and all(_has_score(v, each) for v in timed)), ""
    )
    if not name:
        return ParetoFront((), "")
    points = [
        TradeOffPoint(
            each,
            ms_per_image(each),
            _score(each.accuracy, name),
            each.engine.bytes if each.engine is not None else 0,
            (spread_ms_per_image(each), _half_width(each.accuracy, name)),
        )
        for each in timed
    ]
    placed = [
        replace(each, dominated_by=_dominating_variant(each, points))
        for each in sorted(points, key=lambda each: (each.ms, each.variant.name))
    ]
    return ParetoFront(tuple(placed), SCORE_LABELS[name], _min_score(report, name))


def _min_score(report: Report, name: str) -> float | None:
    """Return the least score that the gates let pass, where one is about this score."""
    limits = {gate.name: gate.limit for gate in report.gates}
    if name == "agreement":
        return limits.get("min-agreement")
    top1 = report.baseline.top1 if report.baseline is not None else None
    if name != "top1" or top1 is None or "max-drop" not in limits:
        return None
    return top1 - limits["max-drop"]


def _dominating_variant(point: TradeOffPoint, others: list[TradeOffPoint]) -> str:
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


def _has_score(variant: VariantResult, name: str) -> bool:
    accuracy = variant.accuracy
    return accuracy is not None and getattr(accuracy, name) is not None


def _score(accuracy: Accuracy | None, name: str) -> float:
    """Return a score; an infinite SQNR, that of equal outputs, is drawn as a very good one."""
    return min(float(getattr(accuracy, name)), 120.0)


def _half_width(accuracy: Accuracy | None, name: str) -> float:
    """Return how far a score's change from FP32 may be off, where that is known."""
    half = accuracy.half_width_pp if accuracy is not None and name == "top1" else None
    return half or 0.0


# Of timings that were dropped because they compare with no other ones.
NOT_TIMED_TOGETHER = (
    "timed at another time than the others: `qconvert bench RUN` times all of them in turns"
)
NOT_MEASURED = "not measured in this run"
LABELS_REQUIRED = "top-1, precision, recall and F1 need labels: class folders, or `--labels`"
EXACT_OUTPUTS = "no error: the outputs are those of FP32 to the last bit"
ZERO_OUTPUTS = "no SQNR: the outputs of FP32 are all zero"
NEVER_FINITE = "no distance: on no image are all outputs finite"
NO_CLASS_SCORES = "no top-1 and no agreement: the outputs are not scores of classes"
OUTPUT_ERROR_FIELDS = ("sqnr_db", "kl", "cosine")


def missing_reason(variant: VariantResult, *names: str) -> str:
    """Return why a field of a variant is empty, by the first of its names that has a reason."""
    reasons = (variant.unmeasured.get(name) for name in (*names, "engine"))
    return next((reason for reason in reasons if reason), NOT_MEASURED)


def missing_score_reason(variant: VariantResult, name: str) -> str:
    """Return why a score is missing: what is said of it, else what the other scores tell."""
    accuracy = variant.accuracy
    said = variant.unmeasured.get(name) or variant.unmeasured.get("top1")
    if accuracy is None or said:
        return said or missing_reason(variant, "accuracy")
    if name in OUTPUT_ERROR_FIELDS and (why := _missing_output_error_reason(accuracy, name)):
        return why
    if accuracy.top1 is not None or accuracy.agreement is not None:
        return NOT_MEASURED if accuracy.top1 is not None else LABELS_REQUIRED
    return NO_CLASS_SCORES


def _missing_output_error_reason(accuracy: Accuracy, name: str) -> str:
    """Return why outputs that were compared have no distance; empty where that is not known."""
    if name == "sqnr_db" and IDENTICAL_WHERE_FINITE in accuracy.notes:
        return IDENTICAL_WHERE_FINITE
    if name == "sqnr_db" and (IDENTICAL in accuracy.notes or accuracy.sqnr_db == math.inf):
        return EXACT_OUTPUTS
    # Outputs that are finite have a cosine, be they zero.
    if name == "sqnr_db" and accuracy.cosine is not None:
        return ZERO_OUTPUTS
    return NEVER_FINITE if accuracy.agreement is not None or accuracy.kl is not None else ""
