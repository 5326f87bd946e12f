"""Build the summary of one tensor from batches of images that come in any order."""

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
    """One tensor in one batch: extremes and means by image and channel, samples by image."""

    lows: NDArray[np.float32]
    highs: NDArray[np.float32]
    means: NDArray[np.float32]
    sample: NDArray[np.float32] | None
    size: int


@dataclass
class SummaryBuilder:
    """Collects batches; the images stand in the order they came."""

    _summary: Summary | None = None
    _pending: list[BatchStatistics] = field(default_factory=list)
    _pending_values: int = 0

    def add(self, batch: BatchStatistics) -> None:
        """Add a batch."""
        self._pending.append(batch)
        self._pending_values += 0 if batch.sample is None else batch.sample.size
        full = self._pending_values >= MAX_PENDING_VALUES
        if full or len(self._pending) >= MAX_PENDING_BATCHES:
            self._merge_pending()

    def summary(self, order: NDArray[np.intp]) -> Summary:
        """Return the summary of at least one batch, the images in the given order."""
        self._merge_pending()
        assert self._summary is not None, "there was no batch"
        lows, highs = self._summary.lows[order], self._summary.highs[order]
        return replace(self._summary, lows=lows, highs=highs)

    def _merge_pending(self) -> None:
        if not self._pending:
            return
        summary = _summarize(self._pending)
        if self._summary is not None:
            order = np.arange(self._summary.lows.size + summary.lows.size)
            summary = merge_summaries(self._summary, summary, order)
        self._summary, self._pending, self._pending_values = summary, [], 0


def _summarize(batches: list[BatchStatistics]) -> Summary:
    lows = np.concatenate([batch.lows for batch in batches])
    highs = np.concatenate([batch.highs for batch in batches])
    means = np.concatenate([batch.means for batch in batches])
    # A minimum may pass over NaN, a mean never does.
    finite = np.isfinite(np.concatenate([lows, highs, means], axis=1)).all(axis=1)
    channels = ChannelSummary(
        lows[finite].min(axis=0, initial=np.float32(np.inf)),
        highs[finite].max(axis=0, initial=-np.float32(np.inf)),
        sum_exactly(means[finite]),
    )
    sampled = [batch for batch in batches if batch.sample is not None]
    return Summary(
        np.where(finite, lows.min(axis=1), np.float32(np.nan)),
        np.where(finite, highs.max(axis=1), np.float32(np.nan)),
        count_keys([_sampled_keys(batch) for batch in sampled]),
        sum(batch.size * len(batch.lows) for batch in sampled),
        channels,
    )


def _sampled_keys(batch: BatchStatistics) -> NDArray[np.uint16]:
    """Return the keys of sampled values without the two extremes of each image.

    The extremes are known exactly. Left in, one that happens to be drawn would stand for as many
    values as any other, and the rare large values decide where a range ends.
    """
    assert batch.sample is not None, "only sampled tensors are counted"
    keep = np.ones(batch.sample.shape, dtype=np.bool_)
    rows = np.arange(len(keep))
    for extremes in (batch.lows.min(axis=1), batch.highs.max(axis=1)) if keep.size else ():
        hit = batch.sample == np.where(np.isfinite(extremes), extremes, np.nan)[:, np.newaxis]
        first = hit.argmax(axis=1)
        keep[rows, first] &= ~hit[rows, first]
    return float_keys(batch.sample)[keep]
