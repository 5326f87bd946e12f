"""How the values of a tensor are distributed, as far as calibration saw it.

The values of a bin are taken as spread evenly over it. The outermost bins end at the exact
extremes, so mass that sits on an extreme, as after a `Clip`, is where it belongs.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from qconvert.calibrate.counts import INFINITY, KEYS, SIGN, count, keys_of
from qconvert.calibrate.summary import Summary

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
    def reach(self) -> float:
        """A magnitude beyond all values."""
        return 2 * float(max(-self.lefts[0], self.rights[-1], 0.0)) + 1.0

    def below(self, bounds: Floats) -> Floats:
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


def histogram(summary: Summary) -> Histogram:
    """Return the distribution of a tensor's values."""
    table = _table(summary)
    # Negative numbers rise with falling keys; both zeros make one bin.
    table[0] += table[SIGN]
    keys = np.concatenate([np.arange(SIGN + INFINITY, SIGN, -1), np.arange(INFINITY)])
    return _bins(keys[table[keys] > 0], table, summary.low, summary.high)


def magnitudes(summary: Summary) -> Histogram:
    """Return the distribution of the magnitudes of a tensor's values."""
    halves = _table(summary).reshape(2, SIGN)
    table = halves.sum(axis=0)
    keys = np.flatnonzero(table)
    nearest = max(summary.low, -summary.high, 0.0)
    return _bins(keys, table, nearest, max(-summary.low, summary.high))


def _table(summary: Summary) -> Floats:
    """Return for each key how many finite values it stands for, sampled or extremes of an image."""
    inner = np.zeros(KEYS)
    inner[summary.counts.keys] = summary.counts.numbers
    inner.reshape(2, SIGN)[:, INFINITY:] = 0
    finite = summary.finite
    extremes = count([keys_of(summary.lows[finite]), keys_of(summary.highs[finite])])
    drawn_from = max(0, summary.size - extremes.total)
    inner *= drawn_from / max(1.0, inner.sum())
    inner[extremes.keys] += extremes.numbers
    return inner


def _bins(keys: NDArray[np.int64], table: Floats, low: float, high: float) -> Histogram:
    if not keys.size:
        return Histogram(np.zeros(1), np.zeros(1), np.zeros(1))
    near, far = (_value((keys & (SIGN - 1)) + step) for step in (0, 1))
    far[keys & (SIGN - 1) == 0] = 0.0
    negative = keys >= SIGN
    lefts, rights = np.where(negative, -far, near), np.where(negative, -near, far)
    return Histogram(np.clip(lefts, low, high), np.clip(rights, low, high), table[keys])


def _value(keys: NDArray[np.int64]) -> Floats:
    return (keys.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
