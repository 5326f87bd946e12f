"""Weight-only formats: the nodes that read integer weights.

ONNX's own nodes (opset 21) have a scale for each block of inputs, and compute in float:

    x, DequantizeLinear(integers, scales[, zero points]) -> MatMul

ONNX Runtime has kernels that read the integers themselves, MatMulNBits and GatherBlockQuantized.
Its release 1.32 makes the first from the nodes above by itself, but not for a Gemm that transposes
its weight, and never the second: it would dequantize a whole table of embeddings in every run. So
graphs for it name both. Convolutions have no such kernel: their DequantizeLinear is computed once,
when the file is loaded, so that they save bytes of the file alone.
"""

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qconvert.core.errors import QConvertError
from qconvert.core.scales import FloatArray, Grid, IntArray
from qconvert.graph import patterns
from qconvert.graph.passes import upgrade_opset
from qconvert.quantize.grouped_weights import GroupedWeight, WeightFormat, choose_scales
from qconvert.quantize.plan import BIAS_SLOT, LayerPlan, Plan, RoundedWeight, RoundedWeights
from qconvert.quantize.qdq_builder import QDQBuilder
from qconvert.quantize.weight_only import TABLES, input_axis
from qconvert.quantize.weights import weight_array

# The first opset with a scale for each block and 4-bit integers, and the first IR with the latter.
MIN_OPSET, MIN_IR_VERSION = 21, 10
MICROSOFT = "com.microsoft"
# ONNX Runtime's kernels have groups of powers of two; one scale is repeated for groups of 32. They
# round activations in the same groups: of 128 inputs, that costs MiniLM's outputs 1.6 dB more.
KERNEL_GROUP, MIN_KERNEL_GROUP = 32, 16
# Activations are rounded to 8 bits in each group at run time. Float ones are 2 to 30 times slower
# on x86 with VNNI (1 to 197 rows, a weight of 384 x 1536); the error is 45 dB below the outputs.
ACCURACY_LEVEL = 4


def prepare_opset(model: ir.Model) -> ir.Model:
    """Return a model in an opset with blocks and 4-bit integers; refuse one that stays older."""
    try:
        model, _ = upgrade_opset(model, MIN_OPSET)
    except ValueError as error:
        raise QConvertError(
            f"integer weights in groups need opset {MIN_OPSET}, and {error}",
            hint=f"export the model with `--opset {MIN_OPSET}`, or use `--precision int8`",
        ) from None
    if model.ir_version < MIN_IR_VERSION:
        model = model.clone()
        model.ir_version = MIN_IR_VERSION
    return model


def store_weights(
    builder: QDQBuilder, layers: Mapping[ir.Node, LayerPlan], plan: Plan, learned: RoundedWeights
) -> None:
    """Let the nodes of a plan read integer weights."""
    for node, layer in layers.items():
        value = node.inputs[layer.weight.slot] if layer.weight is not None else None
        if value is None:
            continue
        rounded = learned.get(node.name or "")
        grouped = (
            round_layer(node, value, plan) if rounded is None else unpack_learned(rounded, plan)
        )
        if plan.kernels == "onnxruntime" and node.op_type in TABLES:
            _use_table_kernel(builder, node, grouped)
        elif plan.kernels == "onnxruntime" and _is_plain_product(node):
            _use_product_kernel(builder, node, grouped)
        else:
            _dequantize(builder, node, value, grouped)
        if not value.uses() and not value.is_graph_output():
            builder.graph.initializers.pop(value.name or "", None)


def round_layer(node: ir.Node, weight: ir.Value, plan: Plan) -> GroupedWeight:
    """Return the weight of a node rounded to nearest."""
    kind = layer_format(node, plan)
    return choose_scales(weight_rows(node, weight_array(weight, node)), kind, plan.weight_method)


def layer_format(node: ir.Node, plan: Plan) -> WeightFormat:
    """Return the format of a node's weight; that of a convolution is per channel."""
    if node.op_type in patterns.CONVOLUTIONS:
        return WeightFormat(Grid(plan.weights.bits), None, plan.rest)
    return WeightFormat(plan.weights, plan.group, plan.rest)


