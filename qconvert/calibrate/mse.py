"""The range with the least mean squared quantization error.

    error(low, high) = sum (x - dequantize(quantize(x)))^2, clipped values included

From the running number, sum and sum of squares of the values (`Histogram.moments`), the error of a
grid is one term per level, n * level^2 - 2 * level * sum(x) + sum(x^2), however many values there
are.
"""

from dataclasses import dataclass

import numpy as np

from qconvert.calibrate.histogram import Floats, Histogram, build_histogram
from qconvert.calibrate.summary import Summary
from qconvert.core.scales import Grid, Range

# Down to a 1000th of the extremes in steps of a quarter, then ever finer around the best so far.
COARSE_FACTORS = 2.0 ** (-np.arange(30) / 3)
FINER_FACTORS = tuple(2.0 ** (np.arange(2, -3, -1) / 6 / 2**halvings) for halvings in range(6))


def mse(summary: Summary, grid: Grid) -> Range:
    """Return the range of least squared error that contains zero; of equal ones the widest."""
    low, high = min(summary.low, 0.0), max(summary.high, 0.0)
    if low == high:
        return Range(0.0, 0.0)
    search = _RangeSearch(build_histogram(summary), grid, low, high)
    best = search.best_symmetric(Range(low, high), COARSE_FACTORS)
    if grid.symmetric or low == 0 or high == 0:
        for factors in FINER_FACTORS:
            best = search.best_symmetric(best, factors)
        return best
    # Both sides were cut alike first: with one side left wide, cutting the other gains little.
    best = search.best(np.full_like(COARSE_FACTORS, best.low), high * COARSE_FACTORS)
    best = search.best(low * COARSE_FACTORS, np.full_like(COARSE_FACTORS, best.high))
    for factors in FINER_FACTORS:
        lows, highs = np.meshgrid(best.low * factors, best.high * factors)
        best = search.best(lows.ravel(), highs.ravel())
    return best


@dataclass(frozen=True, eq=False)
class _RangeSearch:
    """Finds the best of many ranges between two extremes."""

    histogram: Histogram
    grid: Grid
    low: float
    high: float

    def best_symmetric(self, around: Range, factors: Floats) -> Range:
        """Return the best of the ranges that cut both sides at the same magnitude."""
        return self.best(-around.max_abs * factors, around.max_abs * factors)

    def best(self, lows: Floats, highs: Floats) -> Range:
        """Return the range of least error, none reaching beyond the extremes."""
        lows, highs = np.maximum(lows, self.low), np.minimum(highs, self.high)
        best = int(np.argmin(squared_errors(self.histogram, lows, highs, self.grid)))
        return Range(float(lows[best]), float(highs[best]))


def squared_errors(histogram: Histogram, lows: Floats, highs: Floats, grid: Grid) -> Floats:
    """Return for each range the sum of squared quantization errors."""
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
