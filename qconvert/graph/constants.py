"""Compute once what does not depend on the inputs."""

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from onnx_ir.passes import common

from qconvert.graph.names import UniqueNames, tensor_names
from qconvert.graph.patterns import constant_array, is_standard
from qconvert.graph.simplify import infer_shapes

# A folded tensor is stored in the file; above this size it must not be larger than what made it.
ALWAYS_STORED_BYTES = 1 << 20

# Random draws must stay draws, and scales must stay scales.
NEVER_FOLDED = (
    "Random",
    "Bernoulli",
    "Multinomial",
    "Dropout",
    "Constant",
    "Quantize",
    "Dequantize",
)

AnyArray = NDArray[np.generic]


def fold_constants(model: ir.Model) -> tuple[ir.Model, str]:
    """Return a copy in which nodes of constant inputs are stored results."""
    folded, _ = infer_shapes(model)
    names = UniqueNames(tensor_names(folded.graph))
    count = sum(_fold(folded.graph, node, names) for node in list(folded.graph))
    if not count:
        return model, ""
    common.RemoveUnusedNodesPass()(folded)
    return folded, f"{count} folded"


def _fold(graph: ir.Graph, node: ir.Node, names: UniqueNames) -> bool:
    """Store the result of a node whose inputs are known; its constants before it are folded."""
    output = node.outputs[0]
    if len(node.outputs) != 1 or output.is_graph_output() or not _is_foldable(node):
        return False
    inputs = _constant_inputs(node)
    result = None if inputs is None else _evaluate(node, inputs)
    if inputs is None or result is None or not _worth_storing(result, inputs):
        return False
    name = names.reserve(f"{output.name}_folded")
    stored = ir.Value(name=name, const_value=ir.tensor(result, name=name))
    stored.shape, stored.dtype = ir.Shape(result.shape), ir.DataType.from_numpy(result.dtype)
    graph.register_initializer(stored)
    ir.convenience.replace_all_uses_with(output, stored)
    graph.remove(node, safe=True)
    return True


def _is_foldable(node: ir.Node) -> bool:
    if not is_standard(node) or node.op_type.startswith(NEVER_FOLDED):
        return False
    graphs = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    return not any(attribute.type in graphs for attribute in node.attributes.values())


def _constant_inputs(node: ir.Node) -> list[AnyArray] | None:
    """Return the constant inputs; a CastLike needs the type of its second input, not its value."""
    known: list[AnyArray] = []
    for index, value in enumerate(node.inputs):
        found = constant_array(value)
        if found is None and node.op_type == "CastLike" and index == 1:
            found = _placeholder(value)
        if found is None:
            return None
        known.append(found)
    return known or None


def _placeholder(value: ir.Value | None) -> AnyArray | None:
    if value is None or value.dtype is None:
        return None
    return np.zeros(1, value.dtype.numpy())


def _evaluate(node: ir.Node, inputs: list[AnyArray]) -> AnyArray | None:
    try:
        proto = ir.to_proto(node)
        names = list(proto.input)
        (result,) = ReferenceEvaluator(proto).run(None, dict(zip(names, inputs, strict=True)))
    except Exception:  # an operator the evaluator does not know stays in the graph
        return None
    return np.asarray(result) if isinstance(result, np.ndarray | np.generic) else None


def _worth_storing(result: AnyArray, inputs: list[AnyArray]) -> bool:
    return result.nbytes <= max(ALWAYS_STORED_BYTES, sum(array.nbytes for array in inputs))
