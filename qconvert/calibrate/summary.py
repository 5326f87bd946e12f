"""The statistics of one tensor: small, mergeable, and independent of the image order."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# The key of a value is the upper half of its float32: sign, exponent and 7 mantissa bits. No range
# has to be chosen in advance, the resolution is 0.8 % everywhere, and counts merge by addition.
KEY_COUNT = 1 << 16
SIGN_KEY = 0x8000
INFINITY_KEY = 0x7F80
NAN_KEY = 0x7FC0

# An exact sum counts quanta of 2^-52 in two int64 limbs: `fine` holds the lower 42 bits.
COARSE_BITS = 10
FINE_BITS = 42
LARGEST_TERM = 2.0**36


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
class ExactSum:
    """One sum per channel that does not depend on the order of its terms, to the last bit.

    The sum is `coarse` * 2^-10 + `fine` * 2^-52, with `fine` below 2^42, so equal sums have equal
    limbs. A term is rounded down to a quantum first: a mean is off by at most 2^-52.
    """

    coarse: NDArray[np.int64]
    fine: NDArray[np.int64]

    def __add__(self, other: "ExactSum") -> "ExactSum":
        fine = self.fine + other.fine
        return ExactSum(
            self.coarse + other.coarse + (fine >> FINE_BITS), fine & ((1 << FINE_BITS) - 1)
        )

    def to_float(self) -> NDArray[np.float64]:
        """Return the sums as floating point numbers."""
        fine = np.ldexp(self.fine.astype(np.float64), -COARSE_BITS - FINE_BITS)
        return np.ldexp(self.coarse.astype(np.float64), -COARSE_BITS) + fine


def sum_exactly(terms: NDArray[np.float32]) -> ExactSum:
    """Add up to 2^16 finite terms over the first axis; terms beyond ±2^36 count as ±2^36."""
    scaled = np.ldexp(np.clip(terms.astype(np.float64), -LARGEST_TERM, LARGEST_TERM), COARSE_BITS)
    whole = np.floor(scaled)
    rest = np.floor(np.ldexp(scaled - whole, FINE_BITS))
    zero = np.zeros(terms.shape[1:], dtype=np.int64)
    total = ExactSum(whole.astype(np.int64).sum(axis=0), rest.astype(np.int64).sum(axis=0))
    return total + ExactSum(zero, zero)  # which carries


@dataclass(frozen=True, eq=False)
class ChannelSummary:
    """Extremes and sums of each channel, over the images in which the tensor was finite."""

    lows: NDArray[np.float32]
    highs: NDArray[np.float32]
    sums: ExactSum  # of the means of the images

    def __add__(self, other: "ChannelSummary") -> "ChannelSummary":
        return ChannelSummary(
            np.minimum(self.lows, other.lows),
            np.maximum(self.highs, other.highs),
            self.sums + other.sums,
        )

    @property
    def largest(self) -> NDArray[np.float32]:
        """The largest magnitude in each channel."""
        return np.maximum(np.abs(self.lows), np.abs(self.highs))


@dataclass(frozen=True, eq=False)
class Summary:
    """The statistics of one tensor.

    `lows` and `highs` are the exact extremes of each image, in the order of the images; both are
    NaN for an image in which the tensor was not finite. `counts` holds sampled values without the
    two extremes of their image. `size` is the number of values that the sample was drawn from, 0
    for a tensor of which only extremes were collected. A tensor without channels has one channel.
    """

    lows: NDArray[np.float32]
    highs: NDArray[np.float32]
    counts: FloatCounts
    size: int
    channels: ChannelSummary

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
    def channel_means(self) -> NDArray[np.float64]:
        """The mean of each channel, every image weighing the same."""
        return self.channels.sums.to_float() / max(1, int(self.finite.sum()))


def merge_summaries(a: Summary, b: Summary, order: NDArray[np.intp]) -> Summary:
    """Add two summaries of one tensor; `order` sorts the images of `a` followed by those of `b`."""
    return Summary(
        np.concatenate([a.lows, b.lows])[order],
        np.concatenate([a.highs, b.highs])[order],
        a.counts + b.counts,
        a.size + b.size,
        a.channels + b.channels,
    )
