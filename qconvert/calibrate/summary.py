"""What calibration keeps of one tensor: small, and the same whatever the order of the images."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qconvert.calibrate.counts import Counts
from qconvert.calibrate.exact_sum import ExactSum


@dataclass(frozen=True, eq=False)
class Channels:
    """What was seen of each channel, over the images in which the tensor was finite."""

    lows: NDArray[np.float32]
    highs: NDArray[np.float32]
    sums: ExactSum  # of the means of the images

    def __add__(self, other: "Channels") -> "Channels":
        return Channels(
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
    """What was seen of one tensor.

    `lows` and `highs` are exact, one each for an image, in the order of the images; both are NaN
    for an image in which the tensor was not finite. `counts` holds sampled values without the two
    extremes of their image, which are known already. `size` is how many values the sample was
    drawn from, 0 for a tensor whose extremes alone were wanted. `channels` has one entry where the
    tensor has no channels.
    """

    lows: NDArray[np.float32]
    highs: NDArray[np.float32]
    counts: Counts
    size: int
    channels: Channels

    @property
    def low(self) -> float:
        """The smallest value, exactly; 0 where no image was finite."""
        finite = self.lows[self.finite]
        return float(finite.min()) if finite.size else 0.0

    @property
    def high(self) -> float:
        """The largest value, exactly; 0 where no image was finite."""
        finite = self.highs[self.finite]
        return float(finite.max()) if finite.size else 0.0

    @property
    def finite(self) -> NDArray[np.bool_]:
        """For each image, whether the tensor held neither NaN nor infinity."""
        return ~np.isnan(self.lows)

    @property
    def channel_means(self) -> NDArray[np.float64]:
        """The mean of each channel, every image weighing the same."""
        return self.channels.sums.value() / max(1, int(self.finite.sum()))


def merge(a: Summary, b: Summary, order: NDArray[np.intp]) -> Summary:
    """Add two summaries of one tensor; `order` sorts the images of `a` followed by those of `b`."""
    return Summary(
        np.concatenate([a.lows, b.lows])[order],
        np.concatenate([a.highs, b.highs])[order],
        a.counts + b.counts,
        a.size + b.size,
        a.channels + b.channels,
    )
