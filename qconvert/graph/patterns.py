"""Questions a rewrite asks: what is constant, who reads it, is the model quantized already."""

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qconvert import onnx_io

QUANTIZED_OPS = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
INTEGER_OPS = frozenset({"ConvInteger", "MatMulInteger"})


def is_quantized(model: ir.Model) -> bool:
    """Whether the model already holds quantized operators, as a QAT export does."""
    return any(
        node.op_type in QUANTIZED_OPS | INTEGER_OPS or node.op_type.startswith("QLinear")
        for node in onnx_io.nodes(model)
    )


def is_standard(node: ir.Node, *operators: str) -> bool:
    """Whether a node is one of ONNX's own operators, of the given ones if any are."""
    return node.domain in ("", "ai.onnx") and (not operators or node.op_type in operators)


def constant(value: ir.Value | None) -> NDArray[np.generic] | None:
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
