"""Rules for ONNX Runtime's integer kernels: outputs are quantized too, so that chains stay integer.

A Relu or Clip is absorbed by the quantizer behind the operator before it. Operators that move or
combine values are quantized inside a chain of integers, and never start one.
"""

from dataclasses import replace

import onnx_ir as ir

from qconvert.graph.patterns import (
    FUSIBLE_ACTIVATIONS,
    find_fused_activation,
    only_moves_values,
    producer_of,
)
from qconvert.quantize.plan import LayerPlan
from qconvert.quantize.scheme import (
    SUBGRAPHS,
    OperatorRule,
    QuantizedNodes,
    activation_slots,
    constant_weight,
    float_activations,
    leave_in_float,
    linear_layer,
    matrix_weight,
    not_attention,
    two_activations,
    unscaled_product,
)


def chain_layer(node: ir.Node) -> LayerPlan:
    """Quantize inputs, weight and output; a fused Relu or Clip has the output quantizer."""
    layer = LayerPlan(node.op_type, inputs=activation_slots(node))
    layer = linear_layer(node) if node.op_type == "Conv" else layer
    return replace(layer, output=find_fused_activation(node) is None)


def activation_layer(node: ir.Node) -> LayerPlan:
    """Quantize the output only."""
    return LayerPlan(node.op_type, output=True, note="absorbed by the operator before it")


def mover_layer(node: ir.Node) -> LayerPlan:
    """Quantize input and outputs: moving integers needs one scale."""
    note = "has the scale of the tensor it moves"
    return LayerPlan(node.op_type, inputs=(0,), output=True, note=note)


def moves_activation(node: ir.Node) -> str:
    """Refuse a Resize that interpolates new values, and a Gather from a constant."""
    if not activation_slots(node):
        return "it reads no activation"
    return "" if only_moves_values(node) else "its outputs are not values of its input"


def need_quantized_activation(node: ir.Node, quantized: QuantizedNodes) -> str:
    """Require that a fused Relu or Clip can have the output quantizer."""
    fused = find_fused_activation(node)
    if fused is None or fused in quantized:
        return ""
    return f"its {fused.op_type} is left in float"


def need_quantized_producer(node: ir.Node, quantized: QuantizedNodes) -> str:
    """Require that a Relu or Clip is fused with a quantized operator."""
    producer = producer_of(node.inputs[0])
    if producer is None or find_fused_activation(producer) is not node:
        return "other operators read its input"
    if producer not in quantized:
        return "the operator before it is left in float"
    # A product has a kernel with float output, a convolution does not.
    return (
        need_quantized_consumer(node, quantized) if producer.op_type in ("Gemm", "MatMul") else ""
    )


def need_quantized_inputs(node: ir.Node, quantized: QuantizedNodes) -> str:
    """Require that quantized operators compute all activations that a node reads."""
    complete = all(producer_of(node.inputs[slot]) in quantized for slot in activation_slots(node))
    return "" if complete else "its inputs are not computed by quantized operators"


def need_quantized_consumer(node: ir.Node, quantized: QuantizedNodes) -> str:
    """Require that a quantized operator reads an output."""
    read = any(use.node in quantized for value in node.outputs for use in value.uses())
    return "" if read else "no quantized operator reads its output"


RULES = (
    OperatorRule(
        frozenset({"Conv"}),
        chain_layer,
        checks=(constant_weight, float_activations),
        needs=(need_quantized_activation,),
    ),
    OperatorRule(
        frozenset({"Gemm", "MatMul"}),
        linear_layer,
        checks=(float_activations, unscaled_product, not_attention, matrix_weight),
    ),
    OperatorRule(
        FUSIBLE_ACTIVATIONS,
        activation_layer,
        needs=(need_quantized_producer,),
        fuses_with_producer=True,
    ),
    OperatorRule(
        frozenset({"Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool"})
        | {"Sigmoid", "LeakyRelu"},
        chain_layer,
        checks=(two_activations, float_activations),
        needs=(need_quantized_inputs, need_quantized_consumer, need_quantized_activation),
    ),
    OperatorRule(
        # These have integer kernels; others that only move values run in float.
        frozenset({"Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Identity"})
        | {"Slice", "Split", "Gather", "MaxPool", "Resize", "DepthToSpace"},
        mover_layer,
        checks=(moves_activation, float_activations),
        needs=(need_quantized_inputs, need_quantized_consumer),
        computes=False,
    ),
    leave_in_float("Softmax", why="8 bits are too few for probabilities"),
    leave_in_float(
        *("LayerNormalization", "InstanceNormalization", "GroupNormalization", "ConvTranspose"),
        *("Einsum", "LSTM", "GRU", "RNN", "Gelu", "HardSwish"),
        why="ONNX Runtime has no integer kernel for it on the CPU",
    ),
    SUBGRAPHS,
)
