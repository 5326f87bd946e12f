"""The bootstrap over pictures: how much a change would vary with other pictures of the same kind."""

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
