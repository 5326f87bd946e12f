"""Cross-layer equalization: choose a factor for each channel, and accept them by the outputs.

    X_c -> X_c / s_c,  W_c -> W_c * s_c        s_c = max|X_c|^a / max|W_c|^(1-a)

One scale serves all channels of a tensor and follows the largest, so small channels lose most of
their integers. A factor makes a large channel smaller and the weights that read it larger, whose
own scales grow with them: each tensor takes the strength `a` with the least expected error. The
factors are folded into the weights on both sides (Nagel et al. 2019, "Data-Free Quantization
Through Weight Equalization and Bias Correction"); `a` is that of SmoothQuant (Xiao et al. 2023).
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import numpy as np
import onnx_ir as ir

from qconvert.calibrate.summary import Summary
from qconvert.core.progress import start_step
from qconvert.core.scales import FloatArray
from qconvert.graph.taps import find_observed_tensors
from qconvert.optimize.candidate import Candidate, is_better, run_reference
from qconvert.quantize.cross_layer import EqualizationSite, find_sites
from qconvert.quantize.pairs import largest_sums

STRENGTHS = (0.25, 0.5, 0.75, 1.0)
# A tensor gets factors only if its expected error falls to this share.
MAX_ERROR_RATIO = 0.8
# Channels are brought no closer than this, so that those that are hardly ever active stay small.
MAX_CHANNEL_RATIO = 64.0
# How far a channel may grow beyond its calibrated range before a Clip cuts it.
HEADROOM = 2.0
# The mean square of a channel, as a share of the square of its largest value.
MEAN_SQUARE = 0.1


def choose_equalization(original: Candidate, equalized: Candidate) -> Candidate:
    """Return the equalized candidate if its output error is lower, else the original one."""
    end = start_step(original.progress, "equalize")
    reference = run_reference(original.loaded.model, original.holdout_batches())
    before = original.output_error(original.options, reference)
    after = equalized.output_error(equalized.options, reference)
    accepted = is_better(before, after)
    text = (
        f"cross-layer equalization of {len(equalized.factors)} tensors "
        f"{'accepted' if accepted else 'rejected'}: {before.name} {before.per_image.mean():.4g} "
        f"-> {after.per_image.mean():.4g} {original.describe_images(after)}"
    )
    end(text, False)
    return replace(equalized, notes=(text,)) if accepted else original


def choose_factors(
    model: ir.Model, summaries: Mapping[str, Summary], *, portable: bool = False
) -> dict[str, tuple[float, ...]]:
    """Return factors for the tensors whose expected error they lower enough.

    The scales of `portable` weights grow with the sums of their pairs too.
    """
    chosen: dict[str, tuple[float, ...]] = {}
    aliases = find_observed_tensors(model).aliases
    for site in find_sites(model.graph):
        name = str(site.tensor.name)
        summary = summaries.get(aliases.get(name, name))
        if summary is None or not summary.finite.all():
            continue
        largest = np.abs(summary.channel_maxima).astype(np.float32)
        if largest.shape != (site.channels,) or not largest.any():
            continue
        expected_error = partial(_expected_error, site, largest, portable)
        candidates = (_compute_factors(site, largest, strength) for strength in STRENGTHS)
        best = min(candidates, key=expected_error)
        if expected_error(best) < MAX_ERROR_RATIO * expected_error(np.ones_like(largest)):
            chosen[name] = tuple(float(f"{factor:.4g}") for factor in best)
    return chosen


def _compute_factors(site: EqualizationSite, largest: FloatArray, strength: float) -> FloatArray:
    """Return |X|^a / |W|^(1-a), scaled so that the largest channel stays as it is.

    A weight that meets one channel only has a scale of its own for it, so it takes any factor.
    """
    top = largest.max()
    sizes = np.maximum(np.where(largest > 0, largest, top), top / MAX_CHANNEL_RATIO) / top
    factors: FloatArray = sizes**strength
    if not all(reader.depthwise for reader in site.readers):
        # The largest weight that reads each channel, over all filters and readers.
        rows = [np.abs(reader.matrix()).max(axis=0) for reader in site.readers]
        weights = np.max([row.reshape(len(largest), -1).max(axis=1) for row in rows], axis=0)
        weights = np.where(weights > 0, weights, weights.max() or 1.0)
        if weights.max():
            weights = np.maximum(weights / weights.max(), 1 / MAX_CHANNEL_RATIO)
        factors = factors / weights ** (1 - strength)
    factors /= (largest / factors).max() / top
    if site.ceiling is None:
        return factors
    room = HEADROOM * largest / site.ceiling
    limited: FloatArray = np.where(room < 1, np.clip(factors, np.minimum(room, 1), 1), 1)
    return limited


def _expected_error(
    site: EqualizationSite, largest: FloatArray, portable: bool, factors: FloatArray
) -> float:
    """Return the expected squared error of the readers' outputs, in scales of the whole range."""
    sizes = largest / factors
    error = 0.0
    for reader in site.readers:
        weights = reader.matrix()
        weights = weights * np.repeat(factors, weights.shape[1] // len(factors))
        error += float(np.square(sizes.max()) * np.square(weights).sum())
        if not reader.depthwise:
            scales = np.abs(weights).max(axis=1)
            if portable:
                scales = np.maximum(scales, largest_sums(weights))
            error += float(MEAN_SQUARE * np.square(scales).sum() * np.square(sizes).sum())
    return error
