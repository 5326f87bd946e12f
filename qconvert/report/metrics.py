"""Values derived from measurements: ratios, the Pareto front, reasons for missing values."""

import math
from dataclasses import dataclass

from qconvert.measure.accuracy import IDENTICAL, IDENTICAL_WHERE_FINITE, Accuracy
from qconvert.measure.latency import Latency, summarize_latency
from qconvert.measure.latency import speedup as median_speedup
from qconvert.report.model import Report, VariantResult
from qconvert.tasks.detection_agreement import MIN_SCORE
from qconvert.tasks.reading import METRIC_TITLES

NOT_MEASURED = "not measured in this run"
NOT_TIMED_TOGETHER = (
    "timed separately from the other engines: `qconvert bench RUN` times all of them together"
)
LABELS_REQUIRED = "top-1, precision, recall and F1 need labels: class folders, or `--labels`"
TRUTH_REQUIRED = {
    "detect": "mAP needs boxes: COCO JSON, YOLO or VOC files beside the images, or `--labels`",
    "segment": "mIoU needs masks: a folder `masks` beside the images, or `--labels`",
    "embed": "recall needs labels that several images share: class folders, or `--labels`",
}
EMPTY_TRUTH = "the truth holds nothing to score by: no object, or no pixel that counts"
NO_BOXES = f"neither FP32 nor the engine detects anything with a score of {MIN_SCORE} or more"
EXACT_OUTPUTS = "no error: the outputs are those of FP32 to the last bit"
ZERO_OUTPUTS = "no SQNR: the outputs of FP32 are all zero"
NEVER_FINITE = "no output error: on no image are all outputs finite"
NO_CLASS_SCORES = "no top-1 and no agreement: the outputs are not class scores"

# The trade-off shows the first of these scores that all timed variants have.
SCORE_LABELS = {
    "primary": "{}, %",
    "agreement": "agreement with FP32, %",
    "sqnr_db": "SQNR of the outputs, dB",
}


def score_of(accuracy: Accuracy | None, name: str) -> float | None:
    """Return a field of the accuracy, or a metric of its task in percent; None without it.

    `primary` is the metric that gates and searches judge by.
    """
    if accuracy is None:
        return None
    if name == "primary":
        # Reports of older versions have the fields of classifiers alone.
        name = accuracy.primary if accuracy.primary in accuracy.metrics else "top1"
    # Every task has the cosine to FP32, which is no percentage.
    if name in accuracy.metrics and name != "cosine":
        return 100 * accuracy.metrics[name]
    score: float | None = getattr(accuracy, name, None)
    return score


def metric_title(name: str) -> str:
    """Return a metric as tables name it; one of the user's own has no other name."""
    return METRIC_TITLES.get(name, name)


def primary_title(report: Report) -> str:
    """Return the metric that gates and searches judge by, `top-1` where nothing was scored."""
    scored = [variant.accuracy for variant in report.variants]
    names = (accuracy.primary for accuracy in (report.baseline, *scored) if accuracy is not None)
    return metric_title(next(filter(None, names), "top1"))


def headline_latency(variant: VariantResult) -> Latency | None:
    """Return the latency that represents a variant: whole calls if timed, at the smallest batch."""
    timed = [latency for latency in variant.latency if latency.samples_ms]
    return min(timed, key=lambda latency: (latency.where == "device", latency.batch), default=None)


def median_ms(variant: VariantResult) -> float | None:
    """Return the median of the headline latency."""
    latency = headline_latency(variant)
    return None if latency is None else summarize_latency(latency).median_ms


def ms_per_image(variant: VariantResult) -> float:
    """Return what ranks variants by speed at any batch size; infinite if untimed."""
    latency = headline_latency(variant)
    return math.inf if latency is None else summarize_latency(latency).median_ms / latency.batch


def latency_at(variant: VariantResult, batch: int, where: str) -> Latency | None:
    """Return the latency of a variant at a batch size, if it was measured."""
    timed = (t for t in variant.latency if t.samples_ms and (t.batch, t.where) == (batch, where))
    return next(timed, None)


def fp32_variant(report: Report, variant: VariantResult) -> VariantResult | None:
    """Return the fp32 engine of the same backend."""
    same_backend = (other for other in report.variants if other.backend == variant.backend)
    return next((other for other in same_backend if other.precision == "fp32"), None)


def speedup(report: Report, variant: VariantResult, latency: Latency) -> float | None:
    """Return how many times faster than fp32 a latency is, timed in the same way."""
    base = fp32_variant(report, variant)
    before = None if base is None else latency_at(base, latency.batch, latency.where)
    return None if before is None else median_speedup(before.samples_ms, latency.samples_ms)


