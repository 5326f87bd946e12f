"""The proof that a quantized file gives the same answers on x86 CPUs without VNNI.

ONNX Runtime's kernels for these CPUs multiply bytes of activations, 0 to 255, by signed bytes of
weights with VPMADDUBSW. It adds two neighbouring products in 16 bits and saturates the sum at 32767
or -32768. `find_saturation` computes the worst sums from the weights alone: no activation can make
a larger one. Signed activations reach the kernels too, with 128 added to them.

docs/concepts/integer-kernels.md lists the kernels that add pairs, and how that was found out.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qconvert.core import onnx_io
from qconvert.core.scales import Grid, Range, choose_qparams, quantize
from qconvert.graph.patterns import (
    FUSIBLE_ACTIVATIONS,
    MOVING,
    constant_array,
    is_standard,
    only_reader,
    producer_of,
)
from qconvert.quantize.pairs import adds_pairs, kernel_rows

MAX_ACTIVATION = 255
MAX_SUM, MIN_SUM = 2**15 - 1, -(2**15)
# Weights are examined in parts of this many bytes, so that memory does not grow with them.
PART_BYTES = 1 << 22
EIGHT_BITS = frozenset({ir.DataType.UINT8, ir.DataType.INT8})
# In files whose operators are quantized: the places of the activation's zero point, or of a float
# activation that becomes unsigned, and of the weights.
INTEGER_OPERATORS = {
    "QLinearConv": (2, (3,)),
    "QLinearMatMul": (2, (3,)),
    "QGemm": (2, (3,)),
    "QAttention": (6, (1,)),
    "MatMulInteger": (2, (1,)),
    "MatMulIntegerToFloat": (4, (1,)),
    "DynamicQuantizeMatMul": (0, (1,)),
    "DynamicQuantizeLSTM": (0, (1, 2)),
}


@dataclass(frozen=True)
class PairSums:
    """What the sums of two products reach in the integer kernel of a node."""

    node: str
    operator: str
    largest: int  # the largest magnitude that a sum would need; 16 bits hold 32767
    channels: int
    saturating_channels: int  # output channels in which some activations saturate a sum


def find_saturation(model: ir.Model) -> tuple[PairSums, ...]:
    """Return the sums of every node that runs as an integer kernel with pairs on x86.

    The file may hold Q/DQ nodes or quantized operators. Weights that are the result of constant
    arithmetic count as ONNX Runtime folds them. Unknown types count as 8 bits.
    """
    sums = []
    for node in onnx_io.all_nodes(model):
        for weight in _paired_weights(node):
            largest, saturating = _examine(kernel_rows(node, weight))
            name = node.name or str(node.outputs[0].name)
            sums.append(
                PairSums(name, node.op_type, largest, len(saturating), int(saturating.sum()))
            )
    return tuple(sums)


def is_pair_safe(model: ir.Model) -> bool:
    """Whether no activation can saturate a sum in any layer."""
    return not any(sums.saturating_channels for sums in find_saturation(model))


def describe_saturation(sums: Sequence[PairSums]) -> str:
    """Return whether a file is portable among x86 CPUs, with what decides it."""
    saturating = sum(bool(layer.saturating_channels) for layer in sums)
    if not saturating:
        return f"portable: every x86 computes the same integers (proved for {len(sums)} layers)"
    return (
        f"not portable: on x86 without VNNI {saturating} of {len(sums)} layers can saturate; there "
        "set `session.x64quantprecision` = 1, or quantize with `--portable`"
    )


def _paired_weights(node: ir.Node) -> list[NDArray[np.generic]]:
    """Return the integers of the weights whose products the node's kernel adds in pairs."""
    weights = list[NDArray[np.generic] | None]()
    if node.op_type in INTEGER_OPERATORS:
        zero_point, places = INTEGER_OPERATORS[node.op_type]
        # With signed activations these operators have slow kernels that are exact.
        if _dtype(node, 0, zero_point) is not ir.DataType.INT8:
            weights = [_folded(_input(node, place)) for place in places]
    elif is_standard(node, "Conv", "Gemm", "MatMul") and _is_fused(node):
        weight = _folded(_input(node, 1))
        if weight is not None and weight.dtype == np.float32:
            weight = _quantized_on_load(node, weight)
        weights = [weight]
    return [
        weight
        for weight in weights
        if weight is not None
        and weight.dtype == np.int8
        and weight.size
        and adds_pairs(node, weight.shape)
    ]


