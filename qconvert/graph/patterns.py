"""Questions a rewrite asks: what is constant, who reads it, is the model quantized already."""

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qconvert.core import onnx_io

FUSIBLE_ACTIVATIONS = frozenset({"Relu", "Clip"})

WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})

QUANTIZED_OPS = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
INTEGER_OPS = frozenset({"ConvInteger", "MatMulInteger"})


def is_quantized(model: ir.Model) -> bool:
    """Whether the model already holds quantized operators, as a QAT export does."""
    return any(
        node.op_type in QUANTIZED_OPS | INTEGER_OPS or node.op_type.startswith("QLinear")
        for node in onnx_io.all_nodes(model)
    )


def is_standard(node: ir.Node, *operators: str) -> bool:
    """Whether a node is one of ONNX's own operators, of the given ones if any are."""
    return node.domain in ("", "ai.onnx") and (not operators or node.op_type in operators)


def constant_array(value: ir.Value | None) -> NDArray[np.generic] | None:
    """Return the array behind a value that never changes, else None."""
    if value is None or value.is_graph_input():
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def only_reader(value: ir.Value) -> ir.Node | None:
    """Return the one node that reads a value, None where more read it or the graph returns it."""
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output():
        return None
    reader = uses[0].node
    return reader if reader.graph is value.graph else None


QDQ_OPS = frozenset({"QuantizeLinear", "DequantizeLinear"})


def find_matmul_bias_add(node: ir.Node) -> ir.Node | None:
    """Return the Add behind a MatMul, if it adds one number of its own to each output."""
    reader = only_reader(node.outputs[0]) if node.op_type == "MatMul" else None
    while reader is not None and reader.op_type in QDQ_OPS:
        reader = only_reader(reader.outputs[0])
    return reader if reader is not None and _matmul_bias_input(reader, weight_shape(node)) else None


def find_matmul_bias(node: ir.Node) -> ir.Value | None:
    """Return what is added there."""
    found = find_matmul_bias_add(node)
    return None if found is None else _matmul_bias_input(found, weight_shape(node))


def _matmul_bias_input(node: ir.Node, weight: tuple[int, ...]) -> ir.Value | None:
    if node.op_type != "Add":
        return None
    for value in node.inputs:
        array = constant_array(value)
        if value is not None and array is not None and array.shape == weight[-1:]:
            return value if len(list(value.uses())) == 1 else None
    return None


def has_subgraph(node: ir.Node) -> bool:
    """Whether a node has a graph of its own, as `If` and `Loop` do."""
    return any(each.type is ir.AttributeType.GRAPH for each in node.attributes.values())


def find_fused_activation(node: ir.Node) -> ir.Node | None:
    """Return the Relu or Clip that runtimes fuse into a node: the only reader of its result."""
    reader = only_reader(node.outputs[0])
    return reader if reader is not None and reader.op_type in FUSIBLE_ACTIVATIONS else None


def weight_shape(node: ir.Node) -> tuple[int, ...]:
    """Return the shape of a node's constant weight."""
    array = constant_array(node.inputs[1])
    return () if array is None else array.shape
