"""Compute once what does not depend on the inputs."""

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from onnx_ir.passes import common

from qconvert.graph.names import Names, tensor_names
from qconvert.graph.patterns import constant, is_standard
from qconvert.graph.simplify import infer_shapes

# A folded tensor is stored in the file; above this size it must not be larger than what made it.
FREE_BYTES = 1 << 20

# Random draws must stay draws, and scales must stay scales.
KEPT = ("Random", "Bernoulli", "Multinomial", "Dropout", "Constant", "Quantize", "Dequantize")

Array = NDArray[np.generic]


def fold_constants(model: ir.Model) -> tuple[ir.Model, str]:
    """Return a copy in which nodes of constant inputs are stored results."""
    folded, _ = infer_shapes(model)
    names = Names(tensor_names(folded.graph))
    count = sum(_fold(folded.graph, node, names) for node in list(folded.graph))
    if not count:
        return model, ""
    common.RemoveUnusedNodesPass()(folded)
    return folded, f"{count} folded"


def _fold(graph: ir.Graph, node: ir.Node, names: Names) -> bool:
    """Store the result of a node whose inputs are known; its constants before it are folded."""
    output = node.outputs[0]
    if len(node.outputs) != 1 or output.is_graph_output() or not _may_fold(node):
        return False
    inputs = _inputs(node)
    result = None if inputs is None else _evaluate(node, inputs)
    if inputs is None or result is None or not _worth_storing(result, inputs):
        return False
    name = names.free(f"{output.name}_folded")
    stored = ir.Value(name=name, const_value=ir.tensor(result, name=name))
    stored.shape, stored.dtype = ir.Shape(result.shape), ir.DataType.from_numpy(result.dtype)
    graph.register_initializer(stored)
    ir.convenience.replace_all_uses_with(output, stored)
    graph.remove(node, safe=True)
    return True


def _may_fold(node: ir.Node) -> bool:
    if not is_standard(node) or node.op_type.startswith(KEPT):
        return False
    graphs = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    return not any(attribute.type in graphs for attribute in node.attributes.values())


def _inputs(node: ir.Node) -> list[Array] | None:
    """Return the constant inputs; a CastLike needs the type of its second input, not its value."""
    known: list[Array] = []
    for index, value in enumerate(node.inputs):
        found = constant(value)
        if found is None and node.op_type == "CastLike" and index == 1:
            found = _any_of_type(value)
        if found is None:
            return None
        known.append(found)
    return known or None


def _any_of_type(value: ir.Value | None) -> Array | None:
    if value is None or value.dtype is None:
        return None
    return np.zeros(1, value.dtype.numpy())


def _evaluate(node: ir.Node, inputs: list[Array]) -> Array | None:
    try:
        proto = ir.to_proto(node)
        names = list(proto.input)
        (result,) = ReferenceEvaluator(proto).run(None, dict(zip(names, inputs, strict=True)))
    except Exception:  # an operator the evaluator does not know stays in the graph
        return None
    return np.asarray(result) if isinstance(result, np.ndarray | np.generic) else None


def _worth_storing(result: Array, inputs: list[Array]) -> bool:
    return result.nbytes <= max(FREE_BYTES, sum(array.nbytes for array in inputs))
