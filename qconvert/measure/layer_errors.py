"""Where a rewritten network goes wrong: the error that each layer makes, and what arrives there.

Both are told as SQNR over all values of all images, in decibels. The two are easily confused: a
late layer that makes no error of its own still carries that of all before it.

Both networks are run as their graphs say, node by node, and not by integer kernels: so figures are
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
    ErrorOutputs,
    build_attribution_model,
    comparable_tensors,
    expose_tensors,
    values_by_name,
)

PERCENT = 100


@dataclass(frozen=True)
class LayerError:
    """One tensor after the layer that makes it.

    `arriving_db` is the SQNR there when the whole network is rewritten, `made_db` when only this
    layer is and reads exact tensors: infinite where nothing is off, minus infinity where values
    overflow or are no numbers, None where it is not known.
    `saturated` is the percentage of integers at an end of their grid, `clipped` that of values
    which lose more at that end than rounding would take; None where nothing is rounded.
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
    """Return what each tensor that both networks have says, in the order of the reference.

    One batch at a time is in memory, and of those before it a few sums.
    """
    shadow = build_attribution_model(model, comparable_tensors(reference, model))
    tensors = [each.tensor for each in shadow.tensors]
    if not tensors:
        raise QConvertError(
            "the two models have no tensor in common, so there are no layers to compare",
            hint="compare a model with one that qconvert made of it",
        )
    there = open_cpu(expose_tensors(reference, tensors), keep_qdq=True)
    here = open_cpu(shadow.model, keep_qdq=True)
    sums: dict[str, list[float]] = {value.name or "": [] for value in shadow.model.graph.outputs}
    sizes = dict.fromkeys(tensors, 0)
    for feeds in batches:
        exact = there(feeds)
        fed = {REFERENCE_PREFIX + name: exact[OUTPUT_PREFIX + name] for name in tensors}
        for name, found in here({**feeds, **fed}).items():
            sums[name].append(float(np.asarray(found)))
        for name in tensors:
            sizes[name] += np.size(exact[OUTPUT_PREFIX + name])
    totals = {name: math.fsum(parts) for name, parts in sums.items()}
    makers = values_by_name(reference.graph)
    return tuple(_layer(each, totals, sizes, makers[each.tensor]) for each in shadow.tensors)


def _layer(
    point: ErrorOutputs, totals: dict[str, float], sizes: dict[str, int], value: ir.Value
) -> LayerError:
    signal, power, arriving = (totals[each] for each in (point.signal, point.power, point.arriving))
    made_by = value.producer()

    def share(name: str | None) -> float | None:
        size = sizes[point.tensor]
        return PERCENT * totals[name] / size if name is not None and size else None

    return LayerError(
        tensor=point.tensor,
        node=(made_by.name or "") if made_by is not None else "",
        op=made_by.op_type if made_by is not None else "input",
        precision=point.precision,
        arriving_db=decibels(signal, arriving),
        made_db=decibels(signal, totals[point.made]) if point.made is not None else None,
        cosine=_cosine(signal, power, arriving),
        saturated=share(point.saturated),
        clipped=share(point.clipped),
    )


def decibels(signal: float, error: float) -> float | None:
    """Return the power of a signal over that of its error; None where neither tells anything.

    Beside a finite signal an error that is not finite is infinite.
    """
    if not math.isfinite(signal):
        return None
    if not math.isfinite(error):
        return -math.inf
    if error == 0:
        return math.inf
    return 10 * math.log10(signal / error) if signal else None


def _cosine(signal: float, power: float, error: float) -> float | None:
    """Return the cosine of the angle between two vectors from three sums of squares."""
    if not all(map(math.isfinite, (signal, power, error))) or not (signal and power):
        return None
    return min(1.0, max(-1.0, (signal + power - error) / (2 * math.sqrt(signal * power))))


def worst_layers(found: Sequence[LayerError], most: int) -> list[LayerError]:
    """Return the layers that make the largest errors of their own, the largest first."""
    ranked = sorted(found, key=lambda each: (-relative_error(each), each.tensor))
    return [each for each in ranked[:most] if relative_error(each)]


def relative_error(layer: LayerError) -> float:
    """Return the error that a layer makes, relative to what it should say: 0.01 for 40 dB.

    Infinite where the layer overflows, 0 where nothing is known.
    """
    return 0.0 if layer.made_db is None else float(10.0 ** (-layer.made_db / 20))


def layer_label(layer: LayerError) -> str:
    """Return what a layer is called: its node, or the tensor where the node has no name."""
    return layer.node or layer.tensor
