"""What ONNX Runtime quantizes on the CPU.

Outputs are quantized too, so that chains of kernels stay integer. A Relu or Clip is absorbed by the
quantizer behind the operator before it. Operators that move or combine values are quantized inside
a chain of integers, and never start one.
"""

from dataclasses import replace

import onnx_ir as ir

from qconvert.graph import patterns
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
    not_expectation,
    two_activations,
    unscaled_product,
)


def chain_layer(node: ir.Node) -> LayerPlan:
    """Quantize inputs, weight and output; a fused Relu or Clip has the output quantizer."""
    layer = LayerPlan(node.op_type, inputs=activation_slots(node))
    layer = linear_layer(node) if node.op_type == "Conv" else layer
    return replace(layer, output=patterns.find_fused_activation(node) is None)


def moves_activation(node: ir.Node) -> str:
    """Refuse a Resize that interpolates new values, and a Gather from a constant."""
    if not activation_slots(node):
        return "it reads no activation"
    return "" if patterns.only_moves_values(node) else "its outputs are not values of its input"


def global_mean(node: ir.Node) -> str:
    """Refuse a mean over other axes than height and width, which is no pool."""
    return "" if patterns.is_global_mean(node) else "it is not the mean over height and width"


def need_quantized_activation(node: ir.Node, quantized: QuantizedNodes) -> str:
    """Require that a fused Relu or Clip can have the output quantizer."""
    fused = patterns.find_fused_activation(node)
    if fused is None or fused in quantized:
        return ""
    return f"its {fused.op_type} is left in float"


def need_quantized_producer(node: ir.Node, quantized: QuantizedNodes) -> str:
    """Require that a Relu or Clip is fused with a quantized operator."""
    producer = patterns.producer_of(node.inputs[0])
    if producer is None or patterns.find_fused_activation(producer) is not node:
        return "other operators read its input"
    if producer not in quantized:
        return "the operator before it is left in float"
    # A product has a kernel with float output, a convolution does not.
    is_product = producer.op_type in ("Gemm", "MatMul")
    return need_quantized_consumer(node, quantized) if is_product else ""


def need_quantized_inputs(node: ir.Node, quantized: QuantizedNodes) -> str:
    """Require that quantized operators compute all activations, or read them quantized anyway."""
    values = [node.inputs[slot] for slot in activation_slots(node)]
    complete = all(
        patterns.producer_of(value) in quantized or _is_weighted_input(value, quantized)
        for value in values
    )
    return "" if complete else "its inputs are not computed by quantized operators"


def _is_weighted_input(value: ir.Value | None, quantized: QuantizedNodes) -> bool:
    """Whether a quantized convolution or product reads a tensor."""
    uses = value.uses() if value is not None else ()
    return any(use.node in quantized and use.node.op_type in patterns.WEIGHTED for use in uses)


def need_quantized_consumer(node: ir.Node, quantized: QuantizedNodes) -> str:
    """Require that a quantized operator reads an output."""
    read = any(use.node in quantized for value in node.outputs for use in value.uses())
    return "" if read else "no quantized operator reads its output"


ORT_CPU_RULES = (
    OperatorRule(
        frozenset({"Conv"}),
        chain_layer,
        checks=(constant_weight, float_activations, not_expectation),
        needs=(need_quantized_activation,),
    ),
    OperatorRule(
        frozenset({"Gemm", "MatMul"}),
        linear_layer,
        checks=(float_activations, unscaled_product, not_attention, matrix_weight),
    ),
    OperatorRule(
        patterns.FUSIBLE_ACTIVATIONS,
        lambda node: LayerPlan(
            node.op_type, output=True, note="absorbed by the operator before it"
        ),
        needs=(need_quantized_producer,),
        fuses_with_producer=True,
    ),
    OperatorRule(
        frozenset({"Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool"})
        | {"Sigmoid", "LeakyRelu", "HardSigmoid", "HardSwish"},
        chain_layer,
        checks=(two_activations, float_activations),
        needs=(need_quantized_inputs, need_quantized_consumer, need_quantized_activation),
    ),
    OperatorRule(
        frozenset({"ReduceMean"}),
        lambda node: LayerPlan(node.op_type, inputs=(0,), output=True),
        checks=(global_mean, float_activations),
        needs=(need_quantized_inputs, need_quantized_consumer, need_quantized_activation),
    ),
    OperatorRule(
        # These have integer kernels; others that only move values run in float.
        frozenset({"Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Identity"})
        | {"Slice", "Split", "Gather", "MaxPool", "Resize", "DepthToSpace"},
        lambda node: LayerPlan(
            node.op_type, inputs=(0,), output=True, note="has the scale of the tensor it moves"
        ),
        checks=(moves_activation, float_activations),
        needs=(need_quantized_inputs, need_quantized_consumer),
        computes=False,
    ),
    leave_in_float("Softmax", why="8 bits are too few for probabilities"),
    leave_in_float(
        *("LayerNormalization", "InstanceNormalization", "GroupNormalization", "ConvTranspose"),
        *("Einsum", "LSTM", "GRU", "RNN", "Gelu"),
        why="ONNX Runtime has no integer kernel for it on the CPU",
    ),
    SUBGRAPHS,
)
