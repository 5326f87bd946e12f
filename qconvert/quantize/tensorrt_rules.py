"""What TensorRT and TensorRT for RTX quantize.

Their builders fuse by themselves: inputs of heavy operators are quantized. Outputs never are, nor
anything between a convolution, its normalization and its activation, so that every fusion stays
possible. Of an Add only the branch that is not fused is quantized.
"""

from dataclasses import replace

import onnx_ir as ir

from qconvert.graph import patterns
from qconvert.quantize.plan import LayerPlan
from qconvert.quantize.scheme import (
    MIN_CHANNELS,
    SUBGRAPHS,
    OperatorRule,
    QuantizedNodes,
    activation_slots,
    constant_weight,
    float_activations,
    leave_in_float,
    linear_layer,
    matrix_weight,
    not_expectation,
    two_activations,
    unscaled_product,
)


def residual_layer(node: ir.Node) -> LayerPlan:
    """Quantize the branch that the engine does not fuse with the Add."""
    slot = find_residual_slot(node)
    inputs = () if slot is None else (slot,)
    return LayerPlan(node.op_type, inputs=inputs, note="the branch that is not fused is quantized")


def not_tiny(node: ir.Node) -> str:
    """Refuse convolutions with too few channels to fill an integer kernel."""
    shape, kernel = patterns.weight_shape(node), patterns.weight_shape(node)[2:]
    if not kernel:
        return ""
    group = node.attributes.get_int("group", 1)
    if node.op_type == "Conv":
        outputs, inputs = shape[0], shape[1]
    else:
        outputs, inputs = shape[1] * group, shape[0] // group
    if outputs >= MIN_CHANNELS and inputs >= MIN_CHANNELS:
        return ""
    if group > 1:
        worthwhile = outputs % 8 == 0 and min(kernel) >= 3
    else:
        reads_image = node.inputs[0] is not None and node.inputs[0].is_graph_input()
        wide = max(outputs, inputs) >= MIN_CHANNELS or reads_image
        square = len(set(kernel)) == 1
        worthwhile = square and wide and (outputs % 8 == 0 or inputs % 8 == 0)
    if worthwhile:
        return ""
    channels = f"{inputs} to {outputs} channels" + (f" in {group} groups" if group > 1 else "")
    return f"{channels} and a {'x'.join(map(str, kernel))} kernel are too few for integer kernels"


def no_narrow_groups(node: ir.Node) -> str:
    """Refuse convolutions whose groups TensorRT for RTX fills up with zeros.

    Its INT8 kernels multiply 16 channels at a time. An engine of depthwise convolutions holds 360
    times the bytes of their weights (release 1.7, measured by building them).
    """
    group = node.attributes.get_int("group", 1)
    shape = patterns.weight_shape(node)
    channels = shape[1] if node.op_type == "Conv" else shape[0] // group
    if group == 1 or channels >= MIN_CHANNELS // 4:
        return ""
    return f"TensorRT for RTX pads groups of {channels} channels to {MIN_CHANNELS} in integers"


def not_matrix_vector(node: ir.Node) -> str:
    """Refuse products of a single row or column: they are bound by memory, not by arithmetic."""
    shape, weight = node.outputs[0].shape, patterns.weight_shape(node)
    if shape is None or len(shape) < 2 or len(weight) != 2:
        return ""
    if all(size == 1 for size in shape[:-1]):
        return "a product of one row (a fixed batch of 1) is no faster in integers"
    inner, columns = (
        reversed(weight) if node.op_type == "Gemm" and patterns.is_transposed(node) else weight
    )
    if columns == 1:
        return "a product with one column is no faster in integers"
    if min(inner, columns) < MIN_CHANNELS:
        return f"a {inner}x{columns} weight is too small for integer kernels"
    return ""


def not_two_activations(node: ir.Node) -> str:
    """Refuse a product of two activations, which engines fuse into attention in float."""
    both = len(activation_slots(node)) == 2
    return "a product of two activations runs fused in float" if both else ""


def has_residual_convolution(node: ir.Node) -> str:
    """Refuse an Add that no convolution feeds, such as the residuals of a transformer."""
    missing = find_residual_slot(node) is None
    return "no convolution can be fused with it" if missing else ""


def need_quantized_branch(node: ir.Node, quantized: QuantizedNodes) -> str:
    """Require that the convolution with which the Add is fused is quantized."""
    slot = find_residual_slot(node)
    fused = find_convolution_behind(node.inputs[1 - slot]) if slot is not None else None
    return "" if fused in quantized else "the convolution it is fused with is left in float"


def need_quantized_neighbour(node: ir.Node, quantized: QuantizedNodes) -> str:
    """Require that a quantized operator computes the input of a pool, or reads its output."""
    producer = patterns.producer_of(node.inputs[0], *patterns.MOVING, *patterns.RECTIFIERS)
    near = producer in quantized or _is_consumed(node.outputs[0], quantized)
    return "" if near else "neither the operator before it nor one after it is quantized"


