"""Constant folding: nodes that read constants only are replaced by what they compute."""

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from onnx_ir.passes import common

from qconvert.graph.names import UniqueNames, tensor_names
from qconvert.graph.patterns import constant_array, has_subgraph, is_standard, make_initializer
from qconvert.graph.simplify import infer_shapes

# A result above this size is stored only if it is not larger than the inputs it replaces.
ALWAYS_STORED_BYTES = 1 << 20
# Random numbers are drawn anew on every run, and quantized constants keep their scales.
NEVER_FOLDED = (
    *("Random", "Bernoulli", "Multinomial", "Dropout"),
    *("Constant", "Quantize", "Dequantize"),
)

AnyArray = NDArray[np.generic]


def fold_constants(model: ir.Model) -> tuple[ir.Model, str]:
    """Return a copy in which `op(constant, ...)` is a stored tensor."""
    folded, _ = infer_shapes(model)
    names = UniqueNames(tensor_names(folded.graph))
    count = sum(_fold(folded.graph, node, names) for node in list(folded.graph))
    if not count:
        return model, ""
    common.RemoveUnusedNodesPass()(folded)
    return folded, f"{count} folded"


def _fold(graph: ir.Graph, node: ir.Node, names: UniqueNames) -> bool:
    """Store the result of a node with constant inputs; those before it are folded already."""
    output = node.outputs[0]
    if len(node.outputs) != 1 or output.is_graph_output() or not _is_foldable(node):
        return False
    inputs = _constant_inputs(node)
    result = _evaluate(node, inputs) if inputs else None
    if result is None:
        return False
    if result.nbytes > max(ALWAYS_STORED_BYTES, sum(array.nbytes for array in inputs)):
        return False
    stored = make_initializer(names.reserve(f"{output.name}_folded"), result)
    graph.register_initializer(stored)
    ir.convenience.replace_all_uses_with(output, stored)
    graph.remove(node, safe=True)
    return True


def _is_foldable(node: ir.Node) -> bool:
    return (
        is_standard(node) and not node.op_type.startswith(NEVER_FOLDED) and not has_subgraph(node)
    )


def _constant_inputs(node: ir.Node) -> list[AnyArray]:
    """Return the inputs of a node; none if one is not constant."""
    inputs: list[AnyArray] = []
    for index, value in enumerate(node.inputs):
        array = constant_array(value)
        if array is None and node.op_type == "CastLike" and index == 1:
            # CastLike needs the type of its second input, not its values.
            dtype = value.dtype if value is not None else None
            array = None if dtype is None else np.zeros(1, dtype.numpy())
        if array is None:
            return []
        inputs.append(array)
    return inputs


def _evaluate(node: ir.Node, inputs: list[AnyArray]) -> AnyArray | None:
    try:
        proto = ir.to_proto(node)
        feeds = dict(zip(list(proto.input), inputs, strict=True))
        (result,) = ReferenceEvaluator(proto).run(None, feeds)
    except Exception:  # an operator the evaluator does not know stays in the graph
        return None
    return np.asarray(result) if isinstance(result, np.ndarray | np.generic) else None
