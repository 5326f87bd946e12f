"""Weights and biases of a plan stored as integers, each weight once for all that read it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from qconvert.graph.patterns import constant
from qconvert.quantize import weights
from qconvert.quantize.learned import NOTHING, Weights
from qconvert.quantize.plan import Layer, Plan
from qconvert.quantize.wiring import Wiring
from qconvert.scales import Floats, PerChannel, Scale, around

BIAS = 2
MOST_LARGER = 1.5


@dataclass(frozen=True, eq=False)
class Product:
    """A node with a weight, the step of its activation, and its bias if that is constant.

    With `whole_bias` the bias becomes integers too.
    """

    node: ir.Node
    slot: int
    axis: int
    weight: ir.Value
    step: float
    bias: Floats | None
    whole_bias: bool

    @property
    def key(self) -> tuple[ir.Value, int]:
        """What is stored once."""
        return self.weight, self.axis


def products(layers: Mapping[ir.Node, Layer], plan: Plan) -> Iterator[Product]:
    """Yield the nodes of a plan that have a weight."""
    for node, layer in layers.items():
        value = node.inputs[layer.weight.slot] if layer.weight is not None else None
        if layer.weight is not None and value is not None:
            step, whole = 1.0, plan.integer_bias and bool(layer.inputs)
            if whole:
                kept = plan.tensors[str(node.inputs[0].name)]  # type: ignore[union-attr]
                step = float(around(kept, plan.activations, plan.rest).steps)
            bias = _bias(node, value, layer.weight.axis)
            yield Product(node, layer.weight.slot, layer.weight.axis, value, step, bias, whole)


def store_products(wiring: Wiring, found: Sequence[Product], plan: Plan, learned: Weights) -> None:
    """Let each node read its weight, and where the plan wants it its bias, from integers."""
    stored: dict[int, ir.Value] = {}
    for each, scale in zip(found, scales(found, plan, learned), strict=True):
        if id(scale) not in stored:
            array = weights.weight_of(each.weight, each.node)
            integers = weights.integers(array, scale)
            held = wiring.store(integers, f"{each.weight.name}_quantized")
            stored[id(scale)] = wiring.from_integers(held, scale.steps, each.axis, each.node)
        each.node.replace_input_with(each.slot, stored[id(scale)])
        if each.bias is not None and each.whole_bias:
            _store_bias(wiring, each, each.bias, scale)
    for each in found:
        _drop(wiring.graph, each.weight)


def scales(found: Sequence[Product], plan: Plan, learned: Weights = NOTHING) -> list[Scale]:
    """Return the scale of each product's weight, the same one for those that share it.

    A reader whose bias needs steps much larger than the weight's own has the weight for itself:
    its need must not crush the weight for all others.
    """
    method = weights.METHODS[plan.weight_method]
    own: dict[tuple[ir.Value, int], Scale] = {}
    shared: dict[tuple[ir.Value, int], Scale] = {}
    for each in found:
        if each.key not in own:
            array = weights.weight_of(each.weight, each.node)
            known = learned.get(each.node.name or "")
            own[each.key] = (
                Scale(
                    known.steps,
                    np.zeros_like(known.steps, np.int32),
                    plan.weights,
                    PerChannel(each.axis),
                )
                if known is not None
                else method(array, plan.weights, each.axis, plan.rest)
            )
            shared[each.key] = own[each.key]
        if _fits(each, own[each.key]):
            shared[each.key] = _roomy(each, shared[each.key])
    return [
        shared[each.key] if _fits(each, own[each.key]) else _roomy(each, own[each.key])
        for each in found
    ]


def _fits(product: Product, scale: Scale) -> bool:
    """Whether the bias of a product has room with steps that are hardly larger than these."""
    return bool((_roomy(product, scale).steps <= MOST_LARGER * scale.steps).all())


def _roomy(product: Product, scale: Scale) -> Scale:
    """Return a scale with room for the bias of a product."""
    if product.bias is None or not product.whole_bias:
        return scale
    return weights.room_for_bias(scale, product.bias, product.step)


def _store_bias(wiring: Wiring, product: Product, bias: Floats, scale: Scale) -> None:
    """A bias belongs to its node alone: its steps are those of the activation and the weight."""
    old = product.node.inputs[BIAS]
    steps = np.float32(product.step) * scale.steps
    name = f"{old.name if old is not None else product.node.name}_quantized"
    held = wiring.store(weights.integer_bias(bias, steps), name)
    result = wiring.from_integers(held, steps, 0, product.node)
    product.node.replace_input_with(BIAS, result)
    if old is not None:
        _drop(wiring.graph, old)


def _bias(node: ir.Node, weight: ir.Value, axis: int) -> Floats | None:
    """Return the constant bias of a node, one number for each channel of its weight."""
    held = node.inputs[BIAS] if len(node.inputs) > BIAS else None
    array = constant(held)
    channels = weight.shape[axis] if weight.shape is not None else None
    if array is None or array.size != channels or array.shape[-1] != channels:
        return None
    bias = array.astype(np.float32).reshape(-1)
    weights.require_finite(bias, "bias", held, node)
    return bias


def _drop(graph: ir.Graph, value: ir.Value) -> None:
    """Forget a constant that nothing reads any more."""
    name = value.name or ""
    if name in graph.initializers and not value.uses() and not value.is_graph_output():
        del graph.initializers[name]
