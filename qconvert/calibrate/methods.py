"""Range methods: pure functions from a summary to a range, so trying another runs no image."""

from collections.abc import Callable, Mapping

import numpy as np

from qconvert.calibrate.entropy import entropy
from qconvert.calibrate.histogram import build_histogram, build_magnitude_histogram
from qconvert.calibrate.mse import mse
from qconvert.calibrate.summary import Summary
from qconvert.core.errors import UsageError
from qconvert.core.scales import Grid, Range

RangeMethod = Callable[[Summary, Grid], Range]

# The weight of a new image; with it about the last 100 images decide.
MOVING_AVERAGE_WEIGHT = 0.01
PERCENTILE_PREFIX = "percentile:"


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
    if name.startswith(PERCENTILE_PREFIX):
        percent = _parse_percentile(name)
        return lambda summary, grid: percentile(summary, grid, percent)
    raise UsageError(
        f"there is no range method `{name}`",
        hint=f"the methods: {', '.join(METHODS)}, and {PERCENTILE_PREFIX}99.99",
    )


def compute_ranges(summaries: Mapping[str, Summary], name: str, grid: Grid) -> dict[str, Range]:
    """Return the range of each tensor with counted values."""
    method = find_method(name)
    return {tensor: method(summary, grid) for tensor, summary in summaries.items() if summary.size}


def _parse_percentile(name: str) -> float:
    try:
        percent = float(name.removeprefix(PERCENTILE_PREFIX))
    except ValueError:
        percent = 0.0
    if not 50 < percent <= 100:
        raise UsageError(
            f"`{name}` is not a percentile above 50 and up to 100",
            hint=f"give a number, as in `{PERCENTILE_PREFIX}99.99`",
        )
    return percent