def headline_speedup(report: Report, variant: VariantResult) -> float | None:
    """Return the speed-up of the headline latency."""
    latency = headline_latency(variant)
    return None if latency is None else speedup(report, variant, latency)


def size_ratio(report: Report, variant: VariantResult) -> float | None:
    """Return the size relative to the backend's fp32 engine, else to the FP32 ONNX file."""
    base = fp32_variant(report, variant)
    size = base.engine.bytes if base is not None and base.engine else report.baseline_bytes
    return variant.engine.bytes / size if variant.engine and size else None


def missing_reason(variant: VariantResult, *names: str) -> str:
    """Return why a field of a variant is empty, by the first of its names that has a reason."""
    reasons = (variant.unmeasured.get(name) for name in (*names, "engine"))
    return next((reason for reason in reasons if reason), NOT_MEASURED)


def missing_score_reason(variant: VariantResult, name: str) -> str:
    """Return why a score is missing: the recorded reason, else what the other scores imply."""
    accuracy = variant.accuracy
    recorded = variant.unmeasured.get(name) or variant.unmeasured.get("top1")
    if accuracy is None or recorded:
        return recorded or missing_reason(variant, "accuracy")
    if name == "sqnr_db":
        if IDENTICAL_WHERE_FINITE in accuracy.notes:
            return IDENTICAL_WHERE_FINITE
        if IDENTICAL in accuracy.notes or accuracy.sqnr_db == math.inf:
            return EXACT_OUTPUTS
        # Finite outputs have a cosine even if they are zero.
        if accuracy.cosine is not None:
            return ZERO_OUTPUTS
    compared = accuracy.agreement is not None or accuracy.kl is not None
    if name in ("sqnr_db", "kl", "cosine") and compared:
        return NEVER_FINITE
    if name == "agreement" and accuracy.task == "detect":
        return NO_BOXES
    if accuracy.primary:
        return NOT_MEASURED
    if accuracy.labelled and accuracy.task in TRUTH_REQUIRED:
        return EMPTY_TRUTH
    if accuracy.agreement is None and accuracy.task not in TRUTH_REQUIRED:
        return NO_CLASS_SCORES
    return TRUTH_REQUIRED.get(accuracy.task, LABELS_REQUIRED)


@dataclass(frozen=True)
class TradeOffPoint:
    """A variant in the plane of speed and accuracy; `dominated_by` is better in both.

    `uncertainty` is the spread of the timings, and half the 95 % interval of the score's change.
    """

    variant: VariantResult
    ms: float
    score: float
    uncertainty: tuple[float, float]
    dominated_by: str


@dataclass(frozen=True)
class ParetoFront:
    """The variants that were both timed and scored, the fastest first.

    `min_score` is the lowest score that a gate accepts.
    """

    points: tuple[TradeOffPoint, ...]
    score_label: str = ""
    min_score: float | None = None


def pareto_front(report: Report) -> ParetoFront:
    """Place the variants by speed and accuracy; without a score they all have there is no point."""
    timed = [
        (variant, latency)
        for variant in sorted(report.variants, key=lambda v: (ms_per_image(v), v.name))
        if (latency := headline_latency(variant)) is not None
    ]
    scored = (n for n in SCORE_LABELS if None not in [score_of(v.accuracy, n) for v, _ in timed])
    name = next(scored, "")
    if not timed or not name:
        return ParetoFront(())
    # Equal outputs have an infinite SQNR, which is drawn as a very good one.
    places = {
        v.name: (ms_per_image(v), min(score_of(v.accuracy, name) or 0.0, 120.0)) for v, _ in timed
    }
    points = []
    for variant, latency in timed:
        ms, score = places[variant.name]
        better = (
            other
            for other, place in places.items()
            if place != (ms, score) and place[0] <= ms and place[1] >= score
        )
        spread = summarize_latency(latency).spread_ms / latency.batch
        half_width = (
            variant.accuracy.half_width_pp if variant.accuracy and name == "primary" else None
        )
        uncertainty = (spread, half_width or 0.0)
        points.append(TradeOffPoint(variant, ms, score, uncertainty, next(better, "")))
    limits = {gate.name: gate.limit for gate in report.gates}
    min_score = limits.get("min-agreement") if name == "agreement" else None
    baseline = score_of(report.baseline, "primary")
    if name == "primary" and baseline is not None and "max-drop" in limits:
        min_score = baseline - limits["max-drop"]
    label = SCORE_LABELS[name].format(primary_title(report))
    return ParetoFront(tuple(points), label, min_score)