def pack_learned(weight: GroupedWeight, bias: FloatArray | None) -> RoundedWeight:
    """Return a weight and its bias as they are stored beside a plan."""
    signed, zero_points = weight.grid.signed, weight.zero_points.astype(np.uint8)
    integers = weight.integers.astype(np.int8) if signed else weight.integers.astype(np.uint8)
    return RoundedWeight(
        integers, weight.scales, bias, None if weight.grid.symmetric else zero_points
    )


def unpack_learned(rounded: RoundedWeight, plan: Plan) -> GroupedWeight:
    """Return the weight that is stored beside a plan."""
    integers = rounded.integers.astype(np.int32)
    zero_points = np.zeros(rounded.steps.shape, np.int32)
    if rounded.zero_points is not None:
        zero_points = rounded.zero_points.astype(np.int32)
    group = plan.group or integers.shape[1]
    return GroupedWeight(integers, rounded.steps, zero_points, plan.weights, group)


def weight_rows(node: ir.Node, array: FloatArray) -> FloatArray:
    """Return a weight as [output, input]: rows with scales of their own."""
    if node.op_type in patterns.CONVOLUTIONS:
        rows = np.moveaxis(array, patterns.output_axis(node), 0)
        return np.ascontiguousarray(rows.reshape(len(rows), -1))
    return np.ascontiguousarray(array if input_axis(node) == 1 else array.T)


def restore_rows(
    node: ir.Node, rows: NDArray[np.generic], shape: tuple[int, ...]
) -> NDArray[np.generic]:
    """Return rows as a weight of this shape: the inverse of `weight_rows`."""
    if node.op_type in patterns.CONVOLUTIONS:
        axis = patterns.output_axis(node)
        moved = (shape[axis], *shape[:axis], *shape[axis + 1 :])
        return np.ascontiguousarray(np.moveaxis(rows.reshape(moved), 0, axis))
    return np.ascontiguousarray(rows if input_axis(node) == 1 else rows.T)


def _is_plain_product(node: ir.Node) -> bool:
    """Whether a node is x W + b, with a number for each output, and no more."""
    if node.op_type == "MatMul":
        return True
    scaled = any(node.attributes.get_float(name, 1.0) != 1.0 for name in ("alpha", "beta"))
    bias = node.inputs[BIAS_SLOT] if len(node.inputs) > BIAS_SLOT else None
    array = patterns.constant_array(bias)
    fits = bias is None or (array is not None and array.ndim == 1 and array.size > 1)
    return node.op_type == "Gemm" and not scaled and fits


