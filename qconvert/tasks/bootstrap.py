"""Intervals of a change over the same images: of counted answers, and by the bootstrap."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray


def resample_counts(images: int, resamples: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Yield how often each image is drawn, as often as there are images, with replacement."""
    generator = np.random.default_rng(seed)
    for _ in range(resamples):
        drawn = generator.integers(0, images, images)
        yield np.bincount(drawn, minlength=images)


def half_width(changes: Sequence[float], observations: int) -> float:
    """Return half the width of a 95 % interval: 1.96 standard deviations of a change.

    `changes` are those of the resamples. To the `observations` behind them one lost and one won are
    added, as in the adjusted Wald interval for paired proportions (Bonett and Price 2012): so the
    interval has a width where no change was seen, which vanishes with many observations.
    """
    variance = float(np.var(changes, ddof=1)) if len(changes) > 1 else 0.0
    return 1.96 * math.sqrt(variance + 2 / (observations + 2) ** 2)


def paired_change(lost: int, won: int, images: int) -> tuple[float, float]:
    """Return a change of correct answers in percentage points, and half its 95 % interval.

    `lost` images were right only before, `won` only after. It is the adjusted Wald interval for
    paired proportions (Bonett and Price 2012): one lost and one won image are added to the counts.
    So it has a width where no prediction changed, covers 95 % from some dozens of images on, and
    approaches the usual one for many.
    """
    count = images + 2
    losing, winning = (lost + 1) / count, (won + 1) / count
    variance = (losing + winning - (winning - losing) ** 2) / count
    return 100 * (won - lost) / images, 196 * math.sqrt(variance)
