"""A plan applied to a model: QuantizeLinear and DequantizeLinear nodes, and integer weights.

The graph alone says what is quantized, so any runtime that follows ONNX computes the same numbers.
"""

from collections.abc import Mapping

import onnx_ir as ir

from qconvert.core import onnx_io
from qconvert.core.errors import UsageError
from qconvert.core.scales import choose_qparams, exceeds_scale_dtype
from qconvert.graph.patterns import (
    WEIGHTED,
    computed_values,
    constant_array,
    is_standard,
    only_reader,
    producer_of,
)
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
from qconvert.quantize.weights import find_weighted_layers, quantize_weights

REQUANTIZED_BY_ORT = ("Conv", "ConvTranspose", "Gemm")
FUSED_BY_ORT = ("Relu", "Clip")


def apply_plan(
    model: ir.Model, plan: Plan, learned: RoundedWeights = NO_ROUNDED_WEIGHTS
) -> ir.Model:
    """Return a copy of `model` with everything quantized that the plan names.

    Learned weights are stored as exactly the integers that were learned.
    """
    if onnx_io.fingerprint(model) != plan.model:
        raise UsageError(
            "the plan was made for another model",
            hint="omit `--plan` to make a plan for this one",
        )
    require_match(learned, plan.learned)
    model = equalize(model, plan.equalized)
    graph = model.graph
    layers = find_planned_layers(graph, plan)
    builder = QDQBuilder(graph)
    for node in layers:
        if (rounded := learned.get(node.name or "")) is not None:
            set_weight(node, layers[node].weight, rounded, builder.names)
    # Read before activations are rewired: bias scales depend on the original inputs.
    weighted = list(find_weighted_layers(layers, plan))
    quantized = {
        value for node, layer in layers.items() for value in quantized_activations(node, layer)
    }
    for value in [
        value for value in (*graph.inputs, *computed_values(graph)) if value in quantized
    ]:
        _quantize_activation(builder, value, layers, plan)
    quantize_weights(builder, weighted, plan, learned)
    if plan.integer_bias:
        protect_float_layers(builder)
    return model


def find_planned_layers(graph: ir.Graph, plan: Plan) -> dict[ir.Node, LayerPlan]:
    """Return the layers to quantize; refuse a plan that does not fit the graph."""
    nodes = {node.name: node for node in graph}
    for name, layer in plan.layers.items():
        if name not in nodes or nodes[name].op_type != layer.op:
            raise UsageError(
                f"the plan names `{name}`, which is not a {layer.op} of this model",
                hint="a plan may leave nodes out, but not add any",
            )
    # In graph order, whatever that of the plan: the first reader stores a shared weight.
    planned = {name: layer for name, layer in plan.layers.items() if not layer.left}
    layers = {node: planned[node.name] for node in graph if node.name in planned}
    for node, layer in layers.items():
        _require_slots(node, layer)
        _require_ranges(node, layer, plan)
    return layers


def _require_slots(node: ir.Node, layer: LayerPlan) -> None:
    if len(set(layer.inputs)) < len(layer.inputs):
        raise UsageError(
            f"the plan quantizes an input of `{node.name}` twice", hint="name each input once"
        )
    slots = [*layer.inputs, *([layer.weight.slot] if layer.weight else [])]
    if any(not 0 <= slot < len(node.inputs) or node.inputs[slot] is None for slot in slots):
        raise UsageError(
            f"the plan quantizes an input of `{node.name}` that does not exist",
            hint=f"it has {len(node.inputs)} inputs; the first is number 0",
        )
    if layer.weight is not None:
        has_weight = constant_array(node.inputs[layer.weight.slot]) is not None
        if (
            not has_weight
            or node.op_type not in WEIGHTED
            or layer.weight != linear_layer(node).weight
        ):
            raise UsageError(
                f"the plan has a wrong weight or axis for `{node.name}`",
                hint="leave weights as they are in the plan that was written",
            )


def _require_ranges(node: ir.Node, layer: LayerPlan, plan: Plan) -> None:
    for value in quantized_activations(node, layer):
        if value.name not in plan.tensors:
            raise UsageError(
                f"the plan quantizes `{value.name}` at `{node.name}` without a range for it",
                hint=f'add it under "tensors", as "{value.name}": {{"low": -1.0, "high": 1.0}}',
            )
        if exceeds_scale_dtype(plan.tensors[str(value.name)], plan.activations, plan.rest):
            raise UsageError(
                f"the range of `{value.name}` is too wide for a scale in {plan.rest}",
                hint="use `--rest fp32`, or leave the layers that quantize it in float",
            )


def _quantize_activation(
    builder: QDQBuilder, value: ir.Value, layers: Mapping[ir.Node, LayerPlan], plan: Plan
) -> None:
    """Quantize a tensor for all its readers, or only for those whose layer says so."""
    producer = value.producer()
    for_all = producer is not None and producer in layers and layers[producer].output
    readers = [
        (node, slot)
        for node, slot in value.uses()
        if for_all or (node in layers and slot in layers[node].inputs)
    ]
    qparams = choose_qparams(plan.tensors[str(value.name)], plan.activations, plan.rest)
    result = builder.quantize_dequantize(value, qparams)
    for node, slot in readers:
        node.replace_input_with(slot, result)
    if for_all and value.is_graph_output():
        builder.replace_output(value, result)


def protect_float_layers(builder: QDQBuilder) -> None:
    """Keep ONNX Runtime from quantizing weights that the plan leaves in float.

    Its `WeightBiasQuantization` (1.31) takes a Conv, ConvTranspose or Gemm between Q/DQ nodes

        DequantizeLinear -> Conv -> (Relu | Clip) -> QuantizeLinear

    and quantizes its float weight too, with one scale for the whole tensor, which ruins depthwise
    filters. A LeakyRelu with slope 1 behind the Conv breaks the pattern; it changes no number and
    is fused into the convolution.
    """
    for node in [node for node in builder.graph if is_standard(node, *REQUANTIZED_BY_ORT)]:
        source = producer_of(node.inputs[0])
        if constant_array(node.inputs[1]) is None or source is None:
            continue
        if is_standard(source, "DequantizeLinear") and _is_quantized_next(node.outputs[0]):
            _insert_guard(builder, node)


def _is_quantized_next(value: ir.Value) -> bool:
    reader = only_reader(value)
    while reader is not None and is_standard(reader, *FUSED_BY_ORT):
        reader = only_reader(reader.outputs[0])
    return reader is not None and is_standard(reader, "QuantizeLinear")


def _insert_guard(builder: QDQBuilder, node: ir.Node) -> None:
    value = node.outputs[0]
    readers = list(value.uses())
    guard = builder.make_node("LeakyRelu", [value], f"{value.name}_kept_float")
    guard.attributes.add(ir.AttrFloat32("alpha", 1.0))
    guard.outputs[0].type, guard.outputs[0].shape = value.type, value.shape
    builder.graph.insert_after(node, guard)
    for reader, slot in readers:
        reader.replace_input_with(slot, guard.outputs[0])
