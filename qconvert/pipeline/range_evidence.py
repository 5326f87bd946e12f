"""Which ranges and weights a report shows, from what was seen of the tensors and from the plan."""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qconvert.calibrate import methods
from qconvert.calibrate.evidence import bars, clipped_share
from qconvert.calibrate.summary import Summary
from qconvert.graph.answers import by_name
from qconvert.graph.observed import observe
from qconvert.graph.patterns import constant
from qconvert.measure.layers import Layer
from qconvert.quantize.checks import linear
from qconvert.quantize.equalize import scaled
from qconvert.quantize.plan import Plan
from qconvert.quantize.selection import WEIGHTED
from qconvert.report.evidence import KeptRange, TensorRange, WeightRange
from qconvert.report.layer_errors import worst
from qconvert.scales import Range, around

METHODS = ("minmax", "percentile:99.99", "entropy", "mse")
BARS, EACH, MOST_CHANNELS, MOST_LAYERS = 80, 4, 160, 6
CLIPPED, WIDEST, WORST = "most clipped", "widest", "among the largest errors made"


def tensor_ranges(
    variant: str,
    plan: Plan,
    known: tuple[ir.Model, Mapping[str, Summary]],
    layers: Sequence[Layer],
) -> tuple[TensorRange, ...]:
    """Return the tensors with most clipped, the widest, and those after the worst layers."""
    model, summaries = known
    shares = observe(model).shares
    # What was seen of these is not what the engine has there: their channels were divided.
    others = scaled(model.graph, plan.equalized)
    seen = {name: summaries.get(shares.get(name, name)) for name in plan.tensors}
    counted = {
        name: each
        for name, each in seen.items()
        if each is not None and each.size and name not in others
    }
    clipped = {name: clipped_share(each, plan.tensors[name]) for name, each in counted.items()}
    makers = by_name(model.graph)
    return tuple(
        _range((variant, name, why), counted[name], plan, makers[name].producer())
        for name, why in _chosen(counted, clipped, layers).items()
    )


def weight_ranges(model: ir.Model, layers: Sequence[Layer]) -> tuple[WeightRange, ...]:
    """Return the weights of the worst layers, channel by channel."""
    makers = {name: value.producer() for name, value in by_name(model.graph).items()}
    found: dict[str, WeightRange] = {}
    for layer in worst(layers, len(layers)):
        node = makers.get(layer.tensor)
        # The tensor of a fused Relu or Clip is made by the convolution before it.
        while node is not None and node.op_type in ("Relu", "Clip") and node.inputs[0] is not None:
            node = node.inputs[0].producer()
        largest = _channels(node) if node is not None and node.op_type in WEIGHTED else None
        if node is not None and largest is not None and largest.size > 1:
            name = node.name or ""
            found[name] = WeightRange(name, node.op_type, largest.size, _thinned(largest))
        if len(found) == MOST_LAYERS:
            break
    return tuple(found.values())


def _chosen(
    counted: Mapping[str, Summary], clipped: Mapping[str, float], layers: Sequence[Layer]
) -> dict[str, str]:
    """Return the tensors to show, in the order of the plan, each with the first reason for it."""
    cut = sorted((name for name in counted if clipped[name]), key=lambda name: -clipped[name])
    wide = sorted(counted, key=lambda name: counted[name].low - counted[name].high)
    wrong = [each.tensor for each in worst(layers, len(layers)) if each.tensor in counted]
    reasons: dict[str, str] = {}
    for names, why in ((cut, CLIPPED), (wrong, WORST), (wide, WIDEST)):
        new = [name for name in names if name not in reasons][:EACH]
        reasons.update(dict.fromkeys(new, why))
    return {name: reasons[name] for name in counted if name in reasons}


def _range(
    about: tuple[str, str, str], seen: Summary, plan: Plan, node: ir.Node | None
) -> TensorRange:
    variant, name, why = about
    found = bars(seen, BARS)
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
            _kept(method, methods.find(method)(seen, plan.activations)) for method in METHODS
        ),
        chosen=_kept(plan.method, chosen),
        step=float(around(chosen, plan.activations, plan.rest).steps),
        clipped=100 * clipped_share(seen, chosen),
    )


def _kept(method: str, kept: Range) -> KeptRange:
    return KeptRange(method, kept.low, kept.high)


def _channels(node: ir.Node) -> NDArray[np.float64]:
    """Return the largest weight of each channel that results differ in, the largest first."""
    weight = linear(node).weight
    array = constant(node.inputs[weight.slot]) if weight is not None else None
    if weight is None or array is None:
        return np.zeros(0)
    moved = np.moveaxis(array.astype(np.float64), weight.axis, 0)
    return np.sort(np.abs(moved.reshape(len(moved), -1)).max(axis=1))[::-1]


def _thinned(largest: NDArray[np.float64]) -> tuple[float, ...]:
    places = np.unique(np.linspace(0, largest.size - 1, MOST_CHANNELS).round().astype(int))
    return tuple(float(f"{each:.6g}") for each in largest[places])
