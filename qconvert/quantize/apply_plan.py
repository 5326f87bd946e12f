"""Operators that a plan leaves in float stay there, whatever the runtime would make of them.

ONNX Runtime (1.31, `WeightBiasQuantization`) takes a Conv, ConvTranspose or Gemm that reads rounded
values and whose result is rounded, and rounds its float weights too: with one scale for the whole
tensor, which ruins depthwise filters. It looks through Relu and Clip and through nothing else, so a
LeakyRelu with slope 1 stops it, which changes no number and vanishes into the convolution.
"""

from collections.abc import Iterator, Mapping

import onnx_ir as ir

from qconvert.core import onnx_io
from qconvert.core.errors import UsageError
from qconvert.core.scales import choose_qparams, exceeds_scale_dtype
from qconvert.graph.patterns import WEIGHTED, constant_array, is_standard, only_reader
from qconvert.quantize.checks import linear_layer
from qconvert.quantize.cross_layer import equalize
from qconvert.quantize.placement import quantized_activations
from qconvert.quantize.plan import LayerPlan, Plan
from qconvert.quantize.qdq_builder import QDQBuilder
from qconvert.quantize.rounded_weights import (
    NO_ROUNDED_WEIGHTS,
    RoundedWeights,
    require_match,
    set_weight,
)
from qconvert.quantize.weights import WeightedLayer, find_weighted_layers, quantize_weights

REQUANTIZED_BY_ORT = ("Conv", "ConvTranspose", "Gemm")
FUSED_BY_ORT = ("Relu", "Clip")


def protect_float_layers(builder: QDQBuilder) -> None:
    """Put a guard behind every operator with float weights that would be rounded unasked."""
    for node in [each for each in builder.graph if is_standard(each, *REQUANTIZED_BY_ORT)]:
        floats = constant_array(node.inputs[1]) is not None
        if floats and _is_dequantized(node.inputs[0]) and _is_quantized_next(node.outputs[0]):
            _insert_guard(builder, node)


def _is_dequantized(value: ir.Value | None) -> bool:
    made = value.producer() if value is not None else None
    return made is not None and is_standard(made, "DequantizeLinear")


def _is_quantized_next(value: ir.Value) -> bool:
    reader = only_reader(value)
    while reader is not None and is_standard(reader, *FUSED_BY_ORT):
        reader = only_reader(reader.outputs[0])
    return reader is not None and is_standard(reader, "QuantizeLinear")


def _insert_guard(wiring: QDQBuilder, node: ir.Node) -> None:
    value = node.outputs[0]
    readers = list(value.uses())
    guard = wiring.make_node("LeakyRelu", [value], f"{value.name}_kept_float")
    guard.attributes.add(ir.AttrFloat32("alpha", 1.0))
    guard.outputs[0].type, guard.outputs[0].shape = value.type, value.shape
    wiring.graph.insert_after(node, guard)
    for reader, slot in readers:
        reader.replace_input_with(slot, guard.outputs[0])


PlannedLayers = Mapping[ir.Node, LayerPlan]


def apply_plan(
    model: ir.Model, plan: Plan, learned: RoundedWeights = NO_ROUNDED_WEIGHTS
) -> ir.Model:
    """Return a copy of `model` in which everything that the plan names is rounded.

    Weights that were learned with the plan become the very integers that were learned.
    """
    if onnx_io.fingerprint(model) != plan.model:
        raise UsageError(
            "the plan was made for another model",
            hint="make a plan for this one: leave `--plan` out",
        )
    require_match(learned, plan.learned)
    model = equalize(model, plan.equalized)
    layers = find_planned_layers(model.graph, plan)
    wiring = QDQBuilder.of(model.graph)
    for node in layers:
        if (known := learned.get(node.name or "")) is not None:
            set_weight(node, layers[node].weight, known, wiring.names)
    # Before activations are rewired: what a bias is made of depends on the tensors as they were.
    weighted: list[WeightedLayer] = list(find_weighted_layers(layers, plan))
    for value in list(_quantized_tensors(model.graph, layers)):
        _quantize_tensor(wiring, value, layers, plan)
    quantize_weights(wiring, weighted, plan, learned)
    if plan.integer_bias:
        protect_float_layers(wiring)
    return model


def find_planned_layers(graph: ir.Graph, plan: Plan) -> dict[ir.Node, LayerPlan]:
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


def _require_ranges(node: ir.Node, layer: LayerPlan, plan: Plan) -> None:
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
        array = constant_array(node.inputs[layer.weight.slot])
        usual = (
            linear_layer(node).weight if array is not None and node.op_type in WEIGHTED else None
        )
        if usual is None or layer.weight != usual:
            raise UsageError(
                f"the plan has no such weight and axis at `{node.name}`",
                hint="take weights as they are in the plan that was written",
            )
    for value in quantized_activations(node, layer):
        if value.name not in plan.tensors:
            raise UsageError(
                f"the plan rounds `{value.name}` at `{node.name}` without a range for it",
                hint=f'add it under "tensors", as "{value.name}": {{"low": -1.0, "high": 1.0}}',
            )
        if exceeds_scale_dtype(plan.tensors[str(value.name)], plan.activations, plan.rest):
            raise UsageError(
                f"the range of `{value.name}` is too wide for a step in {plan.rest}",
                hint="`--rest fp32` has room for it, or leave what rounds it in float",
            )


def _quantized_tensors(graph: ir.Graph, layers: PlannedLayers) -> Iterator[ir.Value]:
    """Yield every activation that is rounded somewhere, inputs first, in the graph's order."""
    wanted = {
        value for node, layer in layers.items() for value in quantized_activations(node, layer)
    }
    made = (value for node in graph for value in node.outputs)
    yield from (value for value in (*graph.inputs, *made) if value in wanted)


def _quantize_tensor(
    wiring: QDQBuilder, value: ir.Value, layers: PlannedLayers, plan: Plan
) -> None:
    """Let a tensor pass through integers, for everyone or for those who read it rounded."""
    made = layers.get(value.producer()) if value.producer() is not None else None  # type: ignore[arg-type]
    everyone = made is not None and made.output
    readers = [
        (node, slot)
        for node, slot in value.uses()
        if everyone or (node in layers and slot in layers[node].inputs)
    ]
    scale = choose_qparams(plan.tensors[str(value.name)], plan.activations, plan.rest)
    result = wiring.quantize_dequantize(value, scale)
    for node, slot in readers:
        node.replace_input_with(slot, result)
    if everyone and value.is_graph_output():
        wiring.replace_output(value, result)
