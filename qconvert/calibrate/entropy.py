"""The threshold that keeps most information: least Kullback-Leibler divergence when rounded.

TensorRT's method (Migacz, GTC 2017): of 2,048 bins of magnitude the first i are kept, the values
beyond join the last of them, and the distribution is compared with itself merged into as many
groups as the grid has magnitudes. Two changes:

- Each candidate is worth a few sums over its groups, taken from running sums, so all 1,900 cost
  milliseconds.
- The bin at zero counts like its neighbour. A `Relu` puts half of all values there; counted, they
  are merged with a few small ones and that loss outweighs whatever is clipped, so that the
  threshold collapses (a rectified normal distribution fell from 40 to 18 dB).
"""

import numpy as np
from numpy.typing import NDArray

from qconvert.calibrate.histogram import Floats, Histogram, build_magnitude_histogram
from qconvert.calibrate.summary import Summary
from qconvert.core.scales import Grid, Range

BINS = 2048


def entropy(summary: Summary, grid: Grid) -> Range:
    """Return the range of least divergence, both sides cut at the same magnitude."""
    largest = max(abs(summary.low), abs(summary.high))
    if largest == 0:
        return Range(0.0, 0.0)
    one_sided = not grid.symmetric and (summary.low >= 0 or summary.high <= 0)
    groups = grid.levels if one_sided else grid.levels // 2
    kept = best_bin_count(magnitude_bins(build_magnitude_histogram(summary), largest), groups)
    threshold = largest * kept / BINS
    return Range(max(summary.low, -threshold), min(summary.high, threshold))


def magnitude_bins(seen: Histogram, largest: float) -> Floats:
    """Return how many magnitudes fall in each of the bins, zero counted like its neighbour."""
    bins = np.diff(seen.count_up_to(np.linspace(0.0, largest, BINS + 1)), prepend=0.0)[1:]
    bins[0] = bins[1]
    return bins


def best_bin_count(bins: Floats, groups: int) -> int:
    """Return how many bins to keep; of equal choices the most."""
    cuts = np.arange(groups, bins.size + 1, dtype=np.int64)
    divergence = kl_divergences(bins, cuts, groups)
    return int(cuts[divergence <= divergence.min() + 1e-12][-1])


def kl_divergences(bins: Floats, cuts: NDArray[np.int64], groups: int) -> Floats:
    """Return KL(P || Q) for each number of bins kept; infinite where Q is zero and P is not."""
    total = bins.sum()
    running = np.concatenate([[0.0], np.cumsum(bins)])
    filled = np.concatenate([[0], np.cumsum(bins > 0)])
    own = np.concatenate([[0.0], np.cumsum(_x_log_x(bins))])
    kept, last = running[cuts], bins[cuts - 1]
    beyond = total - kept
    edges = cuts[:, np.newaxis] * np.arange(groups + 1) // groups
    mass = np.diff(running[edges], axis=1)
    spread = np.log(np.maximum(mass, 1e-300) / np.maximum(np.diff(filled[edges], axis=1), 1))
    mass[:, -1] += beyond
    own_sum = own[cuts] - _x_log_x(last) + _x_log_x(last + beyond)
    with np.errstate(divide="ignore"):
        found = (own_sum - (mass * spread).sum(axis=1)) / total - np.log(total) + np.log(kept)
    impossible = ((last == 0) & (beyond > 0)) | (kept == 0)
    return np.where(impossible, np.inf, found)


def _x_log_x(values: Floats) -> Floats:
    return values * np.log(np.where(values > 0, values, 1.0))
