"""Reasons to leave a node in float that do not depend on other nodes, and what a node is made of.

A check returns the reason, or nothing.
"""

import onnx_ir as ir

from qconvert.graph import patterns
from qconvert.graph.observed_tensors import MOVING
from qconvert.graph.patterns import weight_shape
from qconvert.quantize.plan import LayerPlan, WeightSlot

SOFTMAX_OPS = frozenset({"Softmax", "LogSoftmax"})


def constant_weight(node: ir.Node) -> str:
    """Refuse a weight that the graph computes, or that is not float32."""
    weight = node.inputs[1]
    if weight is None or patterns.constant_array(weight) is None:
        return "its weight is not constant"
    return "" if weight.dtype is ir.DataType.FLOAT else f"its weight is {_type_name(weight)}"


def unscaled_product(node: ir.Node) -> str:
    """Refuse a Gemm that scales or turns what it reads, which no integer kernel does."""
    if node.op_type != "Gemm":
        return ""
    scaled = any(node.attributes.get_float(name, 1.0) != 1.0 for name in ("alpha", "beta"))
    turned = node.attributes.get_int("transA", 0)
    return "it scales or transposes its input" if scaled or turned else ""


def matrix_weight(node: ir.Node) -> str:
    """Refuse a stack of weight matrices."""
    shape = node.inputs[1].shape if node.inputs[1] is not None else None
    flat = shape is not None and len(shape) == 2
    return "" if flat or len(activation_slots(node)) == 2 else "its weight is not one matrix"


def float_activations(node: ir.Node) -> str:
    """Refuse activations that are not float32, such as a model's integers or halves."""
    kinds = [node.inputs[slot] for slot in activation_slots(node)]
    wrong = [value for value in kinds if value is None or value.dtype is not ir.DataType.FLOAT]
    return f"it reads {_type_name(wrong[0])}" if wrong else ""


def two_activations(node: ir.Node) -> str:
    """Refuse an operator one side of which is constant."""
    constant = len(activation_slots(node)) < len(node.inputs)
    return "one of its inputs is constant" if constant else ""


def not_attention(node: ir.Node) -> str:
    """Refuse products that make scores for a Softmax, or weigh values with its probabilities."""
    if len(activation_slots(node)) < 2:
        return ""
    asked = _follows(node.inputs[0], SOFTMAX_OPS) or _feeds(node.outputs[0], SOFTMAX_OPS)
    return "attention scores and probabilities need more than 8 bits" if asked else ""


def linear_layer(node: ir.Node) -> LayerPlan:
    """Return the layer of a convolution or a product: input and weight, or two activations."""
    slots = activation_slots(node)
    if node.op_type in ("Gemm", "MatMul") and len(slots) == 2:
        return LayerPlan(node.op_type, inputs=slots)
    return LayerPlan(node.op_type, inputs=(0,), weight=WeightSlot(1, _channel_axis(node)))


def activation_slots(node: ir.Node) -> tuple[int, ...]:
    """Return the places of the inputs that change with the image, biases and limits left out."""
    most = 2 if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul") else len(node.inputs)
    most = 1 if node.op_type in MOVING | {"Clip"} else most
    return tuple(
        slot
        for slot, value in enumerate(node.inputs[:most])
        if value is not None and patterns.constant_array(value) is None
    )


def _channel_axis(node: ir.Node) -> int:
    """Return the axis of a weight along which the results differ."""
    if node.op_type == "ConvTranspose":
        return 1
    if node.op_type == "Gemm":
        return 0 if node.attributes.get_int("transB", 0) else 1
    return 0 if node.op_type == "Conv" else max(0, len(weight_shape(node)) - 1)


# On the way between a product and its Softmax, and between a Softmax and the next product.
_PASSED = MOVING | {"Add", "Sub", "Mul", "Div", "Where", "Cast"}


def _follows(value: ir.Value | None, wanted: frozenset[str]) -> bool:
    while value is not None and (node := value.producer()) is not None:
        if node.op_type in wanted:
            return True
        if node.op_type not in _PASSED:
            return False
        value = node.inputs[0]
    return False


def _feeds(value: ir.Value, wanted: frozenset[str]) -> bool:
    # Each node once: of a chain of sums that read a tensor twice there are 2**n ways through.
    seen: set[ir.Node] = set()
    waiting = [value]
    while waiting:
        for node, _ in waiting.pop().uses():
            if node.op_type in wanted:
                return True
            if node.op_type in _PASSED and node not in seen:
                seen.add(node)
                waiting.append(node.outputs[0])
    return False


def _type_name(value: ir.Value | None) -> str:
    known = value is not None and value.dtype is not None
    return str(value.dtype).lower() if known and value is not None else "of unknown type"
