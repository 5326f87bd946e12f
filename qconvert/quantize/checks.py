"""Checks that look at one node: each returns the reason to leave it in float, or nothing."""

import onnx_ir as ir

from qconvert.graph.observed_tensors import MOVING
from qconvert.graph.patterns import WEIGHTED, constant_array, is_transposed, weight_shape
from qconvert.quantize.plan import LayerPlan, WeightSlot

SOFTMAX_OPS = frozenset({"Softmax", "LogSoftmax"})
# Found between a product and its Softmax, and between a Softmax and the next product.
_ATTENTION_STEPS = MOVING | {"Add", "Sub", "Mul", "Div", "Where", "Cast"}


def constant_weight(node: ir.Node) -> str:
    """Refuse a weight that the graph computes, or that is not float32."""
    weight = node.inputs[1]
    if weight is None or constant_array(weight) is None:
        return "its weight is not constant"
    return "" if weight.dtype is ir.DataType.FLOAT else f"its weight is {_type_name(weight)}"


def unscaled_product(node: ir.Node) -> str:
    """Refuse a Gemm that scales or transposes its input, which no integer kernel does."""
    if node.op_type != "Gemm":
        return ""
    scaled = any(node.attributes.get_float(name, 1.0) != 1.0 for name in ("alpha", "beta"))
    transposed = node.attributes.get_int("transA", 0)
    return "it scales or transposes its input" if scaled or transposed else ""


def matrix_weight(node: ir.Node) -> str:
    """Refuse a stack of weight matrices."""
    shape = node.inputs[1].shape if node.inputs[1] is not None else None
    is_matrix = shape is not None and len(shape) == 2
    return "" if is_matrix or len(activation_slots(node)) == 2 else "its weight is not one matrix"


def float_activations(node: ir.Node) -> str:
    """Refuse activations that are not float32, such as integers or half precision."""
    for slot in activation_slots(node):
        value = node.inputs[slot]
        if value is None or value.dtype is not ir.DataType.FLOAT:
            return f"it reads {_type_name(value)}"
    return ""


def two_activations(node: ir.Node) -> str:
    """Refuse an operator with a constant input."""
    has_constant = len(activation_slots(node)) < len(node.inputs)
    return "one of its inputs is constant" if has_constant else ""


def not_attention(node: ir.Node) -> str:
    """Refuse products that compute the scores of a Softmax, or use its probabilities."""
    if len(activation_slots(node)) < 2:
        return ""
    attends = _follows_softmax(node.inputs[0]) or _feeds_softmax(node.outputs[0])
    return "attention scores and probabilities need more than 8 bits" if attends else ""


def linear_layer(node: ir.Node) -> LayerPlan:
    """Quantize a convolution or a product: input and weight, or two activations."""
    slots = activation_slots(node)
    if node.op_type in ("Gemm", "MatMul") and len(slots) == 2:
        return LayerPlan(node.op_type, inputs=slots)
    return LayerPlan(node.op_type, inputs=(0,), weight=WeightSlot(1, _channel_axis(node)))


def activation_slots(node: ir.Node) -> tuple[int, ...]:
    """Return the indices of the inputs that change with the image; never of biases or limits."""
    most = 2 if node.op_type in WEIGHTED else len(node.inputs)
    most = 1 if node.op_type in MOVING | {"Clip"} else most
    return tuple(
        slot
        for slot, value in enumerate(node.inputs[:most])
        if value is not None and constant_array(value) is None
    )


def _channel_axis(node: ir.Node) -> int:
    """Return the axis of a weight that holds the output channels."""
    if node.op_type == "Gemm":
        return 0 if is_transposed(node) else 1
    if node.op_type == "MatMul":
        return max(0, len(weight_shape(node)) - 1)
    return 1 if node.op_type == "ConvTranspose" else 0


def _follows_softmax(value: ir.Value | None) -> bool:
    while value is not None and (node := value.producer()) is not None:
        if node.op_type in SOFTMAX_OPS:
            return True
        if node.op_type not in _ATTENTION_STEPS:
            return False
        value = node.inputs[0]
    return False


def _feeds_softmax(value: ir.Value) -> bool:
    # Visit each node once: a chain of n sums that read a tensor twice has 2**n paths.
    visited: set[ir.Node] = set()
    pending = [value]
    while pending:
        for node, _ in pending.pop().uses():
            if node.op_type in SOFTMAX_OPS:
                return True
            if node.op_type in _ATTENTION_STEPS and node not in visited:
                visited.add(node)
                pending.append(node.outputs[0])
    return False


def _type_name(value: ir.Value | None) -> str:
    dtype = value.dtype if value is not None else None
    return "a tensor of unknown type" if dtype is None else str(dtype).lower()
