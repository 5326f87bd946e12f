"""Range methods: pure functions from a summary to a range, so trying another runs no image."""

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from qconvert.calibrate.summary import (
    Floats,
    Histogram,
    Summary,
    build_histogram,
    build_magnitude_histogram,
)
from qconvert.core.errors import UsageError
from qconvert.core.scales import Grid, Range

RangeMethod = Callable[[Summary, Grid], Range]

# The weight of a new image; with it about the last 100 images decide.
MOVING_AVERAGE_WEIGHT = 0.01
PERCENTILE_PREFIX = "percentile:"
ENTROPY_BINS = 2048
# Down to a 1000th of the extremes in steps of a quarter, then ever finer around the best so far.
COARSE_FACTORS = 2.0 ** (-np.arange(30) / 3)
FINER_FACTORS = tuple(2.0 ** (np.arange(2, -3, -1) / 6 / 2**halvings) for halvings in range(6))


def minmax(summary: Summary, grid: Grid) -> Range:
    """Return the exact extremes."""
    return Range(summary.low, summary.high)


def moving_average(summary: Summary, grid: Grid) -> Range:
    """Return the extremes of the images as an exponential moving average in their order."""
    extremes = np.stack([summary.lows, summary.highs])[:, summary.finite].astype(np.float64)
    if not extremes.size:
        return Range(0.0, 0.0)
    # Summed are the steps away from the first image, so equal extremes stay exactly equal.
    first = extremes[:, :1]
    ages = np.arange(extremes.shape[1] - 1, -1, -1)
    weights = MOVING_AVERAGE_WEIGHT * (1 - MOVING_AVERAGE_WEIGHT) ** ages
    low, high = first[:, 0] + ((extremes - first) * weights).sum(axis=1)
    return Range(float(low), float(high))


def percentile(summary: Summary, grid: Grid, percent: float) -> Range:
    """Return the range that holds this percentage of the values.

    A symmetric grid cuts the largest magnitudes, another as many at the bottom as at the top; a
    tensor that stays on one side of zero is cut only at the end away from zero.
    """
    share = percent / 100
    if grid.symmetric or summary.low >= 0 or summary.high <= 0:
        threshold = build_magnitude_histogram(summary).quantile(share)
        return Range(max(summary.low, -threshold), min(summary.high, threshold))
    histogram = build_histogram(summary)
    return Range(histogram.quantile((1 - share) / 2), histogram.quantile((1 + share) / 2))


def entropy(summary: Summary, grid: Grid) -> Range:
    """Return the range that keeps most information, both sides cut at the same magnitude.

    TensorRT's method (Migacz, "8-bit Inference with TensorRT", GTC 2017): of 2,048 bins of
    magnitude the first i are kept and the values beyond join the last of them. The distribution P
    is compared with Q, which is P merged into as many groups as the grid has magnitudes:

        KL(P || Q) = sum P log(P / Q), least over i

    Unlike there, the bin at zero counts like its neighbour. A `Relu` puts half of all values there;
    counted, they are merged with a few small ones and that loss outweighs whatever is clipped, so
    that the threshold collapses (a rectified normal distribution fell from 40 to 18 dB).
    """
    largest = max(abs(summary.low), abs(summary.high))
    if largest == 0:
        return Range(0.0, 0.0)
    one_sided = not grid.symmetric and (summary.low >= 0 or summary.high <= 0)
    groups = grid.levels if one_sided else grid.levels // 2
    edges = np.linspace(0.0, largest, ENTROPY_BINS + 1)
    bins = np.diff(build_magnitude_histogram(summary).count_up_to(edges), prepend=0.0)[1:]
    bins[0] = bins[1]
    counts = np.arange(groups, ENTROPY_BINS + 1, dtype=np.int64)
    divergences = _kl_divergences(bins, counts, groups)
    # Of equal choices the one that keeps most.
    count = int(counts[divergences <= divergences.min() + 1e-12][-1])
    threshold = largest * count / ENTROPY_BINS
    return Range(max(summary.low, -threshold), min(summary.high, threshold))


