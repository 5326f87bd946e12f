"""Dynamic INT8: weights are integers in the file, activations become integers at every run.

    MatMul(x, W) + b   =>   q, s, z = DynamicQuantizeLinear(x)
                            Cast(MatMulInteger(q, Wq, z)) * (s * Ws) + b

s and z come from the smallest and the largest value of the tensor in this run, Ws has a scale for
each column of W. ONNX Runtime fuses the nodes into one DynamicQuantizeMatMul, or into
MatMulIntegerToFloat where several products read x, which is then quantized once. A Gemm has its
weight transposed in the file, `alpha` multiplied into Ws and `beta` into its bias.

An LSTM becomes ONNX Runtime's DynamicQuantizeLSTM, which quantizes its input and its state.
"""

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from qconvert.graph import patterns
from qconvert.quantize.plan import BIAS_SLOT, LayerPlan, Plan, RoundedWeights
from qconvert.quantize.qdq_builder import QDQBuilder
from qconvert.quantize.scheme import (
    SUBGRAPHS,
    OperatorRule,
    activation_slots,
    constant_weight,
    float_activations,
    leave_in_float,
    linear_layer,
    matrix_weight,
)
from qconvert.quantize.weights import (
    WEIGHT_METHODS,
    find_weighted_layers,
    quantize_weight,
    rounded_integers,
    weight_array,
    weight_qparams,
)

# Below these integers are no faster: 64 x 64 weights are 1.25 times as fast as floats on 197 rows,
# 32 x 32 ones 0.93 times, on one thread of an x86 with AVX-512 VNNI.
MIN_SIDE, MIN_WEIGHTS = 32, 64 * 64
# The inputs W and R of an LSTM, and how many inputs it has.
LSTM_WEIGHTS, LSTM_INPUTS = (1, 2), 8


def weighted_layer(node: ir.Node) -> LayerPlan:
    """Quantize the weight; the activation needs no range."""
    return LayerPlan(node.op_type, weight=linear_layer(node).weight)


def one_activation(node: ir.Node) -> str:
    """Refuse a product without a weight, as those of attention."""
    return "it multiplies two activations" if len(activation_slots(node)) == 2 else ""


def untransposed_input(node: ir.Node) -> str:
    """Refuse a Gemm that transposes its input."""
    transposed = node.op_type == "Gemm" and node.attributes.get_int("transA", 0) == 1
    return "it transposes its input" if transposed else ""


def large_weight(node: ir.Node) -> str:
    """Refuse a weight that is too small to make up for the passes that quantize the input."""
    rows, columns = patterns.weight_shape(node)
    if min(rows, columns) >= MIN_SIDE and rows * columns >= MIN_WEIGHTS:
        return ""
    return f"a {rows}x{columns} weight is too small for integer kernels"


def integer_lstm(node: ir.Node) -> str:
    """Refuse an LSTM that the integer kernel does not take, or whose weights are tiny."""
    for slot in LSTM_WEIGHTS:
        array = patterns.constant_array(node.inputs[slot])
        if array is None:
            return "its weights are not constant"
        if array.dtype != np.float32:
            return f"its weights are {array.dtype}"
        if array.shape[-1] < MIN_SIDE:
            return f"weights of {array.shape[-1]} inputs are too few for integer kernels"
    if node.attributes.get_int("layout", 0) == 1:
        return "its batch comes before its steps, and the integer kernel has it behind"
    value = node.inputs[0]
    is_float = value is not None and value.dtype is ir.DataType.FLOAT
    return "" if is_float else "its input is not float32"


DYNAMIC_RULES = (
    OperatorRule(
        frozenset({"Gemm", "MatMul"}),
        weighted_layer,
        checks=(
            *(one_activation, constant_weight, float_activations, untransposed_input),
            *(matrix_weight, large_weight),
        ),
    ),
    OperatorRule(frozenset({"LSTM"}), lambda node: LayerPlan(node.op_type), checks=(integer_lstm,)),
    leave_in_float("GRU", "RNN", why="ONNX Runtime has no integer kernel for it on the CPU"),
    leave_in_float(
        *("Conv", "ConvTranspose"),
        why="with scales at run time a convolution is 5 to 30 times slower than in float",
    ),
    SUBGRAPHS,
)


def is_mostly_products(graph: ir.Graph, layers: Mapping[str, LayerPlan]) -> bool:
    """Whether these layers quantize most weights of convolutions, products and LSTMs of a graph."""
    total = quantized = 0
    for node in graph:
        if patterns.is_standard(node, *patterns.WEIGHTED, "LSTM", "GRU", "RNN"):
            slots = (1,) if node.op_type in patterns.WEIGHTED else LSTM_WEIGHTS
            arrays = [patterns.constant_array(node.inputs[slot]) for slot in slots]
            size = sum(array.size for array in arrays if array is not None)
            total += size
            layer = layers.get(node.name or "")
            quantized += 0 if layer is None or layer.left else size
    return 2 * quantized > total


