"""The summary of one tensor while images come in, batch after batch in any order."""

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from qconvert.calibrate.summary import (
    ChannelSummary,
    Summary,
    count_keys,
    float_keys,
    merge_summaries,
    sum_exactly,
)

# Batches wait until there are enough of them to be worth a table of 65,536 keys.
MAX_PENDING_VALUES = 1 << 17
MAX_PENDING_BATCHES = 64


@dataclass(frozen=True)
class BatchStatistics:
    """What a run said about a tensor: by image and channel, and sampled values by image."""

    lows: NDArray[np.float32]
    highs: NDArray[np.float32]
    means: NDArray[np.float32]
    sample: NDArray[np.float32] | None
    size: int


@dataclass
class SummaryBuilder:
    """What was seen so far; the images stand in the order they came."""

    _settled: Summary | None = None
    _waiting: list[BatchStatistics] = field(default_factory=list)
    _values: int = 0

    def add(self, seen: BatchStatistics) -> None:
        """Add a batch."""
        self._waiting.append(seen)
        self._values += 0 if seen.sample is None else seen.sample.size
        if self._values >= MAX_PENDING_VALUES or len(self._waiting) >= MAX_PENDING_BATCHES:
            self._settle()

    def summary(self, order: NDArray[np.intp]) -> Summary:
        """Return the summary of all batches, of which there is one at least, images in order."""
        self._settle()
        assert self._settled is not None, "there was no batch"
        lows, highs = self._settled.lows[order], self._settled.highs[order]
        return replace(self._settled, lows=lows, highs=highs)

    def _settle(self) -> None:
        if not self._waiting:
            return
        part = _summarize(self._waiting)
        if self._settled is not None:
            images = np.arange(self._settled.lows.size + part.lows.size)
            part = merge_summaries(self._settled, part, images)
        self._settled, self._waiting, self._values = part, [], 0


def _summarize(batches: list[BatchStatistics]) -> Summary:
    lows = np.concatenate([seen.lows for seen in batches])
    highs = np.concatenate([seen.highs for seen in batches])
    means = np.concatenate([seen.means for seen in batches])
    # A minimum may pass over NaN, a mean never does.
    finite = np.isfinite(np.concatenate([lows, highs, means], axis=1)).all(axis=1)
    channels = ChannelSummary(
        lows[finite].min(axis=0, initial=np.float32(np.inf)),
        highs[finite].max(axis=0, initial=-np.float32(np.inf)),
        sum_exactly(means[finite]),
    )
    least = np.where(finite, lows.min(axis=1), np.float32(np.nan))
    largest = np.where(finite, highs.max(axis=1), np.float32(np.nan))
    sampled = [seen for seen in batches if seen.sample is not None]
    keys = [_sampled_keys(seen) for seen in sampled]
    size = sum(seen.size * len(seen.lows) for seen in sampled)
    return Summary(least, largest, count_keys(keys), size, channels)


def _sampled_keys(seen: BatchStatistics) -> NDArray[np.uint16]:
    """Return the keys of sampled values, the two extremes of each image left out if drawn.

    The extremes are known exactly. Left in, one that happens to be drawn would stand for as many
    values as any other, and the rare large values decide where a range ends.
    """
    assert seen.sample is not None, "only sampled tensors are counted"
    keep = np.ones(seen.sample.shape, dtype=np.bool_)
    rows = np.arange(len(keep))
    for extremes in (seen.lows.min(axis=1), seen.highs.max(axis=1)) if keep.size else ():
        hit = seen.sample == np.where(np.isfinite(extremes), extremes, np.nan)[:, np.newaxis]
        first = hit.argmax(axis=1)
        keep[rows, first] &= ~hit[rows, first]
    return float_keys(seen.sample)[keep]
