"""How far the answers of a rewritten network are from those of the network it was made from."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qconvert.feeds import Feeds

Numbers = NDArray[np.float64]


def distance(wanted: Sequence[Feeds], got: Sequence[Feeds]) -> float:
    """Return the mean over all outputs of how far they are from what is wanted.

    A row of scores counts with the KL divergence of its probabilities, all else with its squared
    error relative to its squares, and integers with the share of those that changed. Infinite
    where an answer is not finite.
    """
    names = list(wanted[0])
    far = [
        _far(
            np.concatenate([np.asarray(feeds[name]) for feeds in wanted]),
            np.concatenate([np.asarray(feeds[name]) for feeds in got]),
        )
        for name in names
    ]
    return float(np.mean(far))


def divergence(wanted: NDArray[Any], got: NDArray[Any]) -> float:
    """Return the mean KL divergence of rows of scores, or of probabilities where they are such."""
    before, after = _log_probabilities(wanted), _log_probabilities(got)
    return float((np.exp(before) * (before - after)).sum(axis=1).mean())


def _far(wanted: NDArray[Any], got: NDArray[Any]) -> float:
    if wanted.dtype.kind not in "f":
        return float(np.mean(wanted != got))
    a, b = wanted.astype(np.float64), got.astype(np.float64)
    if not np.isfinite(b).all():
        return float("inf")
    if a.ndim == 2 and a.shape[1] > 1:
        return divergence(a, b)
    power = float(np.square(a).sum())
    return float(np.square(a - b).sum()) / power if power else float(np.abs(b).max(initial=0.0))


def _log_probabilities(scores: Numbers) -> Numbers:
    scores = scores.astype(np.float64)
    if (scores >= 0).all() and np.allclose(scores.sum(axis=1), 1.0, atol=1e-3):
        scores = np.log(np.maximum(scores, 1e-12))
    shifted = scores - scores.max(axis=1, keepdims=True)
    logs: Numbers = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return logs
