"""Reasons to leave a node in float that do not depend on other nodes, and what a node is made of.

A check returns the reason, or nothing.
"""

import onnx_ir as ir

from qconvert.graph import patterns
from qconvert.graph.observed import MOVING
from qconvert.quantize.plan import Layer, Weight

ACTIVATIONS = frozenset({"Relu", "Clip"})
SCORES = frozenset({"Softmax", "LogSoftmax"})


def constant_weight(node: ir.Node) -> str:
    """Refuse a weight that the graph computes, or that is not float32."""
    weight = node.inputs[1]
    if weight is None or patterns.constant(weight) is None:
        return "its weight is not constant"
    return "" if weight.dtype is ir.DataType.FLOAT else f"its weight is {_kind(weight)}"


def plain_product(node: ir.Node) -> str:
    """Refuse a Gemm that scales or turns what it reads, which no integer kernel does."""
    if node.op_type != "Gemm":
        return ""
    scaled = any(node.attributes.get_float(name, 1.0) != 1.0 for name in ("alpha", "beta"))
    turned = node.attributes.get_int("transA", 0)
    return "it scales or transposes its input" if scaled or turned else ""


def flat_weight(node: ir.Node) -> str:
    """Refuse a stack of weight matrices."""
    shape = node.inputs[1].shape if node.inputs[1] is not None else None
    flat = shape is not None and len(shape) == 2
    return "" if flat or len(activations(node)) == 2 else "its weight is not one matrix"


def float_activations(node: ir.Node) -> str:
    """Refuse activations that are not float32, such as a model's integers or halves."""
    kinds = [node.inputs[slot] for slot in activations(node)]
    wrong = [value for value in kinds if value is None or value.dtype is not ir.DataType.FLOAT]
    return f"it reads {_kind(wrong[0])}" if wrong else ""


def two_activations(node: ir.Node) -> str:
    """Refuse an operator one side of which is constant."""
    constant = len(activations(node)) < len(node.inputs)
    return "one of its inputs is constant" if constant else ""


def no_attention(node: ir.Node) -> str:
    """Refuse products that make scores for a Softmax, or weigh values with its probabilities."""
    if len(activations(node)) < 2:
        return ""
    asked = _before(node.inputs[0], SCORES) or _after(node.outputs[0], SCORES)
    return "attention scores and probabilities need more than 8 bits" if asked else ""


def linear(node: ir.Node) -> Layer:
    """Return the layer of a convolution or a product: input and weight, or two activations."""
    slots = activations(node)
    if node.op_type in ("Gemm", "MatMul") and len(slots) == 2:
        return Layer(node.op_type, inputs=slots)
    return Layer(node.op_type, inputs=(0,), weight=Weight(1, _channels(node)))


def activations(node: ir.Node) -> tuple[int, ...]:
    """Return the places of the inputs that change with the image, biases and limits left out."""
    most = 2 if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul") else len(node.inputs)
    most = 1 if node.op_type in MOVING | {"Clip"} else most
    return tuple(
        slot
        for slot, value in enumerate(node.inputs[:most])
        if value is not None and patterns.constant(value) is None
    )


def fused_activation(node: ir.Node) -> ir.Node | None:
    """Return the Relu or Clip that runtimes fuse into a node: the only reader of its result."""
    reader = patterns.only_reader(node.outputs[0])
    return reader if reader is not None and reader.op_type in ACTIVATIONS else None


def weight_shape(node: ir.Node) -> tuple[int, ...]:
    """Return the shape of a node's constant weight."""
    array = patterns.constant(node.inputs[1])
    return () if array is None else array.shape


def _channels(node: ir.Node) -> int:
    """Return the axis of a weight along which the results differ."""
    if node.op_type == "ConvTranspose":
        return 1
    if node.op_type == "Gemm":
        return 0 if node.attributes.get_int("transB", 0) else 1
    return 0 if node.op_type == "Conv" else max(0, len(weight_shape(node)) - 1)


# On the way between a product and its Softmax, and between a Softmax and the next product.
_PASSED = MOVING | {"Add", "Sub", "Mul", "Div", "Where", "Cast"}


def _before(value: ir.Value | None, wanted: frozenset[str]) -> bool:
    while value is not None and (node := value.producer()) is not None:
        if node.op_type in wanted:
            return True
        if node.op_type not in _PASSED:
            return False
        value = node.inputs[0]
    return False


def _after(value: ir.Value, wanted: frozenset[str]) -> bool:
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


def _kind(value: ir.Value | None) -> str:
    known = value is not None and value.dtype is not None
    return str(value.dtype).lower() if known and value is not None else "of unknown type"
