"""The range whose grid is nearest to the values, in the mean of squares.

The error is that of the integers that will be used, zero among them, clipped values included.
From the running number, sum and sum of squares of the values (`Histogram.moments`) the error of a
grid takes one step for each of its levels, however many values there are.
"""

from dataclasses import dataclass

import numpy as np

from qconvert.calibrate.histogram import Floats, Histogram, build_histogram
from qconvert.calibrate.summary import Summary
from qconvert.core.scales import Grid, Range

# Down to a 1000th of the extremes in steps of a quarter, then ever finer around the best so far.
COARSE_FACTORS = 2.0 ** (-np.arange(30) / 3)
FINER_FACTORS = tuple(2.0 ** (np.arange(2, -3, -1) / 6 / 2**halved) for halved in range(6))


def mse(summary: Summary, grid: Grid) -> Range:
    """Return the range of least squared error, zero inside it; of equal ones the widest."""
    low, high = min(summary.low, 0.0), max(summary.high, 0.0)
    if low == high:
        return Range(0.0, 0.0)
    search = _RangeSearch(build_histogram(summary), grid, low, high)
    best = search.best_symmetric(Range(low, high), COARSE_FACTORS)
    if grid.symmetric or low == 0 or high == 0:
        for factors in FINER_FACTORS:
            best = search.best_symmetric(best, factors)
        return best
    # Cutting both sides alike first: with one side left wide, cutting the other gains little.
    best = search.best(np.full_like(COARSE_FACTORS, best.low), high * COARSE_FACTORS)
    best = search.best(low * COARSE_FACTORS, np.full_like(COARSE_FACTORS, best.high))
    for factors in FINER_FACTORS:
        lows, highs = np.meshgrid(best.low * factors, best.high * factors)
        best = search.best(lows.ravel(), highs.ravel())
    return best


@dataclass(frozen=True, eq=False)
class _RangeSearch:
    """The better of many ranges between two extremes."""

    seen: Histogram
    grid: Grid
    low: float
    high: float

    def best_symmetric(self, around: Range, factors: Floats) -> Range:
        """Return the best of the ranges that cut both sides at the same magnitude."""
        return self.best(-around.max_abs * factors, around.max_abs * factors)

    def best(self, lows: Floats, highs: Floats) -> Range:
        """Return the range of least error, none reaching beyond the extremes."""
        lows, highs = np.maximum(lows, self.low), np.minimum(highs, self.high)
        place = int(np.argmin(squared_errors(self.seen, lows, highs, self.grid)))
        return Range(float(lows[place]), float(highs[place]))


def squared_errors(histogram: Histogram, lows: Floats, highs: Floats, grid: Grid) -> Floats:
    """Return for each range the sum of squares of what its grid gets wrong."""
    if grid.symmetric:
        steps = np.maximum(-lows, highs) / grid.symmetric_max
        zeros = np.full_like(steps, grid.symmetric_max + 1)
    else:
        steps = (highs - lows) / (grid.levels - 1)
        zeros = np.rint(-lows / steps)
    integers = np.arange(grid.levels) - zeros[:, np.newaxis]
    levels = integers * steps[:, np.newaxis]
    bounds = np.full((lows.size, grid.levels + 1), np.inf)
    bounds[:, 1:-1] = (levels[:, :-1] + levels[:, 1:]) / 2
    bounds[:, 0], bounds[:, -1] = -histogram.bound, histogram.bound
    numbers, sums, squares = (np.diff(moment, axis=1) for moment in histogram.moments(bounds))
    wrong = squares - 2 * levels * sums + levels * levels * numbers
    total: Floats = np.maximum(wrong, 0.0).sum(axis=1)
    return total