def need_quantized_reader(node: ir.Node, quantized: QuantizedNodes) -> str:
    """Require a quantizer behind the output that can move in front of the node."""
    return "" if _is_consumed(node.outputs[0], quantized) else "nothing that reads it is quantized"


def _is_consumed(value: ir.Value, quantized: QuantizedNodes) -> bool:
    """Whether a quantized linear operator reads a tensor, directly or moved."""
    return any(
        (node.op_type in patterns.WEIGHTED and node in quantized)
        or (
            node.op_type in patterns.MOVING | {"Concat"}
            and any(_is_consumed(output, quantized) for output in node.outputs)
        )
        for node, _ in value.uses()
    )


def find_residual_slot(node: ir.Node) -> int | None:
    """Return the input of an Add that is only added; None if nothing can be fused with it.

    An engine computes `relu(conv(x) + shortcut)` in one kernel. If both inputs come from a
    convolution, the one with fewer nodes since the branches parted is the shortcut.
    """
    if len(node.inputs) != 2:
        return None
    convolutions = [find_convolution_behind(value) for value in node.inputs]
    first, second = (_distances(value) for value in node.inputs)
    slot = 0 if convolutions[0] is None else 1
    if None not in convolutions and (common := first.keys() & second.keys()):
        parting = min(common, key=lambda value: (first[value] + second[value], value.name or ""))
        slot = 0 if first[parting] < second[parting] else 1
    fused = convolutions[1 - slot]
    # The shortcut must not depend on the convolution, or it cannot be ready when that is computed.
    depends = fused is not None and fused.outputs[0] in (first, second)[slot]
    return None if fused is None or depends else slot


def find_convolution_behind(value: ir.Value | None) -> ir.Node | None:
    """Return the convolution that computes a tensor, together with operators fused with it."""
    while (node := patterns.producer_of(value)) is not None:
        if node.op_type in patterns.CONVOLUTIONS:
            return node
        value = _fused_input(node)
    return None


def _fused_input(node: ir.Node) -> ir.Value | None:
    """Return the tensor that an operator fused with a convolution reads; None for others."""
    if node.op_type in patterns.RECTIFIERS | {"BatchNormalization", "MaxPool", "Identity"}:
        return node.inputs[0]
    if node.op_type in ("Mul", "Add") and len(node.inputs) == 2:
        activations = [value for value in node.inputs if patterns.constant_array(value) is None]
        if len(activations) == 1:
            return activations[0]
        # SiLU: x * sigmoid(x).
        for gate, value in (node.inputs, reversed(node.inputs)):
            sigmoid = patterns.producer_of(gate)
            if sigmoid is not None and "Sigmoid" in sigmoid.op_type and sigmoid.inputs[0] is value:
                return value
    return None


def _distances(value: ir.Value | None) -> dict[ir.Value, int]:
    """Return for each tensor before `value` the smallest number of nodes between the two."""
    distances = {value: 0} if value is not None else {}
    queue = list(distances)
    for tensor in queue:
        node = tensor.producer()
        for source in node.inputs if node is not None else ():
            if source is not None and source not in distances:
                distances[source] = distances[tensor] + 1
                queue.append(source)
    return distances


TENSORRT_RULES = (
    OperatorRule(
        patterns.CONVOLUTIONS,
        linear_layer,
        (constant_weight, float_activations, not_expectation, not_tiny),
    ),
    OperatorRule(
        frozenset({"Gemm", "MatMul"}),
        linear_layer,
        checks=(
            *(float_activations, unscaled_product, not_two_activations),
            *(matrix_weight, not_matrix_vector),
        ),
    ),
    OperatorRule(
        frozenset({"Add"}),
        residual_layer,
        checks=(two_activations, float_activations, has_residual_convolution),
        needs=(need_quantized_branch,),
    ),
    OperatorRule(
        frozenset({"AveragePool", "GlobalAveragePool"}),
        lambda node: LayerPlan(node.op_type, inputs=(0,)),
        checks=(float_activations,),
        needs=(need_quantized_neighbour,),
    ),
    # No quantizer: the builder moves that of the next operator in front of these two.
    OperatorRule(
        frozenset({"MaxPool"}),
        lambda node: LayerPlan(node.op_type, note="passes the scale of its input through"),
        needs=(need_quantized_reader,),
    ),
    OperatorRule(
        frozenset({"Concat"}),
        lambda node: LayerPlan(node.op_type, note="its inputs share one scale"),
        checks=(float_activations,),
        needs=(need_quantized_reader,),
    ),
    leave_in_float("Softmax", "LayerNormalization", "Gelu", why="it loses too much in 8 bits"),
    SUBGRAPHS,
)

RTX_RULES = (
    replace(TENSORRT_RULES[0], checks=(*TENSORRT_RULES[0].checks, no_narrow_groups)),
    *TENSORRT_RULES[1:],
)
