"""What samples of a latency say: middle, spread and tail, and whether they can be trusted.

Percentiles interpolate linearly between the two nearest samples (position `(n - 1) * p / 100` in
sorted order, NumPy's default). `trtexec` takes a sample instead; from 100 samples on the two differ
by less than the distance of two neighbours. The spread is the median absolute deviation times
1.4826, which is the standard deviation where samples are normal and does not mind outliers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qconvert.measure.latency import Latency

NORMAL_SCALE = 1.4826

# So many spreads from the median is an outlier. Latencies have a tail: 3.5, as is usual for normal
# samples, would count it. A spread of almost nothing counts as this share of the median.
OUTLIER_DEVIATIONS = 10.0
MIN_SPREAD = 0.001

MAX_OUTLIER_SHARE = 0.05
MAX_SPREAD = 0.1
EDGE_SHARE = 0.1
MIN_EDGE = 3
DRIFT_RATIO = 1.1


@dataclass(frozen=True)
class LatencyStats:
    """Figures of one engine at one batch size; `outliers` counts samples far off the median."""

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
    """Return the figures of a latency; throughput is the batch in the time of the median."""
    samples = _array(latency.samples_ms)
    median = float(np.median(samples))
    p90, p95, p99 = (float(each) for each in np.percentile(samples, (90, 95, 99)))
    return LatencyStats(
        samples=len(samples),
        median_ms=median,
        spread_ms=spread(latency.samples_ms),
        # Adding up can round the mean of equal samples to just outside them.
        mean_ms=float(np.clip(samples.mean(), samples.min(), samples.max())),
        min_ms=float(samples.min()),
        p90_ms=p90,
        p95_ms=p95,
        p99_ms=p99,
        images_per_second=latency.batch * 1000 / median if median else math.inf,
        outliers=int(_outliers(samples).sum()),
    )


def spread(samples_ms: Sequence[float]) -> float:
    """Return the median absolute deviation, scaled to be a standard deviation of normal samples."""
    samples = _array(samples_ms)
    return NORMAL_SCALE * float(np.median(np.abs(samples - np.median(samples))))


def speedup(before: Sequence[float], after: Sequence[float]) -> float:
    """Return how many times faster `after` is: the median of the ratios within each turn.

    Samples taken in turns share what happened in their minute; an engine with more samples a turn
    gives the median of those that stand beside one of the other.
    """
    return float(np.median(_ratios(before, after)))


def speedup_range(before: Sequence[float], after: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % interval of `speedup`, from order statistics: no distribution is assumed.

    The ranks are n/2 ± 0.98 √n; fewer than six turns give their least and most.
    """
    ratios = np.sort(_ratios(before, after))
    count = len(ratios)
    low = math.floor(count / 2 - 0.98 * math.sqrt(count))
    low = min(max(low, 0), (count - 1) // 2)
    return float(ratios[low]), float(ratios[count - 1 - low])


def timing_notes(samples_ms: Sequence[float], *, on_gpu: bool = False) -> tuple[str, ...]:
    """Say what makes samples doubtful, and what to do about it."""
    samples = _array(samples_ms)
    # Samples that drift lie apart too; one cause is told once.
    return tuple(_drift(samples) or _disturbed(samples, on_gpu=on_gpu))


def _drift(samples: NDArray[np.float64]) -> list[str]:
    count = max(MIN_EDGE, int(len(samples) * EDGE_SHARE))
    if len(samples) < 2 * MIN_EDGE + count:
        return []
    first, rest, last = samples[:count], samples[count:], samples[-count:]
    found = []
    if (slower := _slower(first, rest)) > 1:
        found.append(
            f"the first {count} of {len(samples)} samples took {slower:.1f}x as long as the rest: "
            "the warm-up was too short, or other work just ended; `qconvert bench` measures again"
        )
    if (slower := _slower(last, samples[:-count])) > 1:
        found.append(
            f"the last {count} of {len(samples)} samples took {slower:.1f}x as long as those before"
            ": the machine got slower, by heat or by other work; let it rest, `qconvert bench` "
            "measures again"
        )
    return found


def _disturbed(samples: NDArray[np.float64], *, on_gpu: bool) -> list[str]:
    found = []
    outliers = int(_outliers(samples).sum())
    if outliers > max(1, MAX_OUTLIER_SHARE * len(samples)):
        found.append(
            f"{outliers} of {len(samples)} samples are outliers: the machine was busy; stop other "
            "programs, `qconvert bench` measures again"
        )
    median = float(np.median(samples))
    share = spread(samples.tolist()) / median if median else 0.0
    if share > MAX_SPREAD:
        clocks = "`cpupower frequency-set -g performance`" + ", `nvidia-smi -lgc`" * on_gpu
        found.append(
            f"unstable: the spread is {share:.0%} of the median; stop other programs and fix the "
            f"clocks ({clocks})"
        )
    return found


def _slower(some: NDArray[np.float64], others: NDArray[np.float64]) -> float:
    """Return how many times slower some samples are, 1 where that is within the spread."""
    middle, usual = float(np.median(some)), float(np.median(others))
    within = middle - usual <= 2 * spread(others.tolist())
    return 1.0 if within or middle <= DRIFT_RATIO * usual or not usual else middle / usual


def _outliers(samples: NDArray[np.float64]) -> NDArray[np.bool_]:
    median = float(np.median(samples))
    # The spread itself, not scaled: ten of them are some 6.7 standard deviations.
    usual = max(spread(samples.tolist()) / NORMAL_SCALE, MIN_SPREAD * median)
    far: NDArray[np.bool_] = np.abs(samples - median) > OUTLIER_DEVIATIONS * usual
    return far


def _ratios(before: Sequence[float], after: Sequence[float]) -> NDArray[np.float64]:
    """Return the ratio within each group of samples that both took in the same part of a turn.

    Both took the same number of turns, so the greatest common divisor of their counts is a multiple
    of it, and equal parts of that number never reach over a turn.
    """
    groups = math.gcd(len(before), len(after))
    middle = [np.median(_array(each).reshape(groups, -1), axis=1) for each in (before, after)]
    ratios: NDArray[np.float64] = middle[0] / middle[1]
    return ratios


def _array(samples: Sequence[float]) -> NDArray[np.float64]:
    if not len(samples):
        raise ValueError("no samples, no figures")
    return np.asarray(samples, np.float64)
