"""Factors for channels, chosen by the error that rounding them is expected to make.

The step of a tensor follows its largest channel, and so does its error in every channel, which the
weights behind it multiply. A factor that makes a large channel smaller makes weights larger, whose
own steps grow with them. Between the two each tensor takes the best of a few compromises.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from qconvert import __version__
from qconvert.calibrate.summary import Summary
from qconvert.core import onnx_io
from qconvert.core.cache import Cache
from qconvert.core.progress import Progress
from qconvert.core.scales import FloatArray
from qconvert.graph.observed_tensors import ObservedTensors, find_observed_tensors
from qconvert.optimize.candidate import Candidate, is_better
from qconvert.quantize.cross_layer import (
    ChannelReader,
    EqualizationSite,
    channel_count,
    equalize,
    find_sites,
    reader_matrix,
)
from qconvert.sources import MODEL_FILE

# How much of the difference between channels is taken out of the tensor, and put into weights.
STRENGTHS = (0.25, 0.5, 0.75, 1.0)
# A tensor gets factors only where its expected error falls to this.
MAX_ERROR_RATIO = 0.8
# Channels are brought no closer than this, so that those that hardly ever answer stay small.
MAX_CHANNEL_RATIO = 64.0
# How much larger than calibration saw a channel may become before a ceiling cuts it.
HEADROOM = 2.0
# The mean square of a channel, as a share of the square of its largest value.
MEAN_SQUARE = 0.1
DIGITS = 4


def choose_factors(
    graph: ir.Graph, observed: ObservedTensors, summaries: Mapping[str, Summary]
) -> dict[str, tuple[float, ...]]:
    """Return factors for the tensors where they are expected to help."""
    found: dict[str, tuple[float, ...]] = {}
    for site in find_sites(graph):
        name = str(site.tensor.name)
        seen = summaries.get(observed.aliases.get(name, name))
        if (
            seen is None
            or not seen.finite.all()
            or seen.channels.largest.shape != (channel_count(site),)
        ):
            continue
        factors = _best_factors(site, np.abs(seen.channels.largest).astype(np.float32))
        if factors is not None:
            found[name] = tuple(float(f"{each:.{DIGITS}g}") for each in factors)
    return found


def _best_factors(site: EqualizationSite, largest: FloatArray) -> FloatArray | None:
    """Return the factors with the least expected error, None where those of 1 are as good."""
    if not largest.any():
        return None
    plain = _expected_error(site, largest, np.ones_like(largest))
    tried = [_compute_factors(site, largest, share) for share in STRENGTHS]
    errors = [_expected_error(site, largest, each) for each in tried]
    best = int(np.argmin(errors))
    return tried[best] if errors[best] < MAX_ERROR_RATIO * plain else None


def _compute_factors(site: EqualizationSite, largest: FloatArray, share: float) -> FloatArray:
    """Return factors that take so much of the difference between channels out of the tensor."""
    alive = largest > 0
    top = largest.max()
    sizes = np.maximum(np.where(alive, largest, top), top / MAX_CHANNEL_RATIO) / top
    weights = _largest_weights(site, len(largest))
    weights = np.where(weights > 0, weights, weights.max() or 1.0)
    weights = (
        np.maximum(weights / weights.max(), 1 / MAX_CHANNEL_RATIO) if weights.max() else weights
    )
    found: FloatArray = sizes**share / (weights ** (1 - share) if not _all_depthwise(site) else 1.0)
    found /= (largest / found).max() / top
    if site.ceiling is None:
        return found
    room = HEADROOM * largest / site.ceiling
    cut: FloatArray = np.where(room < 1, np.clip(found, np.minimum(room, 1), 1), 1)
    return cut


def _expected_error(site: EqualizationSite, largest: FloatArray, factors: FloatArray) -> float:
    """Return the expected square of the error behind a site, in steps of the whole range."""
    sizes = largest / factors
    error = 0.0
    for reader in site.readers:
        weights = reader_matrix(reader) * np.repeat(
            factors, _filters_per_channel(reader, len(factors))
        )
        error += float(np.square(sizes.max()) * np.square(weights).sum())
        if not reader.depthwise:
            steps = np.abs(weights).max(axis=1)
            error += float(MEAN_SQUARE * np.square(steps).sum() * np.square(sizes).sum())
    return error


def _largest_weights(site: EqualizationSite, count: int) -> FloatArray:
    each = [
        np.abs(reader_matrix(reader))
        .max(axis=0)
        .reshape(count, _filters_per_channel(reader, count))
        .max(axis=1)
        for reader in site.readers
    ]
    found: FloatArray = np.max(each, axis=0)
    return found


def _filters_per_channel(reader: ChannelReader, count: int) -> int:
    """Return how many filters each channel has."""
    return int(reader_matrix(reader).shape[1]) // count


def _all_depthwise(site: EqualizationSite) -> bool:
    """Whether every weight meets one channel, so that its own step takes any factor."""
    return all(each.depthwise for each in site.readers)


ChosenFactors = Mapping[str, tuple[float, ...]]
STEP = "equalize"


@dataclass(frozen=True)
class Equalized:
    """A study of the model whose channels have factors, or of the model as it was."""

    candidate: Candidate
    factors: ChosenFactors = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def try_equalization(study: Candidate, store: Cache) -> Equalized:
    """Try factors for channels: calibrate again with them, and keep them if that pays."""
    ready, found = study.loaded, study.calibration
    tried = choose_factors(
        ready.model.graph, find_observed_tensors(ready.model), found.training.summaries
    )
    if not tried or found.recalibrate is None:
        return Equalized(study)
    started = time.perf_counter()
    path = _save_equalized(study, tried, store)
    other = replace(ready, model=onnx_io.load(path), path=path)
    even = replace(study, loaded=other, calibration=found.recalibrate(other))
    wanted = study.reference_outputs()
    before, after = (
        study.output_error(study.options, wanted),
        even.output_error(study.options, wanted),
    )
    kept = is_better(before, after)
    text = (
        f"channels of {len(tried)} tensors made even: {'kept' if kept else 'dropped'}, distance "
        f"{before.per_image.mean():.4g} -> {after.per_image.mean():.4g} {study.describe_images(after)}"
    )
    study.progress(Progress(STEP, text, time.perf_counter() - started))
    return Equalized(even, tried, (text,)) if kept else Equalized(study)


def _save_equalized(study: Candidate, tried: ChosenFactors, store: Cache) -> Path:
    """Return where the model with these factors lies."""

    def make(folder: Path) -> None:
        onnx_io.save(equalize(study.loaded.model, tried), folder / MODEL_FILE)

    recipe = {
        "name": study.loaded.source.name,
        "model": onnx_io.fingerprint(study.loaded.model),
        "factors": json.dumps(tried),
        "qconvert": __version__,
    }
    return store.get_or_make(STEP, recipe, make).path / MODEL_FILE
