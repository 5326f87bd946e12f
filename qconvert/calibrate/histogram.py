"""How the values of a tensor are distributed, as far as calibration saw it.

The values of a bin are taken as spread evenly over it. The outermost bins end at the exact
extremes, so mass that sits on an extreme, as after a `Clip`, is where it belongs.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from qconvert.calibrate.summary import (
    INFINITY_KEY,
    KEY_COUNT,
    SIGN_KEY,
    Summary,
    count_keys,
    float_keys,
)
from qconvert.core.scales import Range

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Histogram:
    """Disjoint bins in rising order, and how many values of the tensor each stands for."""

    lefts: Floats
    rights: Floats
    weights: Floats

    @property
    def total(self) -> float:
        """How many values there are."""
        return float(self.weights.sum())

    @property
    def bound(self) -> float:
        """A magnitude beyond all values."""
        return 2 * float(max(-self.lefts[0], self.rights[-1], 0.0)) + 1.0

    def count_up_to(self, bounds: Floats) -> Floats:
        """Return how many values do not exceed each bound."""
        return self.moments(bounds)[0]

    def quantile(self, share: float) -> float:
        """Return the value that this share of all values does not exceed, between neighbours."""
        # The values of a bin stand in the middle of equal parts of it; so do the first and last.
        half = np.minimum(self.weights, 1.0) / 2
        inset = self._widths * np.divide(half, self.weights, out=half * 0, where=self.weights > 0)
        before = self._sums[0]
        ranks = np.stack([before + half, before + self.weights - half], axis=1)
        values = np.stack([self.lefts + inset, self.rights - inset], axis=1)
        rank = share * (self.total - 1) + 0.5
        return float(np.interp(rank, ranks.ravel(), values.ravel()))

    def moments(self, bounds: Floats) -> tuple[Floats, Floats, Floats]:
        """Return the number, the sum and the sum of squares of the values up to each bound."""
        bins = np.maximum(np.searchsorted(self.lefts, bounds, side="right") - 1, 0)
        left, width = self.lefts[bins], self._widths[bins]
        reach = np.clip(bounds - left, 0.0, width)
        # A bin without width is a single value: it is below the bound, or it is not.
        mass = self._densities[bins] * reach + self._points[bins] * (bounds >= left)
        return (
            self._sums[0][bins] + mass,
            self._sums[1][bins] + mass * (left + reach / 2),
            self._sums[2][bins] + mass * (left * left + reach * (left + reach / 3)),
        )

    @cached_property
    def _widths(self) -> Floats:
        return self.rights - self.lefts

    @cached_property
    def _densities(self) -> Floats:
        wide = self._widths > 0
        return np.divide(self.weights, self._widths, out=np.zeros_like(self.weights), where=wide)

    @cached_property
    def _points(self) -> Floats:
        return np.where(self._widths > 0, 0.0, self.weights)

    @cached_property
    def _sums(self) -> Floats:
        """Number, sum and sum of squares of all values before each bin."""
        left, width = self.lefts, self._widths
        squares = left * left + width * (left + width / 3)
        each = self.weights * np.stack([np.ones_like(left), left + width / 2, squares])
        return np.cumsum(each, axis=1) - each


def build_histogram(summary: Summary) -> Histogram:
    """Return the distribution of a tensor's values."""
    table = _key_weights(summary)
    # Negative numbers rise with falling keys; both zeros make one bin.
    table[0] += table[SIGN_KEY]
    keys = np.concatenate(
        [np.arange(SIGN_KEY + INFINITY_KEY, SIGN_KEY, -1), np.arange(INFINITY_KEY)]
    )
    return _bins(keys[table[keys] > 0], table, summary.low, summary.high)


def build_magnitude_histogram(summary: Summary) -> Histogram:
    """Return the distribution of the magnitudes of a tensor's values."""
    halves = _key_weights(summary).reshape(2, SIGN_KEY)
    table = halves.sum(axis=0)
    keys = np.flatnonzero(table)
    nearest = max(summary.low, -summary.high, 0.0)
    return _bins(keys, table, nearest, max(-summary.low, summary.high))


def _key_weights(summary: Summary) -> Floats:
    """Return for each key how many finite values it stands for, sampled or extremes of an image."""
    inner = np.zeros(KEY_COUNT)
    inner[summary.counts.keys] = summary.counts.occurrences
    inner.reshape(2, SIGN_KEY)[:, INFINITY_KEY:] = 0
    finite = summary.finite
    extremes = count_keys([float_keys(summary.lows[finite]), float_keys(summary.highs[finite])])
    drawn_from = max(0, summary.size - extremes.total)
    inner *= drawn_from / max(1.0, inner.sum())
    inner[extremes.keys] += extremes.occurrences
    return inner


def _bins(keys: NDArray[np.int64], table: Floats, low: float, high: float) -> Histogram:
    if not keys.size:
        return Histogram(np.zeros(1), np.zeros(1), np.zeros(1))
    near, far = (_key_values((keys & (SIGN_KEY - 1)) + step) for step in (0, 1))
    far[keys & (SIGN_KEY - 1) == 0] = 0.0
    negative = keys >= SIGN_KEY
    lefts, rights = np.where(negative, -far, near), np.where(negative, -near, far)
    return Histogram(np.clip(lefts, low, high), np.clip(rights, low, high), table[keys])


def _key_values(keys: NDArray[np.int64]) -> Floats:
    return (keys.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def equal_width_counts(summary: Summary, count: int) -> Floats:
    """Return how many values fall in each of `count` equal parts from the lowest to the highest."""
    seen = build_histogram(summary)
    ends = np.linspace(summary.low, summary.high, count + 1)
    # Rounded a little too low, the last end would leave the highest value out.
    ends[-1] = seen.bound
    bounds = seen.count_up_to(ends)
    bounds[0] = 0.0
    return np.diff(bounds)


def clipped_share(summary: Summary, limits: Range) -> float:
    """Return which share of all values lies outside of a range."""
    seen = build_histogram(summary)
    if not seen.total:
        return 0.0
    # The next number below `low`, so that values on it count as kept.
    ends = np.array([np.nextafter(limits.low, -np.inf), limits.high])
    below, up_to = seen.count_up_to(ends)
    return float(np.clip((below + seen.total - up_to) / seen.total, 0.0, 1.0))


def range_drift(summary: Summary) -> float:
    """Return how far the ends moved from the third quarter of the images to the last.

    Each end is averaged over the images of a quarter; the larger of the two moves is given as a
    share of the span. Below 8 images there are no quarters to speak of, and the answer is 1.
    """
    finite = summary.finite
    ends = np.stack([summary.lows[finite], summary.highs[finite]]).astype(np.float64)
    quarter = ends.shape[1] // 4
    if quarter < 2:
        return 1.0
    before = ends[:, -2 * quarter : -quarter].mean(axis=1)
    after = ends[:, -quarter:].mean(axis=1)
    span = max(before[1], after[1]) - min(before[0], after[0])
    return float(np.abs(after - before).max() / span) if span else 0.0
