"""Factors for channels, chosen by the error that rounding them is expected to make.

The step of a tensor follows its largest channel, and so does its error in every channel, which the
weights behind it multiply. A factor that makes a large channel smaller makes weights larger, whose
own steps grow with them. Between the two each tensor takes the best of a few compromises.
"""

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from qconvert.calibrate.summary import Summary
from qconvert.graph.observed import Observed
from qconvert.quantize.equalize import Reader, Site, channels, columns, sites
from qconvert.scales import Floats

# How much of the difference between channels is taken out of the tensor, and put into weights.
SHARES = (0.25, 0.5, 0.75, 1.0)
# A tensor gets factors only where its expected error falls to this.
WORTH_IT = 0.8
# Channels are brought no closer than this, so that those that hardly ever answer stay small.
FURTHEST = 64.0
# How much larger than calibration saw a channel may become before a ceiling cuts it.
HEADROOM = 2.0
# The mean square of a channel, as a share of the square of its largest value.
MEAN_SQUARE = 0.1
DIGITS = 4


def choose(
    graph: ir.Graph, observed: Observed, summaries: Mapping[str, Summary]
) -> dict[str, tuple[float, ...]]:
    """Return factors for the tensors where they are expected to help."""
    found: dict[str, tuple[float, ...]] = {}
    for site in sites(graph):
        name = str(site.tensor.name)
        seen = summaries.get(observed.shares.get(name, name))
        if (
            seen is None
            or not seen.finite.all()
            or seen.channels.largest.shape != (channels(site),)
        ):
            continue
        factors = _best(site, np.abs(seen.channels.largest).astype(np.float32))
        if factors is not None:
            found[name] = tuple(float(f"{each:.{DIGITS}g}") for each in factors)
    return found


def _best(site: Site, largest: Floats) -> Floats | None:
    """Return the factors with the least expected error, None where those of 1 are as good."""
    if not largest.any():
        return None
    plain = _error(site, largest, np.ones_like(largest))
    tried = [_factors(site, largest, share) for share in SHARES]
    errors = [_error(site, largest, each) for each in tried]
    best = int(np.argmin(errors))
    return tried[best] if errors[best] < WORTH_IT * plain else None


def _factors(site: Site, largest: Floats, share: float) -> Floats:
    """Return factors that take so much of the difference between channels out of the tensor."""
    alive = largest > 0
    top = largest.max()
    sizes = np.maximum(np.where(alive, largest, top), top / FURTHEST) / top
    weights = _largest_weights(site, len(largest))
    weights = np.where(weights > 0, weights, weights.max() or 1.0)
    weights = np.maximum(weights / weights.max(), 1 / FURTHEST) if weights.max() else weights
    found: Floats = sizes**share / (weights ** (1 - share) if not _all_alone(site) else 1.0)
    found /= (largest / found).max() / top
    if site.ceiling is None:
        return found
    room = HEADROOM * largest / site.ceiling
    cut: Floats = np.where(room < 1, np.clip(found, np.minimum(room, 1), 1), 1)
    return cut


def _error(site: Site, largest: Floats, factors: Floats) -> float:
    """Return the expected square of the error behind a site, in steps of the whole range."""
    sizes = largest / factors
    error = 0.0
    for reader in site.readers:
        weights = columns(reader) * np.repeat(factors, _times(reader, len(factors)))
        error += float(np.square(sizes.max()) * np.square(weights).sum())
        if not reader.depthwise:
            steps = np.abs(weights).max(axis=1)
            error += float(MEAN_SQUARE * np.square(steps).sum() * np.square(sizes).sum())
    return error


def _largest_weights(site: Site, count: int) -> Floats:
    each = [
        np.abs(columns(reader)).max(axis=0).reshape(count, _times(reader, count)).max(axis=1)
        for reader in site.readers
    ]
    found: Floats = np.max(each, axis=0)
    return found


def _times(reader: Reader, count: int) -> int:
    """Return how many filters each channel has."""
    return int(columns(reader).shape[1]) // count


def _all_alone(site: Site) -> bool:
    """Whether every weight meets one channel, so that its own step takes any factor."""
    return all(each.depthwise for each in site.readers)
