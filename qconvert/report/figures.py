"""What follows from the samples: ratios, and which latency stands for a variant."""

from qconvert.measure import stats
from qconvert.measure.latency import Latency
from qconvert.report.model import Report, Variant


def headline(variant: Variant) -> Latency | None:
    """Return what stands for a variant: the smallest batch, whole calls where they were timed."""
    timed = [each for each in variant.latency if each.samples_ms]
    return min(timed, key=lambda each: (each.where == "device", each.batch), default=None)


def median_ms(variant: Variant) -> float | None:
    """Return the median of the headline."""
    latency = headline(variant)
    return None if latency is None else stats.stats(latency).median_ms


def ms_an_image(variant: Variant) -> float:
    """Return what ranks variants by speed, whatever batches they take; infinite if untimed."""
    latency = headline(variant)
    return float("inf") if latency is None else stats.stats(latency).median_ms / latency.batch


def spread_an_image(variant: Variant) -> float:
    """Return how much the timings of an image spread about their median; 0 if untimed."""
    latency = headline(variant)
    return 0.0 if latency is None else stats.stats(latency).spread_ms / latency.batch


def timed(variant: Variant, batch: int, where: str) -> Latency | None:
    """Return the latency of a variant at a batch size, if it was measured."""
    for each in variant.latency:
        if (each.batch, each.where) == (batch, where) and each.samples_ms:
            return each
    return None


def reference(report: Report, variant: Variant) -> Variant | None:
    """Return the fp32 engine of the same backend."""
    for each in report.variants:
        if each.backend == variant.backend and each.precision == "fp32":
            return each
    return None


def speedup(report: Report, variant: Variant, latency: Latency) -> float | None:
    """Return how many times faster than fp32 a latency is, timed in the same way."""
    base = reference(report, variant)
    found = None if base is None else timed(base, latency.batch, latency.where)
    return None if found is None else stats.speedup(found.samples_ms, latency.samples_ms)


def headline_speedup(report: Report, variant: Variant) -> float | None:
    """Return the speed-up of the headline."""
    latency = headline(variant)
    return None if latency is None else speedup(report, variant, latency)


def size_ratio(report: Report, variant: Variant) -> float | None:
    """Return the size relative to the backend's fp32 engine, else to the FP32 ONNX file."""
    base = reference(report, variant)
    size = base.engine.bytes if base is not None and base.engine else report.baseline_bytes
    return variant.engine.bytes / size if variant.engine and size else None


def passed(report: Report, variant: Variant) -> bool | None:
    """Say whether a variant keeps all limits it was judged by; None where there were none."""
    judged = [gate.passed for gate in report.gates if gate.variant == variant.name]
    return all(judged) if judged else None