def _quantized_on_load(node: ir.Node, weight: NDArray[np.generic]) -> NDArray[np.generic] | None:
    """Return the integers that ONNX Runtime makes of a float weight among Q/DQ nodes.

    It gives a Conv or Gemm between quantizers one scale and zero point for the whole weight.
    """
    reader = only_reader(node.outputs[0], *MOVING, *FUSIBLE_ACTIVATIONS)
    if node.op_type == "MatMul" or not weight.size or reader is None:
        return None
    if not is_standard(reader, "QuantizeLinear"):
        return None
    ends = Range(float(min(weight.min(), 0)), float(max(weight.max(), 0)))
    qparams = choose_qparams(ends, Grid(8, symmetric=False))
    return quantize(weight.astype(np.float32), qparams).astype(np.int8)


def _is_fused(node: ir.Node) -> bool:
    """Whether ONNX Runtime makes an integer kernel of a node among Q/DQ nodes.

    It moves quantizers across operators that only move values. A convolution needs a quantized
    output too; the others have kernels with float outputs.
    """
    source = producer_of(node.inputs[0], *MOVING)
    if source is None or source.op_type != "DequantizeLinear":
        return False
    if _dtype(source, 0, 2) not in EIGHT_BITS | {None}:
        return False
    return node.op_type != "Conv" or _is_quantized(node.outputs[0])


def _is_quantized(value: ir.Value) -> bool:
    for reader in (use.node for use in value.uses()):
        if reader.op_type == "QuantizeLinear":
            return True
        passes = reader.op_type in MOVING | FUSIBLE_ACTIVATIONS
        if passes and _is_quantized(reader.outputs[0]):
            return True
    return False


def _examine(rows: NDArray[np.generic]) -> tuple[int, NDArray[np.bool_]]:
    """Return the largest magnitude of a sum, and which rows saturate."""
    parts = max(1, min(len(rows), -(-rows.size // PART_BYTES)))
    ends = [_extreme_sums(part) for part in np.array_split(rows, parts)]
    high = MAX_ACTIVATION * np.concatenate([end[0] for end in ends])
    low = MAX_ACTIVATION * np.concatenate([end[1] for end in ends])
    return int(max(high.max(), -low.min())), (high > MAX_SUM) | (low < MIN_SUM)


def _extreme_sums(rows: NDArray[np.generic]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return the largest and the smallest sum of each row, for activations from 0 to 1.

    An activation of zero leaves one product alone, which is the extreme if signs differ.
    """
    pairs = rows.shape[1] // 2 * 2
    sums = np.add(rows[:, 0:pairs:2], rows[:, 1:pairs:2], dtype=np.int16)
    high = np.maximum(sums.max(axis=1, initial=0), rows.max(axis=1, initial=0))
    low = np.minimum(sums.min(axis=1, initial=0), rows.min(axis=1, initial=0))
    return high.astype(np.int32), low.astype(np.int32)


def _folded(value: ir.Value | None) -> NDArray[np.generic] | None:
    """Return the integers behind a weight, or None if it depends on the inputs of the graph."""
    array, node = constant_array(value), None if value is None else value.producer()
    if array is not None or node is None:
        return array
    if node.attributes.get_int("block_size", 0):
        return None  # such weights have kernels of their own
    inner = _folded(_input(node, 0))
    if inner is None or is_standard(node, "Identity", "DequantizeLinear"):
        return inner
    if is_standard(node, "Transpose"):
        order = node.attributes.get_ints("perm", tuple(reversed(range(inner.ndim))))
        return inner.transpose(order)
    return _quantized(node, inner) if is_standard(node, "QuantizeLinear") else None


def _quantized(node: ir.Node, array: NDArray[np.generic]) -> NDArray[np.generic] | None:
    scale, zero_point = constant_array(_input(node, 1)), constant_array(_input(node, 2))
    if scale is None or zero_point is None or zero_point.dtype != np.int8:
        return None
    shape = [1] * array.ndim
    if scale.ndim and array.ndim:
        shape[node.attributes.get_int("axis", 1)] = -1
    steps = np.rint(array.astype(np.float32) / scale.astype(np.float32).reshape(shape))
    integers: NDArray[np.int8] = np.clip(
        steps + zero_point.astype(np.float32).reshape(shape), -128, 127
    ).astype(np.int8)
    return integers


def _input(node: ir.Node, place: int) -> ir.Value | None:
    return node.inputs[place] if place < len(node.inputs) else None


def _dtype(node: ir.Node, place: int, zero_point: int) -> ir.DataType | None:
    """Return the type of a quantized input, which its zero point has too; None if unknown."""
    values = [_input(node, zero_point), _input(node, place)]
    return next((value.dtype for value in values if value is not None and value.dtype), None)
