"""The distribution of a tensor's values, as far as calibration sampled it.

Values are taken as spread evenly over their bin. The outermost bins end at the exact extremes, so
mass that sits on an extreme, as after a `Clip`, stays there.
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
        """The number of values."""
        return float(self.weights.sum())

    @property
    def bound(self) -> float:
        """A magnitude beyond all values."""
        return 2 * float(max(-self.lefts[0], self.rights[-1], 0.0)) + 1.0

    def count_up_to(self, bounds: Floats) -> Floats:
        """Return how many values do not exceed each bound."""
        return self.moments(bounds)[0]

    def quantile(self, share: float) -> float:
        """Return the value that this share of all values does not exceed, interpolated."""
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
        moments = self.weights * np.stack([np.ones_like(left), left + width / 2, squares])
        return np.cumsum(moments, axis=1) - moments


def build_histogram(summary: Summary) -> Histogram:
    """Return the distribution of a tensor's values."""
    weights = _key_weights(summary)
    # Negative numbers rise with falling keys; both zeros make one bin.
    weights[0] += weights[SIGN_KEY]
    keys = np.concatenate(
        [np.arange(SIGN_KEY + INFINITY_KEY, SIGN_KEY, -1), np.arange(INFINITY_KEY)]
    )
    return _bins(keys[weights[keys] > 0], weights, summary.low, summary.high)


def build_magnitude_histogram(summary: Summary) -> Histogram:
    """Return the distribution of the magnitudes of a tensor's values."""
    weights = _key_weights(summary).reshape(2, SIGN_KEY).sum(axis=0)
    smallest = max(summary.low, -summary.high, 0.0)
    largest = max(-summary.low, summary.high)
    return _bins(np.flatnonzero(weights), weights, smallest, largest)


def equal_width_counts(summary: Summary, count: int) -> Floats:
    """Return how many values fall in each of `count` equal parts from the lowest to the highest."""
    histogram = build_histogram(summary)
    edges = np.linspace(summary.low, summary.high, count + 1)
    # Rounded a little too low, the last edge would leave the highest value out.
    edges[-1] = histogram.bound
    counts = histogram.count_up_to(edges)
    counts[0] = 0.0
    return np.diff(counts)


def clipped_share(summary: Summary, limits: Range) -> float:
    """Return which share of all values lies outside of a range."""
    histogram = build_histogram(summary)
    if not histogram.total:
        return 0.0
    # The next number below `low`, so that values on it count as inside.
    edges = np.array([np.nextafter(limits.low, -np.inf), limits.high])
    below, up_to = histogram.count_up_to(edges)
    return float(np.clip((below + histogram.total - up_to) / histogram.total, 0.0, 1.0))


def range_drift(summary: Summary) -> float:
    """Return how far the extremes moved from the third quarter of the images to the last.

    Each extreme is averaged over the images of a quarter; the larger of the two moves is given as
    a share of the span. With fewer than 8 images there are no quarters, and the result is 1.
    """
    extremes = np.stack([summary.lows, summary.highs])[:, summary.finite].astype(np.float64)
    quarter = extremes.shape[1] // 4
    if quarter < 2:
        return 1.0
    before = extremes[:, -2 * quarter : -quarter].mean(axis=1)
    after = extremes[:, -quarter:].mean(axis=1)
    span = max(before[1], after[1]) - min(before[0], after[0])
    return float(np.abs(after - before).max() / span) if span else 0.0


def _key_weights(summary: Summary) -> Floats:
    """Return for each key how many finite values it stands for, samples and image extremes."""
    weights = np.zeros(KEY_COUNT)
    weights[summary.counts.keys] = summary.counts.occurrences
    weights.reshape(2, SIGN_KEY)[:, INFINITY_KEY:] = 0
    finite = summary.finite
    extremes = count_keys([float_keys(summary.lows[finite]), float_keys(summary.highs[finite])])
    population = max(0, summary.size - extremes.total)
    weights *= population / max(1.0, weights.sum())
    weights[extremes.keys] += extremes.occurrences
    return weights


def _bins(keys: NDArray[np.int64], weights: Floats, low: float, high: float) -> Histogram:
    if not keys.size:
        return Histogram(np.zeros(1), np.zeros(1), np.zeros(1))
    magnitudes = (keys & (SIGN_KEY - 1)).astype(np.uint32)
    edges = np.stack([magnitudes, magnitudes + 1]) << 16
    inner, outer = edges.view(np.float32).astype(np.float64)
    outer[magnitudes == 0] = 0.0
    negative = keys >= SIGN_KEY
    lefts, rights = np.where(negative, -outer, inner), np.where(negative, -inner, outer)
    return Histogram(np.clip(lefts, low, high), np.clip(rights, low, high), weights[keys])
