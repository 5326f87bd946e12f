"""Weight-only formats: which weights of a graph become integers, and the nodes that read them.

A weight is dequantized where it is read, and everything else computes in float. The standard form
is ONNX's own, DequantizeLinear with a scale for each block of inputs (opset 21):

    x, DequantizeLinear(integers, scales[, zero points]) -> MatMul

ONNX Runtime has kernels that read the integers themselves, `MatMulNBits` and
`GatherBlockQuantized`; the form for its CPU provider names them. Release 1.32 fuses the standard
form of a MatMul into the first by itself, but not that of a Gemm with a transposed weight, and
never a Gather: it would dequantize a whole table of embeddings in every run.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qconvert.core.errors import UsageError
from qconvert.core.scales import FloatArray, Grid
from qconvert.graph import patterns
from qconvert.quantize.grouped_weights import GroupedWeight, WeightFormat
from qconvert.quantize.plan import LayerPlan, WeightSlot
from qconvert.quantize.qdq_builder import QDQBuilder

# The first opset with blocks and with 4-bit integers.
MIN_OPSET = 21
MICROSOFT = "com.microsoft"
# Inputs in groups that ONNX Runtime's kernels multiply; a larger group becomes several of these.
KERNEL_GROUPS = (128, 64, 32, 16)
# Activations are rounded to 8 bits for each group at run time: 2 to 30 times as fast as in float on
# x86 with VNNI (rows of 1 to 197, weights of 384 x 1536), at 45 dB.
ACCURACY_LEVEL = 4

Form = Literal["standard", "onnxruntime"]


@dataclass(frozen=True)
class WeightRules:
    """What of a graph a backend stores as integers, and in which form it reads them.

    With `whole_groups` the inputs of a product must fill all groups.
    """

    form: Form
    operators: frozenset[str]
    whole_groups: bool = False


def place_weights(graph: ir.Graph, kind: WeightFormat, rules: WeightRules) -> dict[str, LayerPlan]:
    """Return for each node that reads a constant matrix its weight, or why that stays in float."""
    placed: dict[str, LayerPlan] = {}
    for node in graph:
        if patterns.is_standard(node, *CHECKS):
            slot = 0 if node.op_type == "Gather" else 1
            reason = CHECKS[node.op_type](node, kind, rules)
            reason = reason or _why_not_exclusive(node.inputs[slot])
            weight = None if reason else WeightSlot(slot, _group_axis(node))
            placed[node.name or ""] = LayerPlan(node.op_type, weight=weight, left=reason)
    return placed


def require_weights(layers: Mapping[str, LayerPlan], kind: WeightFormat, name: str) -> None:
    """Raise for a model that has no weight for a format, with the reasons and what to do."""
    if any(not layer.left for layer in layers.values()):
        return
    reasons: dict[str, int] = {}
    for layer in layers.values():
        text = f"{layer.op}: {layer.left}"
        reasons[text] = reasons.get(text, 0) + 1
    too_small = any("fewer than the group" in reason for reason in reasons)
    raise UsageError(
        f"the model has no weight for {name}"
        + ("" if layers else ": it has no MatMul, Gemm or Gather of a constant matrix"),
        details=[f"{text} ({count} nodes)" for text, count in list(reasons.items())[:5]],
        hint="use a smaller group: `--group 32` or `--group channel`"
        if too_small
        else "int8-weights takes convolutions too; int8 quantizes activations as well",
    )


def _why_not_product(node: ir.Node, kind: WeightFormat, rules: WeightRules) -> str:
    array = patterns.constant_array(node.inputs[1])
    if array is None:
        return "a product of two activations"
    if node.op_type not in rules.operators:
        return f"the backend reads no integer weights of {node.op_type}"
    if array.dtype != np.float32:
        return f"its weight is {array.dtype}"
    if array.ndim != 2:
        return f"its weight has {array.ndim} dimensions"
    if node.attributes.get_int("transA", 0):
        return "its first input is transposed"
    inputs = array.shape[1] if patterns.is_transposed(node) else array.shape[0]
    return _why_not_grouped(inputs, kind, rules)


def _why_not_embedding(node: ir.Node, kind: WeightFormat, rules: WeightRules) -> str:
    array = patterns.constant_array(node.inputs[0])
    if array is None or array.ndim != 2 or array.dtype != np.float32:
        return "it does not look up rows of a constant matrix"
    if node.op_type not in rules.operators:
        return "the backend reads no integer rows"
    if node.attributes.get_int("axis", 0):
        return "it looks up columns"
    return _why_not_grouped(array.shape[1], kind, rules)


def _why_not_convolution(node: ir.Node, kind: WeightFormat, rules: WeightRules) -> str:
    if kind.grid.bits < 8:
        return "no runtime has a convolution with 4-bit weights"
    array = patterns.constant_array(node.inputs[1])
    if array is None or array.dtype != np.float32:
        return "its weight is not a constant in float32"
    if node.op_type not in rules.operators:
        return f"the backend reads no integer weights of {node.op_type}"
    return ""


def _why_not_grouped(inputs: int, kind: WeightFormat, rules: WeightRules) -> str:
    size = kind.group_size(inputs)
    if inputs < size:
        return f"{inputs} inputs are fewer than the group of {size}"
    if rules.whole_groups and inputs % size:
        return f"{inputs} inputs are no multiple of the group of {size}"
    if rules.form == "onnxruntime" and inputs < KERNEL_GROUPS[-1]:
        return f"{inputs} inputs are fewer than a kernel takes"
    return ""


Check = Callable[[ir.Node, WeightFormat, WeightRules], str]
CHECKS: Mapping[str, Check] = {
    "MatMul": _why_not_product,
    "Gemm": _why_not_product,
    "Gather": _why_not_embedding,
    "Conv": _why_not_convolution,
    "ConvTranspose": _why_not_convolution,
}


def _why_not_exclusive(value: ir.Value | None) -> str:
    """Refuse a weight that other nodes read too: it would be stored twice."""
    uses = value.uses() if value is not None else ()
    if value is not None and value.is_graph_output():
        return "the model returns its weight"
    return "other nodes read its weight too" if len(uses) > 1 else ""


def _group_axis(node: ir.Node) -> int:
    """Return the axis of the inputs in a weight; of a convolution that of the output channels."""
    if node.op_type in patterns.CONVOLUTIONS:
        return patterns.output_axis(node)
    if node.op_type == "Gather":
        return 1
    return 1 if patterns.is_transposed(node) else 0


def weight_rows(node: ir.Node, array: NDArray[np.generic]) -> FloatArray:
    """Return a weight as [output, input]: rows that are quantized with scales of their own."""
    axis = _group_axis(node)
    if node.op_type in patterns.CONVOLUTIONS:
        rows = np.moveaxis(array, axis, 0)
        return rows.reshape(len(rows), -1).astype(np.float32)
    return np.ascontiguousarray(array if axis == 1 else array.T, dtype=np.float32)


def restore_rows(
    node: ir.Node, rows: NDArray[np.generic], shape: tuple[int, ...]
) -> NDArray[np.generic]:
    """Return rows as a weight of this shape: the inverse of `weight_rows`."""
    axis = _group_axis(node)
    if node.op_type in patterns.CONVOLUTIONS:
        moved = (shape[axis], *shape[:axis], *shape[axis + 1 :])
        return np.ascontiguousarray(np.moveaxis(rows.reshape(moved), 0, axis))
    return np.ascontiguousarray(rows if axis == 1 else rows.T)


def layer_format(node: ir.Node, kind: WeightFormat) -> WeightFormat:
    """Return the format of a node: of a convolution one symmetric scale for each channel."""
    if node.op_type in patterns.CONVOLUTIONS:
        return WeightFormat(Grid(kind.grid.bits), None, kind.scale_dtype)
    return kind


def write_weights(model: ir.Model, weights: Mapping[str, GroupedWeight], form: Form) -> ir.Model:
    """Return a copy of a model whose nodes read these weights; all others stay as they are."""
    model = model.clone()
    builder = QDQBuilder(model.graph)
    for node in [node for node in model.graph if node.name in weights]:
        grouped = weights[node.name or ""]
        slot = 0 if node.op_type == "Gather" else 1
        unused = node.inputs[slot]
        if form == "onnxruntime" and node.op_type == "Gather":
            _use_gather_kernel(builder, node, grouped)
        elif form == "onnxruntime" and _is_plain_product(node):
            _use_product_kernel(builder, node, grouped)
        else:
            _dequantize(builder, node, slot, grouped)
        if unused is not None and not unused.uses() and not unused.is_graph_output():
            builder.graph.initializers.pop(unused.name or "", None)
    used = {node.domain for node in model.graph}
    if MICROSOFT in used:
        model.opset_imports[MICROSOFT] = 1
    return model


def _is_plain_product(node: ir.Node) -> bool:
    """Whether a node is x W + b and no more."""
    factors = (node.attributes.get_float(name, 1.0) for name in ("alpha", "beta"))
    bias = patterns.constant_array(node.inputs[2]) if len(node.inputs) > 2 else None
    is_vector = bias is None or bias.ndim == 1
    has_bias = len(node.inputs) > 2 and node.inputs[2] is not None
    constant = bias is not None or not has_bias
    return (
        node.op_type in ("MatMul", "Gemm")
        and all(f == 1.0 for f in factors)
        and (is_vector and constant)
    )


def _dequantize(builder: QDQBuilder, node: ir.Node, slot: int, grouped: GroupedWeight) -> None:
    """Let a node read DequantizeLinear of its weight.

    A Gemm gets its weight as [input, output], which is what ONNX Runtime fuses.
    """
    value = node.inputs[slot]
    assert value is not None
    assert value.shape is not None
    name, shape, axis = str(value.name), value.shape.numpy(), _group_axis(node)
    if node.op_type == "Gemm" and patterns.is_transposed(node):
        node.attributes["transB"] = ir.AttrInt64("transB", 0)
        shape, axis = shape[::-1], 0
    dtype = stored_dtype(grouped.grid)
    per_channel = grouped.scales.shape[1] == 1
    integers = restore_rows(node, grouped.integers, shape)
    if per_channel:
        scales, zero_points = grouped.scales[:, 0], grouped.zero_points[:, 0]
        # The axis of the channels: for products and tables the one that has no groups.
        attributes = {"axis": axis if node.op_type in patterns.CONVOLUTIONS else 1 - axis}
    else:
        scales, zero_points = (
            restore_rows(node, array, ()) for array in (grouped.scales, grouped.zero_points)
        )
        attributes = {"axis": axis, "block_size": grouped.group}
    inputs = [
        builder.constant(integers.astype(dtype.numpy()), f"{name}_quantized"),
        builder.constant(scales, f"{name}_scale"),
    ]
    if not grouped.grid.symmetric:
        zeros = zero_points.astype(dtype.numpy())
        inputs.append(builder.constant(zeros, f"{name}_zero_point"))
    dequantize = builder.node(
        "DequantizeLinear", inputs, f"{name}_rounded", ir.DataType.FLOAT, **attributes
    )
    builder.graph.insert_before(node, dequantize)
    node.replace_input_with(slot, dequantize.outputs[0])


def stored_dtype(grid: Grid) -> ir.DataType:
    """Return the type in which files hold the integers of a grid."""
    return ir.DataType[f"{'' if grid.signed else 'U'}INT{grid.bits}"]


def _use_product_kernel(builder: QDQBuilder, node: ir.Node, grouped: GroupedWeight) -> None:
    """Replace x W + b by ONNX Runtime's product with integer weights."""
    grouped = _in_kernel_groups(grouped)
    outputs, inputs = grouped.integers.shape
    bits, size, name = grouped.grid.bits, grouped.group, str(node.inputs[1].name)  # type: ignore[union-attr]
    # The kernel's integers are unsigned, its zero point by default their middle.
    shift = (1 << (bits - 1)) if grouped.grid.signed else 0
    missing = grouped.scales.shape[1] * size - inputs
    padded = np.pad(grouped.integers + shift, ((0, 0), (0, missing)), constant_values=shift)
    packed = pack(padded.astype(np.uint8), bits).reshape(outputs, -1, size * bits // 8)
    operands: list[ir.Value | None] = [
        node.inputs[0],
        builder.constant(packed, f"{name}_quantized"),
        builder.constant(grouped.scales, f"{name}_scale"),
    ]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if not grouped.grid.symmetric:
        zero_points = pack(grouped.zero_points.astype(np.uint8), bits)
        operands.append(builder.constant(zero_points, f"{name}_zero_point"))
    if bias is not None:
        operands += [None] * (5 - len(operands))
        operands.append(bias)
    attributes = {"K": inputs, "N": outputs, "bits": bits, "block_size": size}
    _replace(node, "MatMulNBits", operands, attributes | {"accuracy_level": ACCURACY_LEVEL})


def _use_gather_kernel(builder: QDQBuilder, node: ir.Node, grouped: GroupedWeight) -> None:
    """Replace Gather by ONNX Runtime's, which dequantizes only the rows that it looks up."""
    grouped = _in_kernel_groups(grouped)
    name, grid = str(node.inputs[0].name), grouped.grid  # type: ignore[union-attr]
    # It takes no INT8; its zero point of UINT8 is by default the middle.
    shift = 128 if grid.signed and grid.bits == 8 else 0
    dtype = ir.DataType.UINT8 if grid.bits == 8 else stored_dtype(grid)
    operands: list[ir.Value | None] = [
        builder.constant((grouped.integers + shift).astype(dtype.numpy()), f"{name}_quantized"),
        node.inputs[1],
        builder.constant(grouped.scales, f"{name}_scale"),
    ]
    if not grid.symmetric:
        zero_points = grouped.zero_points.astype(dtype.numpy())
        operands.append(builder.constant(zero_points, f"{name}_zero_point"))
    attributes = {"bits": grid.bits, "block_size": grouped.group}
    _replace(
        node, "GatherBlockQuantized", operands, attributes | {"gather_axis": 0, "quantize_axis": 1}
    )


def _in_kernel_groups(grouped: GroupedWeight) -> GroupedWeight:
    """Return a weight in groups that kernels take; a scale of a channel is repeated for each."""
    if grouped.group in KERNEL_GROUPS:
        return grouped
    inputs = grouped.integers.shape[1]
    return grouped.with_group(next(size for size in KERNEL_GROUPS if size <= inputs))


def pack(integers: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Return rows of 4-bit integers two to a byte, the first in the lower half; others as bytes."""
    if bits == 8:
        return integers
    if integers.shape[1] % 2:
        integers = np.pad(integers, ((0, 0), (0, 1)))
    packed: NDArray[np.uint8] = integers[:, 0::2] | (integers[:, 1::2] << 4)
    return packed


def _replace(
    node: ir.Node, operator: str, operands: list[ir.Value | None], attributes: Mapping[str, int]
) -> None:
    """Replace a node by one of ONNX Runtime's, which keeps its name and that of its output."""
    assert isinstance(node.graph, ir.Graph), "nodes of subgraphs are left as they are"
    old = node.outputs[0]
    output = ir.val(str(old.name), old.dtype, old.shape)
    new = ir.node(operator, operands, attributes, domain=MICROSOFT, outputs=[output])
    new.name = node.name
    node.graph.insert_before(node, new)
    old.replace_all_uses_with(output, replace_graph_outputs=True)
    node.graph.remove(node, safe=True)
