"""Rules for a runtime with integer kernels: results are rounded too, so that chains stay integer.

A Relu or Clip vanishes into the rounding of the operator before it. What only moves values, and
what works value by value, is quantized inside a chain and never to start one.
"""

import onnx_ir as ir

from qconvert.graph.observed_tensors import only_moves_values
from qconvert.graph.patterns import FUSIBLE_ACTIVATIONS, find_fused_activation
from qconvert.quantize import checks
from qconvert.quantize.checks import activation_slots, linear_layer
from qconvert.quantize.plan import LayerPlan
from qconvert.quantize.scheme import OperatorRule, QuantizedNodes, leave_in_float

# Integer kernels exist for these; the others that only move values run in float.
INTEGER_MOVERS = frozenset(
    {
        *("Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Identity"),
        *("Slice", "Split", "Gather", "MaxPool", "Resize", "DepthToSpace"),
    }
)
PRODUCTS = frozenset({"Gemm", "MatMul"})


def convolution_layer(node: ir.Node) -> LayerPlan:
    """Round what is fused with the convolution in place of its own result."""
    fused = find_fused_activation(node) is not None
    layer = linear_layer(node)
    return LayerPlan(layer.op, layer.inputs, layer.weight, output=not fused)


def elementwise_layer(node: ir.Node) -> LayerPlan:
    """Round the inputs, and the result unless a Relu or Clip takes that place."""
    fused = find_fused_activation(node) is not None
    return LayerPlan(node.op_type, inputs=activation_slots(node), output=not fused)


def mover_layer(node: ir.Node) -> LayerPlan:
    """Round input and results alike: what only moves integers needs one scale."""
    note = "has the scale of what it moves"
    return LayerPlan(node.op_type, inputs=(0,), output=True, note=note)


def activation_layer(node: ir.Node) -> LayerPlan:
    """Round the result alone."""
    return LayerPlan(node.op_type, output=True, note="vanishes into the operator before it")


def need_quantized_activation(node: ir.Node, chosen: QuantizedNodes) -> str:
    """Ask that the Relu or Clip fused with a node can be rounded in its place."""
    fused = find_fused_activation(node)
    lost = fused is not None and not chosen.contains(fused)
    return f"its {fused.op_type} is left in float" if lost and fused is not None else ""


def need_quantized_producer(node: ir.Node, chosen: QuantizedNodes) -> str:
    """Ask that a Relu or Clip follows an operator that is quantized and has no other reader."""
    made = node.inputs[0]
    producer = made.producer() if made is not None else None
    if producer is None or find_fused_activation(producer) is not node:
        return "other operators read what it reads"
    if not chosen.contains(producer):
        return "the operator before it is left in float"
    # A product can answer in float by itself, a convolution cannot.
    return need_quantized_consumer(node, chosen) if producer.op_type in PRODUCTS else ""


def need_quantized_inputs(node: ir.Node, chosen: QuantizedNodes) -> str:
    """Ask that quantized operators make all that a node reads."""
    made = all(chosen.produces(node.inputs[slot]) for slot in activation_slots(node))
    return "" if made else "what it reads is not made by a quantized operator"


def need_quantized_consumer(node: ir.Node, chosen: QuantizedNodes) -> str:
    """Ask that a quantized operator reads what a node makes."""
    read = any(chosen.consumes(value) for value in node.outputs)
    return "" if read else "no quantized operator reads what it makes"


def moves_activation(node: ir.Node) -> str:
    """Refuse a Resize that makes new values, and a Gather from a constant."""
    if not activation_slots(node):
        return "it reads no activation"
    return "" if only_moves_values(node) else "it makes values that it does not read"


NO_KERNEL = "ONNX Runtime has no integer kernel for it on the CPU"
RULES = (
    OperatorRule(
        frozenset({"Conv"}),
        convolution_layer,
        checks=(checks.constant_weight, checks.float_activations),
        needs=(need_quantized_activation,),
    ),
    OperatorRule(
        PRODUCTS,
        linear_layer,
        checks=(
            checks.float_activations,
            checks.unscaled_product,
            checks.not_attention,
            checks.matrix_weight,
        ),
    ),
    OperatorRule(
        FUSIBLE_ACTIVATIONS,
        activation_layer,
        needs=(need_quantized_producer,),
        fuses_with_producer=True,
    ),
    OperatorRule(
        frozenset({"Add", "Mul"}),
        elementwise_layer,
        checks=(checks.two_activations, checks.float_activations),
        needs=(need_quantized_inputs, need_quantized_consumer, need_quantized_activation),
    ),
    OperatorRule(
        frozenset({"Concat", "AveragePool", "GlobalAveragePool", "Sigmoid", "LeakyRelu"}),
        elementwise_layer,
        checks=(checks.two_activations, checks.float_activations),
        needs=(need_quantized_inputs, need_quantized_consumer, need_quantized_activation),
    ),
    OperatorRule(
        INTEGER_MOVERS,
        mover_layer,
        checks=(moves_activation, checks.float_activations),
        needs=(need_quantized_inputs, need_quantized_consumer),
        computes=False,
    ),
    leave_in_float("Softmax", why="8 bits are too few for probabilities"),
    leave_in_float(
        "LayerNormalization", "InstanceNormalization", "GroupNormalization", why=NO_KERNEL
    ),
    leave_in_float(
        "ConvTranspose", "Einsum", "LSTM", "GRU", "RNN", "Gelu", "HardSwish", why=NO_KERNEL
    ),
    leave_in_float("If", "Loop", "Scan", why="it holds a graph of its own, which is left as it is"),
)