def _dequantize(
    builder: QDQBuilder, node: ir.Node, value: ir.Value, grouped: GroupedWeight
) -> None:
    """Let a node read DequantizeLinear of its weight.

    A Gemm gets its weight as [input, output]: builders know no other product with blocks.
    """
    name, slot = str(value.name), list(node.inputs).index(value)
    assert value.shape is not None
    shape = value.shape.numpy()
    if node.op_type == "Gemm" and patterns.is_transposed(node):
        node.attributes["transB"] = ir.AttrInt64("transB", 0)
        shape = shape[::-1]
    dtype = stored_dtype(grouped.grid)
    integers = restore_rows(node, grouped.integers, shape)
    scales, zero_points = grouped.scales, grouped.zero_points
    if node.op_type in patterns.CONVOLUTIONS or scales.shape[1] == 1:
        # One scale for each row.
        is_product = node.op_type not in patterns.CONVOLUTIONS
        axis = 1 - input_axis(node) if is_product else patterns.output_axis(node)
        attributes = {"axis": axis}
        scales, zero_points = scales[:, 0], zero_points[:, 0]
    else:
        attributes = {"axis": input_axis(node), "block_size": grouped.group}
        if input_axis(node) == 0:
            scales, zero_points = scales.T, zero_points.T
    inputs = [
        builder.constant(integers.astype(dtype.numpy()), f"{name}_quantized"),
        builder.constant(np.ascontiguousarray(scales), f"{name}_scale"),
    ]
    if not grouped.grid.symmetric:
        zeros = np.ascontiguousarray(zero_points).astype(dtype.numpy())
        inputs.append(builder.constant(zeros, f"{name}_zero_point"))
    dequantize = builder.node(
        "DequantizeLinear", inputs, f"{name}_rounded", ir.DataType.FLOAT, **attributes
    )
    dequantize.outputs[0].shape = ir.Shape(shape)
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
    # The kernel's integers are unsigned, and its zero point is their middle if none is given.
    shift = 1 << (bits - 1) if grouped.grid.signed else 0
    missing = grouped.scales.shape[1] * size - inputs
    padded = np.pad(grouped.integers + shift, ((0, 0), (0, missing)), constant_values=shift)
    packed = pack_bits(padded, bits).reshape(outputs, -1, size * bits // 8)
    operands: list[ir.Value | None] = [
        node.inputs[0],
        builder.constant(packed, f"{name}_quantized"),
        builder.constant(grouped.scales, f"{name}_scale"),
    ]
    if not grouped.grid.symmetric:
        zero_points = pack_bits(grouped.zero_points, bits)
        operands.append(builder.constant(zero_points, f"{name}_zero_point"))
    bias = node.inputs[BIAS_SLOT] if len(node.inputs) > BIAS_SLOT else None
    if bias is not None:
        operands += [None] * (5 - len(operands))
        operands.append(bias)
    attributes = {"K": inputs, "N": outputs, "bits": bits, "block_size": size}
    _replace(node, "MatMulNBits", operands, **attributes, accuracy_level=ACCURACY_LEVEL)


def _use_table_kernel(builder: QDQBuilder, node: ir.Node, grouped: GroupedWeight) -> None:
    """Replace Gather by ONNX Runtime's, which dequantizes only the rows that it looks up."""
    grouped, name = _in_kernel_groups(grouped), str(node.inputs[0].name)  # type: ignore[union-attr]
    # It takes no INT8, and the zero point of UINT8 is the middle if none is given.
    in_bytes = grouped.grid.bits == 8
    shift = 128 if in_bytes and grouped.grid.signed else 0
    dtype = ir.DataType.UINT8 if in_bytes else stored_dtype(grouped.grid)
    operands: list[ir.Value | None] = [
        builder.constant((grouped.integers + shift).astype(dtype.numpy()), f"{name}_quantized"),
        node.inputs[1],
        builder.constant(grouped.scales, f"{name}_scale"),
    ]
    if not grouped.grid.symmetric:
        zero_points = grouped.zero_points.astype(dtype.numpy())
        operands.append(builder.constant(zero_points, f"{name}_zero_point"))
    attributes = {"gather_axis": 0, "quantize_axis": 1, "block_size": grouped.group}
    _replace(node, "GatherBlockQuantized", operands, **attributes, bits=grouped.grid.bits)


def _in_kernel_groups(grouped: GroupedWeight) -> GroupedWeight:
    """Return a weight in groups that kernels take: one scale for all inputs is repeated."""
    if grouped.scales.shape[1] > 1 or grouped.group in (KERNEL_GROUP, MIN_KERNEL_GROUP):
        return grouped
    is_short = grouped.integers.shape[1] < KERNEL_GROUP
    return grouped.with_group(MIN_KERNEL_GROUP if is_short else KERNEL_GROUP)


def pack_bits(integers: IntArray, bits: int) -> NDArray[np.uint8]:
    """Return rows of 4-bit integers two to a byte, the first in the lower half; others as bytes."""
    if bits < 8:
        integers = np.pad(integers, ((0, 0), (0, integers.shape[1] % 2)))
        integers = integers[:, 0::2] + integers[:, 1::2] * 16
    return integers.astype(np.uint8)


def _replace(
    node: ir.Node, operator: str, operands: list[ir.Value | None], **attributes: int
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
