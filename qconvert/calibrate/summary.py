"""The statistics of one tensor: small, mergeable, and independent of the image order.

Its histogram takes values as spread evenly over their bin. The outermost bins end at the exact
extremes, so mass that sits on an extreme, as after a `Clip`, stays there.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qconvert.core.scales import Range

Floats = NDArray[np.float64]

# The key of a value is the upper half of its float32: sign, exponent and 7 mantissa bits. No range
# has to be chosen in advance, the resolution is 0.8 % everywhere, and counts merge by addition.
KEY_COUNT = 1 << 16
SIGN_KEY = 0x8000
INFINITY_KEY = 0x7F80
NAN_KEY = 0x7FC0


@dataclass(frozen=True, eq=False)
class FloatCounts:
    """How often values occur: the keys in rising order, and the occurrences of each."""

    keys: NDArray[np.uint16]
    occurrences: NDArray[np.int64]

    def __add__(self, other: "FloatCounts") -> "FloatCounts":
        keys, places = np.unique(np.concatenate([self.keys, other.keys]), return_inverse=True)
        occurrences = np.zeros(keys.size, dtype=np.int64)
        np.add.at(occurrences, places, np.concatenate([self.occurrences, other.occurrences]))
        return FloatCounts(keys, occurrences)

    @property
    def total(self) -> int:
        """The number of values."""
        return int(self.occurrences.sum())

    def count_of(self, *keys: int) -> int:
        """Return how many values have one of these keys."""
        return int(self.occurrences[np.isin(self.keys, keys)].sum())


def count_keys(parts: Sequence[NDArray[np.uint16]]) -> FloatCounts:
    """Count the keys of all parts."""
    table = np.bincount(np.concatenate([np.zeros(0, np.uint16), *parts]), minlength=KEY_COUNT)
    keys = np.flatnonzero(table)
    return FloatCounts(keys.astype(np.uint16), table[keys].astype(np.int64))


def float_keys(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Return the key of each value; all NaNs share one."""
    keys = (np.ascontiguousarray(values).view(np.uint32) >> 16).astype(np.uint16)
    if not np.isfinite(values).all():
        keys[np.isnan(values)] = NAN_KEY
    return keys


@dataclass(frozen=True, eq=False)
class Summary:
    """The statistics of one tensor.

    `lows` and `highs` are the exact extremes of each image, in the order of the images; both are
    NaN for an image in which the tensor was not finite. `counts` holds sampled values without the
    two extremes of their image. `size` is the number of values that the sample was drawn from, 0
    for a tensor of which only extremes were collected. `channel_lows` and `channel_highs` are the
    extremes over the finite images; a tensor without channels has one channel.
    """

    lows: NDArray[np.float32]
    highs: NDArray[np.float32]
    counts: FloatCounts
    size: int
    channel_lows: NDArray[np.float32]
    channel_highs: NDArray[np.float32]

    @property
    def low(self) -> float:
        """The smallest value, exactly; 0 if no image was finite."""
        finite = self.lows[self.finite]
        return float(finite.min()) if finite.size else 0.0

    @property
    def high(self) -> float:
        """The largest value, exactly; 0 if no image was finite."""
        finite = self.highs[self.finite]
        return float(finite.max()) if finite.size else 0.0

    @property
    def finite(self) -> NDArray[np.bool_]:
        """For each image, whether the tensor held neither NaN nor infinity."""
        return ~np.isnan(self.lows)

    @property
    def channel_maxima(self) -> NDArray[np.float32]:
        """The largest magnitude in each channel."""
        return np.maximum(np.abs(self.channel_lows), np.abs(self.channel_highs))


def merge_summaries(a: Summary, b: Summary, order: NDArray[np.intp]) -> Summary:
    """Add two summaries of one tensor; `order` sorts the images of `a` followed by those of `b`."""
    return Summary(
        np.concatenate([a.lows, b.lows])[order],
        np.concatenate([a.highs, b.highs])[order],
        a.counts + b.counts,
        a.size + b.size,
        np.minimum(a.channel_lows, b.channel_lows),
        np.maximum(a.channel_highs, b.channel_highs),
    )


class Histogram:
    """Disjoint bins in rising order, and how many values of the tensor each stands for."""

    def __init__(self, lefts: Floats, rights: Floats, weights: Floats) -> None:
        self.lefts, self.rights, self.weights = lefts, rights, weights
        self.total = float(weights.sum())
        # A magnitude beyond all values.
        self.bound = 2 * float(max(-lefts[0], rights[-1], 0.0)) + 1.0
        self.widths = rights - lefts
        wide = self.widths > 0
        self.densities = np.divide(weights, self.widths, out=np.zeros_like(weights), where=wide)
        self.points = np.where(wide, 0.0, weights)
        # Number, sum and sum of squares of all values before each bin.
        squares = lefts * lefts + self.widths * (lefts + self.widths / 3)
        moments = weights * np.stack([np.ones_like(lefts), lefts + self.widths / 2, squares])
        self.sums = np.cumsum(moments, axis=1) - moments

    def moments(self, bounds: Floats) -> tuple[Floats, Floats, Floats]:
        """Return the number, the sum and the sum of squares of the values up to each bound."""
        bins = np.maximum(np.searchsorted(self.lefts, bounds, side="right") - 1, 0)
        left, width = self.lefts[bins], self.widths[bins]
        reach = np.clip(bounds - left, 0.0, width)
        # A bin without width is a single value: it is below the bound, or it is not.
        mass = self.densities[bins] * reach + self.points[bins] * (bounds >= left)
        return (
            self.sums[0][bins] + mass,
            self.sums[1][bins] + mass * (left + reach / 2),
            self.sums[2][bins] + mass * (left * left + reach * (left + reach / 3)),
        )

    def count_up_to(self, bounds: Floats) -> Floats:
        """Return how many values do not exceed each bound."""
        return self.moments(bounds)[0]

    def quantile(self, share: float) -> float:
        """Return the value that this share of all values does not exceed, interpolated."""
        # The values of a bin stand in the middle of equal parts of it; so do the first and last.
        half = np.minimum(self.weights, 1.0) / 2
        inset = self.widths * np.divide(half, self.weights, out=half * 0, where=self.weights > 0)
        before = self.sums[0]
        ranks = np.stack([before + half, before + self.weights - half], axis=1)
        values = np.stack([self.lefts + inset, self.rights - inset], axis=1)
        rank = share * (self.total - 1) + 0.5
        return float(np.interp(rank, ranks.ravel(), values.ravel()))


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
