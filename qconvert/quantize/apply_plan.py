"""A plan applied to a model: integer weights, and Q/DQ nodes or what else its format needs.

The graph alone says what is quantized, so any runtime that follows ONNX computes the same numbers.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from qconvert.core import onnx_io
from qconvert.core.errors import UsageError
from qconvert.core.formats import FORMATS, QuantizedFormat
from qconvert.core.scales import FloatArray, choose_qparams, exceeds_scale_dtype
from qconvert.graph import patterns
from qconvert.quantize.cross_layer import equalize
from qconvert.quantize.dynamic import quantize_at_run_time
from qconvert.quantize.integer_forms import use_integer_forms
from qconvert.quantize.placement import quantized_activations
from qconvert.quantize.plan import (
    BIAS_SLOT,
    NO_ROUNDED_WEIGHTS,
    LayerPlan,
    Plan,
    RoundedWeight,
    RoundedWeights,
    WeightSlot,
)
from qconvert.quantize.plan_files import require_matching_weights
from qconvert.quantize.qdq_builder import QDQBuilder
from qconvert.quantize.scheme import linear_layer
from qconvert.quantize.shifted_tensors import require_shiftable, shift_tensors
from qconvert.quantize.weight_only import TABLES, table_layer
from qconvert.quantize.weight_only_graph import MICROSOFT, prepare_opset, store_weights
from qconvert.quantize.weights import (
    WeightedLayer,
    find_weighted_layers,
    quantize_bias,
    rounded_integers,
    weight_qparams,
)


def apply_plan(
    model: ir.Model,
    plan: Plan,
    learned: RoundedWeights = NO_ROUNDED_WEIGHTS,
    *,
    keep_values: bool = False,
) -> ir.Model:
    """Return a copy of `model` with what the plan names quantized, `learned` weights exactly.

    With `keep_values` no tensor is shifted: those of the plan have zero points, and all hold the
    values of the model.
    """
    if onnx_io.fingerprint(model) != plan.model:
        raise UsageError(
            "the plan was made for another model", hint="omit `--plan` to make a plan for this one"
        )
    require_matching_weights(learned, plan.learned)
    model = equalize(model, plan.equalized)
    if FORMATS[plan.precision].weights_only:
        model = prepare_opset(model)
    graph = model.graph
    layers = find_planned_layers(graph, plan)
    if not keep_values:
        require_shiftable(graph, plan)
    builder = QDQBuilder(graph)
    for node, layer in layers.items():
        rounded = learned.get(node.name or "")
        if rounded is not None and FORMATS[plan.precision].weights_only:
            set_bias(node, rounded.bias, builder.names)  # the rewrite takes the integers
        elif rounded is not None:
            set_weight(node, layer.weight, rounded, builder.names)
    REWRITES[plan.precision](builder, layers, plan, learned)
    if not keep_values:
        shift_tensors(graph, plan.shifted, builder.names)
    if any(node.domain == MICROSOFT for node in graph):
        model.opset_imports[MICROSOFT] = 1
    return model


def insert_qdq(
    builder: QDQBuilder, layers: Mapping[ir.Node, LayerPlan], plan: Plan, learned: RoundedWeights
) -> None:
    """Quantize what a plan names by Q/DQ nodes with the scales of its ranges."""
    graph = builder.graph
    # Read before activations are rewired: bias scales depend on the original inputs.
    weighted = list(find_weighted_layers(layers, plan))
    quantized = {value for item in layers.items() for value in quantized_activations(*item)}
    for value in (*graph.inputs, *patterns.computed_values(graph)):  # those before any is quantized
        if value in quantized:
            _quantize_activation(builder, value, layers, plan)
    _quantize_weights(builder, weighted, plan, learned)
    use_integer_forms(builder, layers, plan.activations)
    if plan.integer_bias:
        _protect_float_layers(builder)


Rewrite = Callable[[QDQBuilder, Mapping[ir.Node, LayerPlan], Plan, RoundedWeights], None]
REWRITES: Mapping[QuantizedFormat, Rewrite] = {
    "int8": insert_qdq,
    "int8-dynamic": quantize_at_run_time,
    "int8-weights": store_weights,
    "int4-weights": store_weights,
}


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
        if layer.weight is not None and not (
            patterns.constant_array(node.inputs[layer.weight.slot]) is not None
            and replace(layer.weight, bits=None) == _weight_slot(node, plan)
        ):
            raise UsageError(
                f"the plan has a wrong weight or axis for `{node.name}`",
                hint="leave weights as they are in the plan that was written",
            )
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
    return layers


def _weight_slot(node: ir.Node, plan: Plan) -> WeightSlot | None:
    """Return the weight that a plan may name for a node; None if it has none."""
    if node.op_type in patterns.WEIGHTED:
        return linear_layer(node).weight
    is_table = node.op_type in TABLES and FORMATS[plan.precision].weights_only
    return table_layer(node).weight if is_table else None


def set_weight(
    node: ir.Node, slot: WeightSlot | None, learned: RoundedWeight, names: patterns.UniqueNames
) -> None:
    """Give a node the float weight of its integers, and its bias; a new bias has an unused name."""
    value = node.inputs[slot.slot] if slot is not None else None
    if slot is None or value is None:
        return
    shape = [-1 if axis == slot.axis else 1 for axis in range(learned.integers.ndim)]
    patterns.set_constant(value, learned.integers * learned.steps.reshape(shape))
    set_bias(node, learned.bias, names)


def set_bias(node: ir.Node, learned: FloatArray | None, names: patterns.UniqueNames) -> None:
    """Give a node, or the Add behind it, a learned bias, if there is one."""
    if learned is None:
        return
    # The bias of the node, or what is added behind it; a new one if there is neither.
    bias = (
        node.inputs[BIAS_SLOT]
        if len(node.inputs) > BIAS_SLOT
        else patterns.find_matmul_bias(node)[1]
    )
    if bias is not None:
        patterns.set_constant(bias, learned)
    else:
        patterns.set_constant_input(node, BIAS_SLOT, names.reserve(f"{node.name}.bias"), learned)


def _quantize_activation(
    builder: QDQBuilder, value: ir.Value, layers: Mapping[ir.Node, LayerPlan], plan: Plan
) -> None:
    """Quantize a tensor for all its readers, or only for those whose layer says so."""
    producer = value.producer()
    for_all = producer is not None and producer in layers and layers[producer].output
    uses = [
        use
        for use in value.uses()
        if for_all or (use.node in layers and use.idx in layers[use.node].inputs)
    ]
    name = str(value.name)
    qparams = choose_qparams(plan.tensors[name], plan.grid_of(name), plan.rest)
    result = builder.quantize(value, qparams)
    for node, slot in uses:
        node.replace_input_with(slot, result)
    if for_all and value.is_graph_output():
        # The graph returns the result under the name that callers know.
        result.name, outputs = value.name, builder.graph.outputs
        value.name = builder.names.reserve(f"{value.name}_float")
        outputs[:] = [result if output is value else output for output in outputs]


def _quantize_weights(
    builder: QDQBuilder, layers: Sequence[WeightedLayer], plan: Plan, learned: RoundedWeights
) -> None:
    """Let each layer read its weight, and with integer biases its bias, from integers."""
    # ONNX Runtime (1.32) cannot load two layers that share integers which need the session setting
    # `session.x64quantprecision`.
    can_share = plan.portable or not plan.integer_bias
    dequantized: dict[tuple[int, str], ir.Value] = {}
    unused = [layer.weight for layer in layers]
    for layer, qparams in zip(layers, weight_qparams(layers, plan, learned), strict=True):
        node, scale, name = layer.node, qparams.scale, str(layer.weight.name)
        key = id(qparams), "" if can_share else node.name or ""
        if key not in dequantized:
            integers = rounded_integers(layer, qparams, learned)
            dequantized[key] = builder.dequantize(integers, name, scale, layer.axis, node)
        node.replace_input_with(layer.slot, dequantized[key])
        bias = node.inputs[BIAS_SLOT] if layer.integer_bias and layer.bias is not None else None
        if bias is not None and layer.bias is not None:
            # No other layer shares the integers of a bias.
            scale = np.float32(layer.input_scale) * scale
            integers, name = quantize_bias(layer.bias, scale), str(bias.name)
            node.replace_input_with(BIAS_SLOT, builder.dequantize(integers, name, scale, 0, node))
            unused.append(bias)
    for value in unused:
        if not value.uses() and not value.is_graph_output():
            builder.graph.initializers.pop(value.name or "", None)


def _protect_float_layers(builder: QDQBuilder) -> None:
    """Keep ONNX Runtime from quantizing weights that the plan leaves in float.

    Its `WeightBiasQuantization` (1.32) takes a Conv, ConvTranspose or Gemm between Q/DQ nodes

        DequantizeLinear -> Conv -> (Relu | Clip) -> QuantizeLinear

    and quantizes its float weight too, with one scale for the whole tensor, which ruins depthwise
    filters. Operators that only move values may stand between: it moves Q/DQ nodes across them
    first. A LeakyRelu with slope 1 behind the Conv breaks the pattern; it changes no number and is
    fused into the convolution.
    """
    linear = ("Conv", "ConvTranspose", "Gemm")
    for node in [node for node in builder.graph if patterns.is_standard(node, *linear)]:
        source, value = patterns.producer_of(node.inputs[0], *patterns.MOVING), node.outputs[0]
        if source is None or not patterns.is_standard(source, "DequantizeLinear"):
            continue
        # Nothing to protect if the weight is quantized.
        if patterns.constant_array(node.inputs[1]) is not None and _leads_to_quantizer(value):
            uses, name = value.uses(), f"{value.name}_kept_float"
            guard = builder.node("LeakyRelu", [value], name, value.dtype, alpha=1.0)
            builder.graph.insert_after(node, guard)
            for user, slot in uses:
                user.replace_input_with(slot, guard.outputs[0])


def _leads_to_quantizer(value: ir.Value) -> bool:
    """Whether only a quantizer reads a tensor; that the graph returns it too does not matter."""
    readers = [use.node for use in value.uses()]
    if len(readers) != 1:
        return False
    if patterns.is_standard(readers[0], *patterns.MOVING, *patterns.FUSIBLE_ACTIVATIONS):
        return _leads_to_quantizer(readers[0].outputs[0])
    return patterns.is_standard(readers[0], "QuantizeLinear")
