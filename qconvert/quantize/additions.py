"""The constant that is added right after a product that has no bias of its own, as a bias is."""

import onnx_ir as ir

from qconvert.graph.patterns import constant, only_reader
from qconvert.quantize.checks import weight_shape

ROUNDING = frozenset({"QuantizeLinear", "DequantizeLinear"})


def addition(node: ir.Node) -> ir.Node | None:
    """Return the Add behind a MatMul, if it adds one number of its own to each output."""
    reader = only_reader(node.outputs[0]) if node.op_type == "MatMul" else None
    while reader is not None and reader.op_type in ROUNDING:
        reader = only_reader(reader.outputs[0])
    return reader if reader is not None and _added(reader, weight_shape(node)) else None


def added(node: ir.Node) -> ir.Value | None:
    """Return what is added there."""
    found = addition(node)
    return None if found is None else _added(found, weight_shape(node))


def _added(node: ir.Node, weight: tuple[int, ...]) -> ir.Value | None:
    if node.op_type != "Add":
        return None
    for value in node.inputs:
        array = constant(value)
        if value is not None and array is not None and array.shape == weight[-1:]:
            return value if len(list(value.uses())) == 1 else None
    return None