def _kl_divergences(bins: Floats, counts: NDArray[np.int64], groups: int) -> Floats:
    """Return KL(P || Q) for each count of kept bins; infinite where Q is zero and P is not.

    Each is a few sums over its groups, taken from running sums, so all 1,900 cost milliseconds.
    """
    # Differences of interpolated counts: some of empty bins are below zero in the last bits.
    bins = np.maximum(bins, 0.0)
    total = bins.sum()
    running = np.concatenate([[0.0], np.cumsum(bins)])
    filled = np.concatenate([[0], np.cumsum(bins > 0)])
    self_terms = np.concatenate([[0.0], np.cumsum(_x_log_x(bins))])
    inside, last = running[counts], bins[counts - 1]
    beyond = total - inside
    edges = counts[:, np.newaxis] * np.arange(groups + 1) // groups
    mass = np.diff(running[edges], axis=1)
    spread = np.log(np.maximum(mass, 1e-300) / np.maximum(np.diff(filled[edges], axis=1), 1))
    mass[:, -1] += beyond
    p_log_p = self_terms[counts] - _x_log_x(last) + _x_log_x(last + beyond)
    with np.errstate(divide="ignore"):
        p_log_q = (mass * spread).sum(axis=1)
        divergences = (p_log_p - p_log_q) / total - np.log(total) + np.log(inside)
    impossible = ((last == 0) & (beyond > 0)) | (inside == 0)
    return np.where(impossible, np.inf, divergences)


def _x_log_x(values: Floats) -> Floats:
    return values * np.log(np.where(values > 0, values, 1.0))


def mse(summary: Summary, grid: Grid) -> Range:
    """Return the range of least squared quantization error that contains zero.

        error(low, high) = sum (x - dequantize(quantize(x)))^2, clipped values included

    Of equal ranges the widest is taken.
    """
    low, high = min(summary.low, 0.0), max(summary.high, 0.0)
    if low == high:
        return Range(0.0, 0.0)
    histogram = build_histogram(summary)

    def best_of(lows: Floats, highs: Floats) -> Range:
        lows, highs = np.maximum(lows, low), np.minimum(highs, high)
        best = int(np.argmin(squared_errors(histogram, lows, highs, grid)))
        return Range(float(lows[best]), float(highs[best]))

    def best_symmetric(around: Range, factors: Floats) -> Range:
        return best_of(-around.max_abs * factors, around.max_abs * factors)

    best = best_symmetric(Range(low, high), COARSE_FACTORS)
    if grid.symmetric or low == 0 or high == 0:
        for factors in FINER_FACTORS:
            best = best_symmetric(best, factors)
        return best
    # Both sides were cut alike first: with one side left wide, cutting the other gains little.
    best = best_of(np.full_like(COARSE_FACTORS, best.low), high * COARSE_FACTORS)
    best = best_of(low * COARSE_FACTORS, np.full_like(COARSE_FACTORS, best.high))
    for factors in FINER_FACTORS:
        lows, highs = np.meshgrid(best.low * factors, best.high * factors)
        best = best_of(lows.ravel(), highs.ravel())
    return best


def squared_errors(histogram: Histogram, lows: Floats, highs: Floats, grid: Grid) -> Floats:
    """Return for each range the sum of squared quantization errors.

    From the running number n, sum and sum of squares of the values (`Histogram.moments`), each is
    one term per level, n * level^2 - 2 * level * sum(x) + sum(x^2), however many values there are.
    """
    if grid.symmetric:
        scales = np.maximum(-lows, highs) / grid.symmetric_max
        zero_points = np.full_like(scales, grid.symmetric_max + 1)
    else:
        scales = (highs - lows) / (grid.levels - 1)
        zero_points = np.rint(-lows / scales)
    integers = np.arange(grid.levels) - zero_points[:, np.newaxis]
    levels = integers * scales[:, np.newaxis]
    bounds = np.full((lows.size, grid.levels + 1), np.inf)
    bounds[:, 1:-1] = (levels[:, :-1] + levels[:, 1:]) / 2
    bounds[:, 0], bounds[:, -1] = -histogram.bound, histogram.bound
    counts, sums, squares = (np.diff(moment, axis=1) for moment in histogram.moments(bounds))
    errors = squares - 2 * levels * sums + levels * levels * counts
    total: Floats = np.maximum(errors, 0.0).sum(axis=1)
    return total


METHODS: dict[str, RangeMethod] = {
    "minmax": minmax,
    "moving-average": moving_average,
    "entropy": entropy,
    "mse": mse,
}


def find_method(name: str) -> RangeMethod:
    """Return the method of this name; `percentile:99.99` carries its number."""
    if name in METHODS:
        return METHODS[name]
    if not name.startswith(PERCENTILE_PREFIX):
        raise UsageError(
            f"there is no range method `{name}`",
            hint=f"the methods: {', '.join(METHODS)}, and {PERCENTILE_PREFIX}99.99",
        )
    try:
        percent = float(name.removeprefix(PERCENTILE_PREFIX))
    except ValueError:
        percent = 0.0
    if not 50 < percent <= 100:
        raise UsageError(
            f"`{name}` is not a percentile above 50 and up to 100",
            hint=f"give a number, as in `{PERCENTILE_PREFIX}99.99`",
        )
    return partial(percentile, percent=percent)
