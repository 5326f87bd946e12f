"""Operators in a form that ONNX Runtime computes in integers on the CPU.

It has integer kernels for sums, products and pools, and none for these operators.
A HardSigmoid is a sum whose quantizer clips, read with another scale:

    HardSigmoid(x) = clip(alpha x + beta, 0, 1) = alpha clip(x + beta / alpha, 0, 1 / alpha)
    HardSwish(x)   = x HardSigmoid(x), with alpha = 1/6 and beta = 1/2
    ReduceMean(x)  = GlobalAveragePool(x), over all places of an image
    Relu(x)        = LeakyRelu(x) with slope 0, between two quantizers
"""

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir

from qconvert.core.scales import Grid, QuantParams, Range, choose_qparams
from qconvert.graph import patterns
from qconvert.quantize.plan import LayerPlan
from qconvert.quantize.qdq_builder import QDQBuilder

# A scale is rounded up, so its largest integer may stand for this much more than 1.
TOLERANCE = 1e-5

Form = Callable[[QDQBuilder, ir.Node, Grid], None]


def use_integer_forms(builder: QDQBuilder, layers: Mapping[ir.Node, LayerPlan], grid: Grid) -> None:
    """Rewrite the nodes between integers that have a form with integer kernels.

    A symmetric grid cannot clip below zero, so it has none.
    """
    for node, layer in layers.items():
        form = FORMS.get(node.op_type)
        if form is None or not layer.output or grid.symmetric:
            continue
        source, reader = patterns.producer_of(node.inputs[0]), patterns.only_reader(node.outputs[0])
        around = [neighbour.op_type for neighbour in (source, reader) if neighbour is not None]
        if around == ["DequantizeLinear", "QuantizeLinear"]:
            form(builder, node, grid)


def _hard_sigmoid(builder: QDQBuilder, node: ir.Node, grid: Grid) -> None:
    """Let the quantizer of a HardSigmoid clip a sum; not one whose ends are not 0 and at most 1."""
    alpha = node.attributes.get_float("alpha", 0.2)
    beta = node.attributes.get_float("beta", 0.5)
    (quantizer,) = node.outputs[0].consumers()
    output = _read_qparams(quantizer, grid)
    largest = (grid.quant_max - int(output.zero_point)) * float(output.scale)
    if min(alpha, beta) <= 0 or output.zero_point != grid.quant_min or largest > 1 + TOLERANCE:
        return
    total = _add_constant(builder, node, beta / alpha, grid)
    name = builder.names.reserve(f"{total.name}_scale")
    patterns.set_constant_input(quantizer, 1, name, output.scale / np.float32(alpha))
    quantizer.replace_input_with(0, total)
    builder.graph.remove(node, safe=True)


def _hard_swish(builder: QDQBuilder, node: ir.Node, grid: Grid) -> None:
    """Replace a HardSwish by the product of its input and a HardSigmoid."""
    total = _add_constant(builder, node, 3.0, grid)
    gate = builder.quantize(total, choose_qparams(Range(0.0, 6.0), grid), read_as=1 / 6)
    patterns.replace_node(node, "Mul", [_input(node), gate])


def _global_mean(builder: QDQBuilder, node: ir.Node, grid: Grid) -> None:
    """Replace a ReduceMean over height and width by a pool, and a Flatten if it drops the axes."""
    source, mean = _input(node), node.outputs[0]
    if source.shape is None or not patterns.is_global_mean(node):
        return
    if node.attributes.get_int("keepdims", 1):
        patterns.replace_node(node, "GlobalAveragePool", [source])
        return
    pool = builder.node("GlobalAveragePool", [source], f"{mean.name}_pooled", source.dtype)
    pool.outputs[0].shape = ir.Shape([*source.shape[:2], 1, 1])
    builder.graph.insert_before(node, pool)
    (quantizer,) = mean.consumers()
    output = _read_qparams(quantizer, grid)
    patterns.replace_node(
        node, "Flatten", [builder.quantize(pool.outputs[0], output, tensor=str(mean.name))]
    )


def _rectifier(builder: QDQBuilder, node: ir.Node, grid: Grid) -> None:
    """Replace a Relu by a LeakyRelu with slope 0, which is a look-up in a table of 256 integers.

    A Clip at zero is one too if its largest value is the end of the grid.
    """
    (quantizer,) = node.outputs[0].consumers()
    output = _read_qparams(quantizer, grid)
    top = (grid.quant_max - int(output.zero_point)) * float(output.scale)
    limits = [patterns.constant_array(value) for value in node.inputs[1:]]
    least, largest = [*limits, None, None][:2]
    is_rectifier = node.op_type == "Relu" or (least is not None and float(least) == 0)
    if not is_rectifier or (largest is not None and float(largest) < top * (1 - TOLERANCE)):
        return
    patterns.replace_node(node, "LeakyRelu", [_input(node)], alpha=0.0)


FORMS: Mapping[str, Form] = {
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_swish,
    "ReduceMean": _global_mean,
    "Relu": _rectifier,
    "Clip": _rectifier,
}


def _input(node: ir.Node) -> ir.Value:
    value = node.inputs[0]
    assert value is not None, "ONNX requires it"
    return value


def _read_qparams(quantizer: ir.Node, grid: Grid) -> QuantParams:
    scale, zero_point = (patterns.constant_array(value) for value in quantizer.inputs[1:3])
    assert scale is not None, "the builder stores it"
    assert zero_point is not None, "the builder stores it"
    return QuantParams(scale.astype(np.float32), zero_point.astype(np.int32), grid)


def _add_constant(builder: QDQBuilder, node: ir.Node, number: float, grid: Grid) -> ir.Value:
    """Add a positive number to the input of a node, before it; the number is read from integers."""
    source, name = _input(node), node.outputs[0].name
    one, zero = np.array([1, 0], grid.onnx_dtype)
    parts = (
        (one, "shift_integer"),
        (np.float32(number), "shift_scale"),
        (zero, "shift_zero_point"),
    )
    inputs = [builder.constant(np.asarray(array), f"{name}_{part}") for array, part in parts]
    shift = builder.node("DequantizeLinear", inputs, f"{name}_shift", source.dtype)
    total = builder.node("Add", [source, shift.outputs[0]], f"{name}_shifted", source.dtype)
    builder.graph.insert_before(node, [shift, total])
    return total.outputs[0]