def quantize_at_run_time(
    builder: QDQBuilder, layers: Mapping[ir.Node, LayerPlan], plan: Plan, learned: RoundedWeights
) -> None:
    """Let the products of a plan quantize their inputs themselves."""
    weighted = list(find_weighted_layers(layers, plan))
    quantized: dict[ir.Value, ir.Node] = {}
    stored: dict[tuple[int, float], tuple[ir.Value, ir.Value]] = {}
    for layer, qparams in zip(weighted, weight_qparams(weighted, plan, learned), strict=True):
        value = layer.node.inputs[0]
        assert value is not None
        if value not in quantized:
            quantized[value] = _add_quantizer(builder, value)
        alpha = layer.node.attributes.get_float("alpha", 1.0)
        key = id(qparams), alpha
        if key not in stored:
            integers, name = rounded_integers(layer, qparams, learned), str(layer.weight.name)
            columns = integers.T if patterns.is_transposed(layer.node) else integers
            stored[key] = (
                builder.constant(np.ascontiguousarray(columns), f"{name}_quantized"),
                builder.constant(np.float32(alpha) * qparams.scale, f"{name}_scale"),
            )
        _replace_product(builder, layer.node, quantized[value], *stored[key])
    unused = [layer.weight for layer in weighted]
    for node in [node for node in layers if node.op_type == "LSTM"]:
        unused += [value for slot in LSTM_WEIGHTS if (value := node.inputs[slot]) is not None]
        _quantize_lstm(builder, node, plan)
    for value in unused:
        if not value.uses() and not value.is_graph_output():
            builder.graph.initializers.pop(value.name or "", None)


def _quantize_lstm(builder: QDQBuilder, node: ir.Node, plan: Plan) -> None:
    """Give an LSTM integer weights: [direction, input, 4 hidden], with a scale for each column.

    Its inputs are those of ONNX's LSTM, with the scales and zero points of both weights behind.
    """
    paired, constants = node if plan.portable else None, list[tuple[int, ir.Value]]()
    for number, slot in enumerate(LSTM_WEIGHTS):
        value = node.inputs[slot]
        assert value is not None
        array = weight_array(value, node)
        directions, columns, rows = array.shape
        matrix = np.ascontiguousarray(array.reshape(-1, rows).T)
        qparams = WEIGHT_METHODS[plan.weight_method](matrix, plan.weights, 1, plan.rest, paired)
        integers = quantize_weight(matrix, qparams, paired).reshape(rows, directions, columns)
        scale = qparams.scale.reshape(directions, columns)
        parts = {
            "quantized": (slot, np.ascontiguousarray(integers.transpose(1, 0, 2))),
            "scale": (LSTM_INPUTS + 2 * number, scale),
            "zero_point": (LSTM_INPUTS + 2 * number + 1, np.zeros(scale.shape, integers.dtype)),
        }
        for name, (place, part) in parts.items():
            constants.append((place, builder.constant(part, f"{value.name}_{name}")))
    node.domain, node.op_type = "com.microsoft", "DynamicQuantizeLSTM"
    node.resize_inputs(LSTM_INPUTS + 4)
    for place, constant in constants:
        node.replace_input_with(place, constant)
    builder.graph.opset_imports["com.microsoft"] = 1


def _add_quantizer(builder: QDQBuilder, value: ir.Value) -> ir.Node:
    """Add the node that quantizes a tensor at every run; return it."""
    name = str(value.name)
    outputs = [
        ir.val(builder.names.reserve(f"{name}_quantized"), ir.DataType.UINT8, value.shape),
        ir.val(builder.names.reserve(f"{name}_scale"), ir.DataType.FLOAT, ir.Shape([])),
        ir.val(builder.names.reserve(f"{name}_zero_point"), ir.DataType.UINT8, ir.Shape([])),
    ]
    node = ir.node("DynamicQuantizeLinear", [value], outputs=outputs, name=outputs[0].name)
    if (producer := value.producer()) is None:
        builder.graph.insert_before(builder.graph[0], node)
    else:
        builder.graph.insert_after(producer, node)
    return node


def _replace_product(
    builder: QDQBuilder, node: ir.Node, quantizer: ir.Node, weight: ir.Value, weight_scale: ir.Value
) -> None:
    """Put the integer product in place of a node; it takes over its name and its output."""
    output, float32 = node.outputs[0], ir.DataType.FLOAT
    name, (integers, scale, zero_point) = str(output.name), quantizer.outputs
    bias = _scaled_bias(builder, node)
    product = builder.node(
        "MatMulInteger", [integers, weight, zero_point], f"{name}_sums", ir.DataType.INT32
    )
    cast = builder.node(
        "Cast", [product.outputs[0]], f"{name}_cast", float32, to=ir.DataType.FLOAT.value
    )
    scales = builder.node("Mul", [scale, weight_scale], f"{name}_scale", float32)
    scaled = builder.node("Mul", [cast.outputs[0], scales.outputs[0]], f"{name}_scaled", float32)
    nodes = [product, cast, scales, scaled]
    if bias is not None:
        nodes.append(builder.node("Add", [scaled.outputs[0], bias], f"{name}_biased", float32))
    result = nodes[-1].outputs[0]
    product.name, scales.outputs[0].shape = node.name, weight_scale.shape
    for new in (product, cast, scaled, nodes[-1]):
        new.outputs[0].shape = output.shape
    builder.graph.insert_before(node, nodes)
    output.replace_all_uses_with(result, replace_graph_outputs=True)
    builder.graph.remove(node, safe=True)
    result.name = name


def _scaled_bias(builder: QDQBuilder, node: ir.Node) -> ir.Value | None:
    """Return what a Gemm adds, times its `beta`; None if it adds nothing."""
    bias = node.inputs[BIAS_SLOT] if len(node.inputs) > BIAS_SLOT else None
    beta = node.attributes.get_float("beta", 1.0)
    if bias is None or beta == 1.0:
        return bias
    factor, name = np.array(beta, np.float32), f"{bias.name}_scaled"
    array = patterns.constant_array(bias)
    if array is not None:
        return builder.constant(factor * array.astype(np.float32), name)
    product = builder.node(
        "Mul", [bias, builder.constant(factor, f"{name}_factor")], name, bias.dtype
    )
    builder.graph.insert_before(node, product)
    return product.outputs[0]
