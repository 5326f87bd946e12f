"""SiLU between integers, x sigmoid(x), computed in float where that is faster.

ONNX Runtime computes it by a table and a product, whose kernels make no use of wide vectors:

    QLinearMul(x, QLinearSigmoid(x)) = QuantizeLinear(QuickGelu(DequantizeLinear(x)))

The right side leaves out one rounding, of the sigmoid to 8 bits. It is faster with AVX-512 and slower
with AVX2: EfficientNet-B0 at batch 1 spends 3.1 ms on the left sides and 2.1 ms on the right ones;
with AVX2 it spends 3.0 and 4.2 ms (one thread, ONNX Runtime 1.32). Floats have four times the bytes,
so tensors that are too large for the caches stay in integers.

ONNX Runtime does not find this form in Q/DQ nodes: it gives each reader a DequantizeLinear of its own,
so that Sigmoid and Mul read two tensors and are not fused.
"""

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from qconvert.graph import patterns
from qconvert.quantize.qdq_builder import QDQBuilder

CONTRIB = "com.microsoft"
# With AVX-512 the right side took 0.66 of the time of the left one for 50 thousand to 1.5 million
# values, as long for 2.4 to 3.6 million, and 1.3 times as long for 9.6 million; then the caches lack
# the input of the next operator too. Below a thousand values both only start operators.
MIN_VALUES, MAX_VALUES = 1_000, 4_000_000
# Integers, their scale and their zero point.
Quantized = Sequence[ir.Value | None]


def compute_silu_in_float(graph: ir.Graph, batch: int) -> int:
    """Replace SiLU of integers that is faster in float at a batch size; return their number.

    The graph is one that ONNX Runtime optimized.
    """
    builder = QDQBuilder(graph)
    products = [node for node in graph if _is_contrib(node, "QLinearMul")]
    return sum(
        MIN_VALUES <= _count_values(product.outputs[0], batch) <= MAX_VALUES
        and _replace_silu(builder, product)
        for product in products
    )


def _count_values(value: ir.Value, batch: int) -> int:
    """Return the size of a tensor; a batch that is not fixed has this size, and other sizes 1."""
    sizes = list(value.shape or ())
    return math.prod(
        size if isinstance(size, int) else batch if axis == 0 else 1
        for axis, size in enumerate(sizes)
    )


def _replace_silu(builder: QDQBuilder, product: ir.Node) -> bool:
    """Replace a product of a tensor and its own sigmoid, which nothing else reads."""
    left, right, output = product.inputs[0:3], product.inputs[3:6], product.inputs[6:8]
    for gate, operand in ((right, left), (left, right)):
        sigmoid = patterns.producer_of(gate[0])
        values = [value for value in (*operand, *output) if value is not None]
        if sigmoid is None or len(values) < 5 or not _is_gate(sigmoid, gate, operand):
            continue
        # Names that no tensor of the model has: conversions to other precisions have those.
        stem = str(product.name or product.outputs[0].name)
        dequantize = builder.node(
            "DequantizeLinear", values[:3], f"{stem}/dequantized", ir.DataType.FLOAT
        )
        silu = ir.node("QuickGelu", dequantize.outputs, {"alpha": 1.0}, domain=CONTRIB, name=stem)
        silu.outputs[0].name = builder.names.reserve(f"{stem}/float")
        builder.graph.insert_before(product, [dequantize, silu])
        product.name = stem = builder.names.reserve(f"{stem}/quantized")
        if not product.outputs[0].is_graph_output():
            product.outputs[0].name = stem
        patterns.replace_node(product, "QuantizeLinear", [silu.outputs[0], *values[3:]])
        builder.graph.remove(sigmoid, safe=True)
        return True
    return False


def _is_gate(sigmoid: ir.Node, gate: Quantized, operand: Quantized) -> bool:
    """Whether `gate` is the sigmoid of `operand` and all scales are the same."""
    return (
        _is_contrib(sigmoid, "QLinearSigmoid")
        and patterns.only_reader(sigmoid.outputs[0]) is not None
        and sigmoid.inputs[0] is operand[0]
        and _are_equal((*sigmoid.inputs[1:3], *sigmoid.inputs[3:5]), (*operand[1:], *gate[1:]))
    )


def _are_equal(constants: Quantized, others: Quantized) -> bool:
    """Whether these are equal constants, in pairs; one tensor may have several copies of a scale."""
    arrays, other_arrays = (
        [patterns.constant_array(value) for value in values] for values in (constants, others)
    )
    return len(arrays) == len(other_arrays) and all(
        array is not None and other is not None and np.array_equal(array, other)
        for array, other in zip(arrays, other_arrays, strict=True)
    )


def _is_contrib(node: ir.Node, op: str) -> bool:
    return node.domain == CONTRIB and node.op_type == op
