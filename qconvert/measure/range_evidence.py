"""Which ranges and weights a report shows, from what was seen of the tensors and from the plan."""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qconvert.calibrate import methods
from qconvert.calibrate.histogram import clipped_share, equal_width_counts
from qconvert.calibrate.summary import Summary
from qconvert.core.scales import Range, choose_qparams
from qconvert.graph.error_attribution import values_by_name
from qconvert.graph.observed_tensors import find_observed_tensors
from qconvert.graph.patterns import WEIGHTED, constant_array
from qconvert.measure.evidence import MethodInterval, TensorRange, WeightRange
from qconvert.measure.layer_errors import LayerError, worst_layers
from qconvert.quantize.checks import linear_layer
from qconvert.quantize.cross_layer import scaled_tensors
from qconvert.quantize.plan import Plan

SHOWN_METHODS = ("minmax", "percentile:99.99", "entropy", "mse")
HISTOGRAM_BARS, TENSORS_PER_REASON, MAX_CHANNELS, MAX_LAYERS = 80, 4, 160, 6
MOST_CLIPPED, WIDEST, LARGEST_ERRORS = "most clipped", "widest", "among the largest errors made"


def tensor_ranges(
    variant: str,
    plan: Plan,
    known: tuple[ir.Model, Mapping[str, Summary]],
    layers: Sequence[LayerError],
) -> tuple[TensorRange, ...]:
    """Return the tensors with most clipped, the widest, and those after the worst layers."""
    model, summaries = known
    shares = find_observed_tensors(model).aliases
    # What was seen of these is not what the engine has there: their channels were divided.
    others = scaled_tensors(model.graph, plan.equalized)
    seen = {name: summaries.get(shares.get(name, name)) for name in plan.tensors}
    counted = {
        name: each
        for name, each in seen.items()
        if each is not None and each.size and name not in others
    }
    clipped = {name: clipped_share(each, plan.tensors[name]) for name, each in counted.items()}
    makers = values_by_name(model.graph)
    return tuple(
        _tensor_range((variant, name, why), counted[name], plan, makers[name].producer())
        for name, why in _choose_tensors(counted, clipped, layers).items()
    )


def weight_ranges(model: ir.Model, layers: Sequence[LayerError]) -> tuple[WeightRange, ...]:
    """Return the weights of the worst layers, channel by channel."""
    makers = {name: value.producer() for name, value in values_by_name(model.graph).items()}
    found: dict[str, WeightRange] = {}
    for layer in worst_layers(layers, len(layers)):
        node = makers.get(layer.tensor)
        # The tensor of a fused Relu or Clip is made by the convolution before it.
        while node is not None and node.op_type in ("Relu", "Clip") and node.inputs[0] is not None:
            node = node.inputs[0].producer()
        largest = _channel_maxima(node) if node is not None and node.op_type in WEIGHTED else None
        if node is not None and largest is not None and largest.size > 1:
            name = node.name or ""
            found[name] = WeightRange(name, node.op_type, largest.size, _thin_out(largest))
        if len(found) == MAX_LAYERS:
            break
    return tuple(found.values())


def _choose_tensors(
    counted: Mapping[str, Summary], clipped: Mapping[str, float], layers: Sequence[LayerError]
) -> dict[str, str]:
    """Return the tensors to show, in the order of the plan, each with the first reason for it."""
    cut = sorted((name for name in counted if clipped[name]), key=lambda name: -clipped[name])
    wide = sorted(counted, key=lambda name: counted[name].low - counted[name].high)
    wrong = [each.tensor for each in worst_layers(layers, len(layers)) if each.tensor in counted]
    reasons: dict[str, str] = {}
    for names, why in ((cut, MOST_CLIPPED), (wrong, LARGEST_ERRORS), (wide, WIDEST)):
        new = [name for name in names if name not in reasons][:TENSORS_PER_REASON]
        reasons.update(dict.fromkeys(new, why))
    return {name: reasons[name] for name in counted if name in reasons}


def _tensor_range(
    about: tuple[str, str, str], seen: Summary, plan: Plan, node: ir.Node | None
) -> TensorRange:
    variant, name, why = about
    found = equal_width_counts(seen, HISTOGRAM_BARS)
    total = float(found.sum()) or 1.0
    chosen = plan.tensors[name]
    return TensorRange(
        tensor=name,
        op=node.op_type if node is not None else "input",
        variant=variant,
        why=why,
        low=seen.low,
        high=seen.high,
        shares=tuple(float(f"{each / total:.6g}") for each in found),
        kept=tuple(
            _kept_range(method, methods.find_method(method)(seen, plan.activations))
            for method in SHOWN_METHODS
        ),
        chosen=_kept_range(plan.method, chosen),
        step=float(choose_qparams(chosen, plan.activations, plan.rest).scale),
        clipped=100 * clipped_share(seen, chosen),
    )


def _kept_range(method: str, kept: Range) -> MethodInterval:
    return MethodInterval(method, kept.low, kept.high)


def _channel_maxima(node: ir.Node) -> NDArray[np.float64]:
    """Return the largest weight of each channel that results differ in, the largest first."""
    weight = linear_layer(node).weight
    array = constant_array(node.inputs[weight.slot]) if weight is not None else None
    if weight is None or array is None:
        return np.zeros(0)
    moved = np.moveaxis(array.astype(np.float64), weight.axis, 0)
    return np.sort(np.abs(moved.reshape(len(moved), -1)).max(axis=1))[::-1]


def _thin_out(largest: NDArray[np.float64]) -> tuple[float, ...]:
    places = np.unique(np.linspace(0, largest.size - 1, MAX_CHANNELS).round().astype(int))
    return tuple(float(f"{each:.6g}") for each in largest[places])
