"""The threshold that keeps most information: least Kullback-Leibler divergence when quantized.

TensorRT's method (Migacz, "8-bit Inference with TensorRT", GTC 2017): of 2,048 bins of magnitude
the first i are kept and the values beyond join the last of them. The distribution P is compared
with Q, which is P merged into as many groups as the grid has magnitudes:

    KL(P || Q) = sum P log(P / Q), least over i

Two changes:

- Each candidate is a few sums over its groups, taken from running sums, so all 1,900 cost
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
    bins = magnitude_bins(build_magnitude_histogram(summary), largest)
    threshold = largest * best_bin_count(bins, groups) / BINS
    return Range(max(summary.low, -threshold), min(summary.high, threshold))


def magnitude_bins(histogram: Histogram, largest: float) -> Floats:
    """Return how many magnitudes fall in each of the bins, zero counted like its neighbour."""
    edges = np.linspace(0.0, largest, BINS + 1)
    bins = np.diff(histogram.count_up_to(edges), prepend=0.0)[1:]
    bins[0] = bins[1]
    return bins


def best_bin_count(bins: Floats, groups: int) -> int:
    """Return how many bins to keep; of equal choices the most."""
    counts = np.arange(groups, bins.size + 1, dtype=np.int64)
    divergences = kl_divergences(bins, counts, groups)
    return int(counts[divergences <= divergences.min() + 1e-12][-1])


def kl_divergences(bins: Floats, counts: NDArray[np.int64], groups: int) -> Floats:
    """Return KL(P || Q) for each count of kept bins; infinite where Q is zero and P is not."""
    total = bins.sum()
    running = np.concatenate([[0.0], np.cumsum(bins)])
    filled = np.concatenate([[0], np.cumsum(bins > 0)])
    self_terms = np.concatenate([[0.0], np.cumsum(_x_log_x(bins))])
    inside, last = running[counts], bins[counts - 1]
    beyond = total - inside
    edges = counts[:, np.newaxis] * np.arange(groups + 1) // groups
    mass = np.diff(running[edges], axis=1)
    spread = np.log(np.maximum(mass, 1e-300) / np.maximum(np.diff(filled[edges], axis=1), 1))
    mass[:, -1] += beyond
    p_log_p = self_terms[counts] - _x_log_x(last) + _x_log_x(last + beyond)
    with np.errstate(divide="ignore"):
        p_log_q = (mass * spread).sum(axis=1)
        divergences = (p_log_p - p_log_q) / total - np.log(total) + np.log(inside)
    impossible = ((last == 0) & (beyond > 0)) | (inside == 0)
    return np.where(impossible, np.inf, divergences)


def _x_log_x(values: Floats) -> Floats:
    return values * np.log(np.where(values > 0, values, 1.0))
