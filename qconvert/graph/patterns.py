"""Queries about nodes and values: constants, readers, weights, fusions, unused names."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qconvert.core import onnx_io

WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
FUSIBLE_ACTIVATIONS = frozenset({"Relu", "Clip"})
QDQ_OPS = frozenset({"QuantizeLinear", "DequantizeLinear"})
INTEGER_OPS = frozenset({"ConvInteger", "MatMulInteger"})


def is_quantized(model: ir.Model) -> bool:
    """Whether the model already holds quantized operators, as a QAT export does."""
    operators = {node.op_type for node in onnx_io.all_nodes(model)}
    quantized = QDQ_OPS | INTEGER_OPS | {"DynamicQuantizeLinear"}
    return any(op in quantized or op.startswith("QLinear") for op in operators)


def is_standard(node: ir.Node, *operators: str) -> bool:
    """Whether a node is one of ONNX's own operators, and of these `operators` if there are any."""
    return node.domain in ("", "ai.onnx") and (not operators or node.op_type in operators)


def has_subgraph(node: ir.Node) -> bool:
    """Whether a node has a graph of its own, as `If` and `Loop` do."""
    kinds = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    return any(attribute.type in kinds for attribute in node.attributes.values())


def constant_array(value: ir.Value | None) -> NDArray[np.generic] | None:
    """Return the array behind a value that never changes, else None."""
    if value is None or value.is_graph_input():
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def producer_of(value: ir.Value | None) -> ir.Node | None:
    """Return the node that computes a value; None for an input, a constant or a missing value."""
    return value.producer() if value is not None else None


def only_reader(value: ir.Value) -> ir.Node | None:
    """Return the one node that reads a value; None if several read it or the graph returns it."""
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output():
        return None
    reader = uses[0].node
    return reader if reader.graph is value.graph else None


def make_initializer(name: str, array: NDArray[np.generic]) -> ir.Value:
    """Return a constant, not yet registered in a graph."""
    tensor = ir.tensor(array, name=name)
    kind = ir.TensorType(tensor.dtype)
    return ir.Value(name=name, shape=ir.Shape(array.shape), type=kind, const_value=tensor)


def computed_values(graph: ir.Graph) -> Iterator[ir.Value]:
    """Yield the outputs of all nodes, in graph order."""
    return (value for node in graph for value in node.outputs)


def weight_shape(node: ir.Node) -> tuple[int, ...]:
    """Return the shape of a node's constant weight."""
    array = constant_array(node.inputs[1])
    return () if array is None else array.shape


def is_transposed(node: ir.Node) -> bool:
    """Whether a Gemm reads its weight as [output, input]."""
    return bool(node.attributes.get_int("transB", 0))


def find_fused_activation(node: ir.Node) -> ir.Node | None:
    """Return the Relu or Clip that runtimes fuse into a node: the only reader of its output."""
    reader = only_reader(node.outputs[0])
    return reader if reader is not None and reader.op_type in FUSIBLE_ACTIVATIONS else None


def find_matmul_bias_add(node: ir.Node) -> ir.Node | None:
    """Return the Add behind a MatMul that acts as its bias: one number for each output."""
    reader = only_reader(node.outputs[0]) if node.op_type == "MatMul" else None
    while reader is not None and reader.op_type in QDQ_OPS:
        reader = only_reader(reader.outputs[0])
    return reader if reader is not None and _bias_input(reader, weight_shape(node)) else None


def find_matmul_bias(node: ir.Node) -> ir.Value | None:
    """Return the constant which that Add adds."""
    add = find_matmul_bias_add(node)
    return None if add is None else _bias_input(add, weight_shape(node))


def _bias_input(add: ir.Node, weight: tuple[int, ...]) -> ir.Value | None:
    if add.op_type != "Add":
        return None
    for value in add.inputs:
        array = constant_array(value)
        if value is not None and array is not None and array.shape == weight[-1:]:
            return value if len(list(value.uses())) == 1 else None
    return None


def tensor_names(graph: ir.Graph) -> set[str]:
    """Return the names of all tensors of a graph and of the graphs inside its nodes."""
    values: set[ir.Value | None] = set()
    for scope in (graph, *graph.subgraphs()):
        values.update(scope.inputs, scope.initializers.values())
    for node in graph.all_nodes():
        values.update(node.inputs, node.outputs)
    return {value.name for value in values if value is not None and value.name}


@dataclass(frozen=True)
class UniqueNames:
    """The names in use, and the last number that was appended to each stem."""

    taken: set[str]
    counters: Counter[str] = field(default_factory=Counter)

    def reserve(self, stem: str) -> str:
        """Return an unused name and mark it as used: the stem, or the stem and a number."""
        name = stem
        while name in self.taken:
            self.counters[stem] += 1
            name = f"{stem}_{self.counters[stem]}"
        self.taken.add(name)
        return name
