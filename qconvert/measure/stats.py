"""Summarize latency samples: median, spread, tail and speedup, and what makes them doubtful.

Percentiles interpolate linearly between the two nearest samples (position `(n - 1) * p / 100` in
sorted order, NumPy's default); `trtexec` takes one of the samples. The spread is the median
absolute deviation times 1.4826: the standard deviation of normal samples, robust to outliers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qconvert.measure.latency import Latency

NORMAL_SCALE = 1.4826

# A sample this many deviations from the median is an outlier. Latencies have a tail: 3.5, the usual
# limit for normal samples, would count it. The deviation is at least this share of the median.
OUTLIER_DEVIATIONS = 10.0
MIN_SPREAD = 0.001

# Shares of outliers, and of the median, above which samples are doubtful.
MAX_OUTLIER_SHARE = 0.05
MAX_SPREAD = 0.1

# Drift: the first or last of the samples are slower than the others by this ratio.
EDGE_SHARE = 0.1
MIN_EDGE = 3
DRIFT_RATIO = 1.1


@dataclass(frozen=True)
class LatencyStats:
    """Statistics of one engine at one batch size; `outliers` counts samples far off the median."""

    samples: int
    median_ms: float
    spread_ms: float
    mean_ms: float
    min_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    images_per_second: float
    outliers: int


def summarize_latency(latency: Latency) -> LatencyStats:
    """Return the statistics of a latency; throughput is the batch divided by the median."""
    samples = _array(latency.samples_ms)
    median = float(np.median(samples))
    p90, p95, p99 = np.percentile(samples, (90, 95, 99)).tolist()
    return LatencyStats(
        samples=len(samples),
        median_ms=median,
        spread_ms=spread(latency.samples_ms),
        # Summation can round the mean of equal samples to just outside them.
        mean_ms=float(np.clip(samples.mean(), samples.min(), samples.max())),
        min_ms=float(samples.min()),
        p90_ms=p90,
        p95_ms=p95,
        p99_ms=p99,
        images_per_second=latency.batch * 1000 / median if median else math.inf,
        outliers=_count_outliers(samples),
    )


def spread(samples_ms: Sequence[float]) -> float:
    """Return the median absolute deviation, scaled to the standard deviation of normal samples."""
    return NORMAL_SCALE * _deviation(_array(samples_ms))


def speedup(before: Sequence[float], after: Sequence[float]) -> float:
    """Return how many times faster `after` is: the median of the ratios within each round.

    Samples of one round share what happened in that minute. Both took part in the same number of
    rounds, so the greatest common divisor of their sample counts is a multiple of it, and groups of
    that number never span two rounds.
    """
    groups = math.gcd(len(before), len(after))
    slower, faster = (
        np.median(_array(samples).reshape(groups, -1), axis=1) for samples in (before, after)
    )
    return float(np.median(slower / faster))


def timing_notes(samples_ms: Sequence[float], *, on_gpu: bool = False) -> tuple[str, ...]:
    """Return what makes samples doubtful, and what to do about it."""
    samples = _array(samples_ms)
    # Drifting samples have a wide spread too; one cause is reported once.
    return tuple(_drift_notes(samples) or _noise_notes(samples, on_gpu=on_gpu))


def _drift_notes(samples: NDArray[np.float64]) -> list[str]:
    edge = max(MIN_EDGE, int(len(samples) * EDGE_SHARE))
    if len(samples) < 2 * MIN_EDGE + edge:
        return []
    notes = []
    if (ratio := _slowdown(samples[:edge], samples[edge:])) > 1:
        notes.append(
            f"the first {edge} of {len(samples)} samples took {ratio:.1f}x as long as the rest: "
            "the warm-up was too short, or other work just ended; `qconvert bench` measures again"
        )
    if (ratio := _slowdown(samples[-edge:], samples[:-edge])) > 1:
        notes.append(
            f"the last {edge} of {len(samples)} samples took {ratio:.1f}x as long as those before: "
            "the machine got slower, by heat or by other work; let it rest, `qconvert bench` "
            "measures again"
        )
    return notes


def _noise_notes(samples: NDArray[np.float64], *, on_gpu: bool) -> list[str]:
    notes = []
    outliers = _count_outliers(samples)
    if outliers > max(1, MAX_OUTLIER_SHARE * len(samples)):
        notes.append(
            f"{outliers} of {len(samples)} samples are outliers: the machine was busy; stop other "
            "programs, `qconvert bench` measures again"
        )
    median = float(np.median(samples))
    share = NORMAL_SCALE * _deviation(samples) / median if median else 0.0
    if share > MAX_SPREAD:
        clocks = "`cpupower frequency-set -g performance`" + ", `nvidia-smi -lgc`" * on_gpu
        notes.append(
            f"unstable: the spread is {share:.0%} of the median; stop other programs and fix the "
            f"clocks ({clocks})"
        )
    return notes


def _slowdown(samples: NDArray[np.float64], others: NDArray[np.float64]) -> float:
    """Return how many times slower samples are than others, 1 where that is within the spread."""
    median, usual = float(np.median(samples)), float(np.median(others))
    within_spread = median - usual <= 2 * NORMAL_SCALE * _deviation(others)
    return 1.0 if within_spread or median <= DRIFT_RATIO * usual or not usual else median / usual


def _count_outliers(samples: NDArray[np.float64]) -> int:
    median = float(np.median(samples))
    # Ten deviations, not scaled: some 6.7 standard deviations of normal samples.
    deviation = max(_deviation(samples), MIN_SPREAD * median)
    return int((np.abs(samples - median) > OUTLIER_DEVIATIONS * deviation).sum())


def _deviation(samples: NDArray[np.float64]) -> float:
    return float(np.median(np.abs(samples - np.median(samples))))


def _array(samples: Sequence[float]) -> NDArray[np.float64]:
    if not len(samples):
        raise ValueError("there are no samples")
    return np.asarray(samples, np.float64)
