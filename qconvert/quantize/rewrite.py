"""A plan applied to a model: QuantizeLinear and DequantizeLinear nodes, weights as integers.

The graph alone says what is rounded, so any runtime that follows ONNX computes the same numbers.
"""

from collections.abc import Iterator, Mapping

import onnx_ir as ir

from qconvert import onnx_io
from qconvert.errors import UsageError
from qconvert.graph.patterns import constant
from qconvert.quantize.checks import linear
from qconvert.quantize.equalize import equalized
from qconvert.quantize.float_islands import keep_float
from qconvert.quantize.learned import NOTHING, Weights, require, settle
from qconvert.quantize.placement import rounded
from qconvert.quantize.plan import Layer, Plan
from qconvert.quantize.selection import WEIGHTED
from qconvert.quantize.stored_weights import Product, products, store_products
from qconvert.quantize.wiring import Wiring
from qconvert.scales import around, too_wide

Layers = Mapping[ir.Node, Layer]


def apply(model: ir.Model, plan: Plan, learned: Weights = NOTHING) -> ir.Model:
    """Return a copy of `model` in which everything that the plan names is rounded.

    Weights that were learned with the plan become the very integers that were learned.
    """
    if onnx_io.fingerprint(model) != plan.model:
        raise UsageError(
            "the plan was made for another model",
            hint="make a plan for this one: leave `--plan` out",
        )
    require(learned, plan.learned)
    model = equalized(model, plan.equalized)
    layers = chosen_layers(model.graph, plan)
    wiring = Wiring.of(model.graph)
    for node in layers:
        if (known := learned.get(node.name or "")) is not None:
            settle(node, layers[node].weight, known, wiring.names)
    # Before activations are rewired: what a bias is made of depends on the tensors as they were.
    weighted: list[Product] = list(products(layers, plan))
    for value in list(_rounded(model.graph, layers)):
        _round(wiring, value, layers, plan)
    store_products(wiring, weighted, plan, learned)
    if plan.integer_bias:
        keep_float(wiring)
    return model


def chosen_layers(graph: ir.Graph, plan: Plan) -> dict[ir.Node, Layer]:
    """Return the layers to quantize, refusing what the plan says of nodes that are not there."""
    nodes = {node.name: node for node in graph}
    wanted = {name: layer for name, layer in plan.layers.items() if not layer.left}
    told = plan.layers
    lost = [name for name in told if name not in nodes or nodes[name].op_type != told[name].op]
    if lost:
        raise UsageError(
            f"the plan names `{lost[0]}`, which is not a {told[lost[0]].op} of this model",
            hint="a plan may leave nodes out, but not add any",
        )
    # In the order of the graph, whatever that of the plan: what is shared must come first.
    layers = {node: wanted[node.name] for node in graph if node.name in wanted}
    for node, layer in layers.items():
        _require_ranges(node, layer, plan)
    return layers


def _require_ranges(node: ir.Node, layer: Layer, plan: Plan) -> None:
    if len(set(layer.inputs)) < len(layer.inputs):
        raise UsageError(
            f"the plan rounds an input of `{node.name}` twice", hint="name each input once"
        )
    slots = [*layer.inputs, *([layer.weight.slot] if layer.weight else [])]
    if any(not 0 <= slot < len(node.inputs) or node.inputs[slot] is None for slot in slots):
        raise UsageError(
            f"the plan rounds an input of `{node.name}` that it does not have",
            hint=f"it has {len(node.inputs)} inputs; the first is number 0",
        )
    if layer.weight is not None:
        array = constant(node.inputs[layer.weight.slot])
        usual = linear(node).weight if array is not None and node.op_type in WEIGHTED else None
        if usual is None or layer.weight != usual:
            raise UsageError(
                f"the plan has no such weight and axis at `{node.name}`",
                hint="take weights as they are in the plan that was written",
            )
    for value in rounded(node, layer):
        if value.name not in plan.tensors:
            raise UsageError(
                f"the plan rounds `{value.name}` at `{node.name}` without a range for it",
                hint=f'add it under "tensors", as "{value.name}": {{"low": -1.0, "high": 1.0}}',
            )
        if too_wide(plan.tensors[str(value.name)], plan.activations, plan.rest):
            raise UsageError(
                f"the range of `{value.name}` is too wide for a step in {plan.rest}",
                hint="`--rest fp32` has room for it, or leave what rounds it in float",
            )


def _rounded(graph: ir.Graph, layers: Layers) -> Iterator[ir.Value]:
    """Yield every activation that is rounded somewhere, inputs first, in the graph's order."""
    wanted = {value for node, layer in layers.items() for value in rounded(node, layer)}
    made = (value for node in graph for value in node.outputs)
    yield from (value for value in (*graph.inputs, *made) if value in wanted)


def _round(wiring: Wiring, value: ir.Value, layers: Layers, plan: Plan) -> None:
    """Let a tensor pass through integers, for everyone or for those who read it rounded."""
    made = layers.get(value.producer()) if value.producer() is not None else None  # type: ignore[arg-type]
    everyone = made is not None and made.output
    readers = [
        (node, slot)
        for node, slot in value.uses()
        if everyone or (node in layers and slot in layers[node].inputs)
    ]
    scale = around(plan.tensors[str(value.name)], plan.activations, plan.rest)
    result = wiring.through_integers(value, scale)
    for node, slot in readers:
        node.replace_input_with(slot, result)
    if everyone and value.is_graph_output():
        wiring.answer(value, result)
