"""Measure the errors of a rewritten network: what each layer makes, and what arrives there.

Both are the SQNR over all values of all images, in decibels. The two are easily confused: a late
layer that makes no error of its own still carries those of all layers before it.

Both networks run as their graphs say, node by node, and not by integer kernels: so the figures are
the same on every machine, but for the last bits of floats.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from qconvert.backends.ort import open_cpu
from qconvert.core.errors import QConvertError
from qconvert.core.tensors import Tensors
from qconvert.graph.error_attribution import (
    OUTPUT_PREFIX,
    REFERENCE_PREFIX,
    build_attribution_model,
    comparable_tensors,
    expose_tensors,
    values_by_name,
)
from qconvert.graph.taps import PREFIX
from qconvert.measure.output_error import sqnr_from_powers
from qconvert.quantize.shifted_tensors import read_changed_tensors


@dataclass(frozen=True)
class LayerError:
    """The error at one tensor, after the layer that makes it.

    `arriving_db` is the SQNR there when the whole network is rewritten, `made_db` when only this
    layer is and reads exact tensors: infinite for no error, minus infinity where values overflow or
    are NaN, None where it is unknown.
    `saturated` is the percentage of integers at an end of their grid, `clipped` that of values that
    lose more at that end than rounding would take; None where nothing is quantized.
    """

    tensor: str
    node: str
    op: str
    precision: str
    arriving_db: float | None
    made_db: float | None
    cosine: float | None
    saturated: float | None
    clipped: float | None


def measure_layer_errors(
    reference: ir.Model, model: ir.Model, batches: Iterable[Tensors]
) -> tuple[LayerError, ...]:
    """Return the errors at every tensor of both networks, in the order of the reference.

    A tensor that the plan shifts has another value in each; the next layer makes its error.
    """
    shifted = read_changed_tensors(reference.graph, model)
    tensors = [name for name in comparable_tensors(reference, model) if name not in shifted]
    attribution, precisions = build_attribution_model(model, tensors)
    if not precisions:
        raise QConvertError(
            "the two models have no tensor in common, so there are no layers to compare",
            hint="compare a model with one that qconvert made of it",
        )
    run_reference = open_cpu(expose_tensors(reference, list(precisions)), keep_qdq=True)
    run_attribution = open_cpu(attribution, keep_qdq=True)
    sums: dict[str, list[float]] = {str(value.name): [] for value in attribution.graph.outputs}
    sizes = dict.fromkeys(precisions, 0)
    for feeds in batches:
        exact = run_reference(feeds)
        references = {REFERENCE_PREFIX + name: exact[OUTPUT_PREFIX + name] for name in precisions}
        for output, value in run_attribution({**feeds, **references}).items():
            sums[output].append(float(np.asarray(value)))
        for name in precisions:
            sizes[name] += np.size(exact[OUTPUT_PREFIX + name])
    totals = {output: math.fsum(parts) for output, parts in sums.items()}
    values = values_by_name(reference.graph)
    layers = []
    for name, precision in precisions.items():
        signal, power, arriving = (
            totals[f"{PREFIX}{kind}.{name}"] for kind in ("signal", "power", "arriving")
        )
        own_error, saturated, clipped = (
            totals.get(f"{PREFIX}{kind}.{name}") for kind in ("made", "saturated", "clipped")
        )
        cosine = None
        if all(map(math.isfinite, (signal, power, arriving))) and signal and power:
            # a·b = (|a|² + |b|² - |a - b|²) / 2
            cosine = (signal + power - arriving) / (2 * math.sqrt(signal * power))
            cosine = min(1.0, max(-1.0, cosine))
        node, size = values[name].producer(), sizes[name]
        layers.append(
            LayerError(
                tensor=name,
                node=(node.name or "") if node is not None else "",
                op=node.op_type if node is not None else "input",
                precision=precision,
                arriving_db=sqnr_from_powers(signal, arriving),
                made_db=None if own_error is None else sqnr_from_powers(signal, own_error),
                cosine=cosine,
                saturated=None if saturated is None or not size else 100 * saturated / size,
                clipped=None if clipped is None or not size else 100 * clipped / size,
            )
        )
    return tuple(layers)


def worst_layers(layers: Sequence[LayerError], limit: int | None = None) -> list[LayerError]:
    """Return the layers that make an error of their own, the largest first."""
    ranked = sorted(layers, key=lambda layer: (-relative_error(layer), layer.tensor))
    return [layer for layer in ranked[:limit] if relative_error(layer)]


def relative_error(layer: LayerError) -> float:
    """Return a layer's own error relative to its exact output: 0.01 for 40 dB, 0 if unknown."""
    return 0.0 if layer.made_db is None else float(10.0 ** (-layer.made_db / 20))


def layer_label(layer: LayerError) -> str:
    """Return the name of the layer's node, or of its tensor where the node has none."""
    return layer.node or layer.tensor
