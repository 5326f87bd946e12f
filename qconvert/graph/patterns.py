"""Queries about nodes and values: constants, readers, weights, fusions, unused names."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qconvert.core import onnx_io

WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
FUSIBLE_ACTIVATIONS = frozenset({"Relu", "Clip"})
QDQ_OPS = frozenset({"QuantizeLinear", "DequantizeLinear"})
INTEGER_OPS = frozenset(
    {"ConvInteger", "MatMulInteger", "MatMulIntegerToFloat", "QGemm", "QAttention"}
    | {"DynamicQuantizeMatMul", "DynamicQuantizeLSTM"}
)
# They multiply or look up integer weights in blocks, and compute in float.
WEIGHT_ONLY_OPS = frozenset({"MatMulNBits", "GatherBlockQuantized"})
CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})
RECTIFIERS = frozenset({"Relu", "Clip", "LeakyRelu", "PRelu", "Elu", "Selu", "Celu", "HardSwish"})
# Their outputs hold values of their first input and no others.
MOVING = frozenset(
    {"Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Identity"}
    | {"Slice", "Split", "Gather", "MaxPool", "GlobalMaxPool", "Dropout"}
    | {"Expand", "Tile", "DepthToSpace", "SpaceToDepth"}
)
FLOAT_TYPES = frozenset(
    {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE}
)


def is_quantized(model: ir.Model) -> bool:
    """Whether the model already holds quantized operators, as a QAT export does."""
    operators = {node.op_type for node in onnx_io.all_nodes(model)}
    quantized = QDQ_OPS | INTEGER_OPS | WEIGHT_ONLY_OPS | {"DynamicQuantizeLinear"}
    return any(op in quantized or op.startswith("QLinear") for op in operators)


def find_quantizer(dequantize: ir.Node) -> ir.Node | None:
    """Return the QuantizeLinear of an activation; a Clip of the integers may stand between.

    A grid below 8 bits has one, because QuantizeLinear clips at the ends of its type.
    """
    node = producer_of(dequantize.inputs[0], "Clip")
    return node if node is not None and is_standard(node, "QuantizeLinear") else None


def clips_integers(node: ir.Node) -> bool:
    """Whether a node is the Clip between QuantizeLinear and DequantizeLinear."""
    source = producer_of(node.inputs[0]) if is_standard(node, "Clip") else None
    return source is not None and is_standard(source, "QuantizeLinear")


def activation_sign(model: ir.Model) -> str:
    """Return `signed` or `unsigned` as most quantized activations are; empty if there are none.

    Those without a scale in the graph are quantized `at run time`.
    """
    signs: Counter[str] = Counter()
    for node in onnx_io.all_nodes(model):
        if node.op_type.startswith("DynamicQuantize"):
            signs["at run time"] += 1
        zero_point = node.inputs[2] if len(node.inputs) > 2 else None
        if node.op_type == "QuantizeLinear" and zero_point is not None:
            signs["signed" if zero_point.dtype is ir.DataType.INT8 else "unsigned"] += 1
    return max(signs, key=lambda sign: signs[sign], default="")


def is_standard(node: ir.Node, *operators: str) -> bool:
    """Whether a node is one of ONNX's own operators, and of these `operators` if there are any."""
    return node.domain in ("", "ai.onnx") and (not operators or node.op_type in operators)


def only_moves_values(node: ir.Node) -> bool:
    """Whether the outputs of a node hold values of its first input and no others."""
    if node.op_type != "Resize":
        return node.op_type in MOVING
    # A cubic filter overshoots, and cropping beyond the edge fills in another value.
    mode = node.attributes.get_string("mode", "")
    coordinates = node.attributes.get_string("coordinate_transformation_mode", "")
    return mode != "cubic" and coordinates != "tf_crop_and_resize"


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


def dequantized_array(value: ir.Value | None) -> NDArray[Any] | None:
    """Return the array behind a value, dequantized if it is stored as integers, else None."""
    source = value.producer() if value is not None else None
    if source is None or not is_standard(source, "DequantizeLinear"):
        return constant_array(value)
    integers, scale = (constant_array(value) for value in source.inputs[:2])
    if integers is None or scale is None:
        return None
    zero_point = constant_array(source.inputs[2]) if len(source.inputs) > 2 else None
    zero_point = np.zeros((), np.int64) if zero_point is None else zero_point
    axis = source.attributes.get_int("axis", 1)
    shape = [-1 if index == axis % integers.ndim else 1 for index in range(integers.ndim)]
    scale, zero_point = (
        array.reshape(shape) if array.size > 1 else array.reshape(())
        for array in (scale, zero_point)
    )
    difference = integers.astype(np.float64) - zero_point.astype(np.float64)
    return np.asarray(difference * scale.astype(np.float64), np.float32)


def producer_of(value: ir.Value | None, *skipped: str) -> ir.Node | None:
    """Return the node that computes a value, before any `skipped` operators; None for an input."""
    while value is not None and (node := value.producer()) is not None:
        if node.op_type not in skipped:
            return node
        value = node.inputs[0]
    return None


def only_reader(value: ir.Value, *skipped: str) -> ir.Node | None:
    """Return the only reader of a value, behind `skipped` ones; None if the graph returns it."""
    readers = [use.node for use in value.uses()]
    if len(readers) != 1 or value.is_graph_output() or readers[0].graph is not value.graph:
        return None
    node = readers[0]
    return only_reader(node.outputs[0], *skipped) if node.op_type in skipped else node


def add_constant(graph: ir.Graph, name: str, array: NDArray[np.generic]) -> ir.Value:
    """Store a constant in a graph."""
    value = ir.val(name, const_value=ir.tensor(array, name=name))
    graph.register_initializer(value)
    return value


def set_constant(value: ir.Value, array: NDArray[np.generic]) -> None:
    """Replace the array of a constant."""
    value.const_value = ir.tensor(array, name=value.name)
    value.shape = ir.Shape(array.shape)


def set_constant_input(node: ir.Node, slot: int, name: str, array: NDArray[np.generic]) -> None:
    """Let a node read a new constant; the old one may have other readers, or there is none."""
    assert isinstance(node.graph, ir.Graph), "nodes of subgraphs are left as they are"
    node.resize_inputs(max(slot + 1, len(node.inputs)))
    node.replace_input_with(slot, add_constant(node.graph, name, array))


def make_node(
    op: str, inputs: Sequence[ir.Value], name: str, dtype: ir.DataType | None, **attributes: Any
) -> ir.Node:
    """Make a node outside the graph; its output has this name and the shape of its first input."""
    output = ir.val(name, dtype, inputs[0].shape)
    return ir.node(op, inputs, attributes, outputs=[output])


def replace_node(
    node: ir.Node, op: str, inputs: Sequence[ir.Value], **attributes: int | float
) -> None:
    """Replace a node by another one, which takes over its name and the name of its output."""
    assert isinstance(node.graph, ir.Graph), "nodes of subgraphs are left as they are"
    output = node.outputs[0]
    new = make_node(op, inputs, str(output.name), output.dtype, **attributes)
    new.name, new.outputs[0].shape = node.name, output.shape
    node.graph.insert_before(node, new)
    output.replace_all_uses_with(new.outputs[0], replace_graph_outputs=True)
    node.graph.remove(node, safe=True)


def computed_values(graph: ir.Graph) -> Iterator[ir.Value]:
    """Yield the outputs of all nodes, in graph order."""
    return (value for node in graph for value in node.outputs)


def weight_shape(node: ir.Node) -> tuple[int, ...]:
    """Return the shape of a node's constant weight."""
    array = constant_array(node.inputs[1])
    return () if array is None else array.shape


def output_axis(node: ir.Node) -> int:
    """Return the axis of the output channels in a node's weight."""
    if node.op_type == "MatMul":
        return max(0, len(weight_shape(node)) - 1)
    return 0 if node.op_type == "Conv" or is_transposed(node) else 1


def is_transposed(node: ir.Node) -> bool:
    """Whether a Gemm reads its weight as [output, input]."""
    return bool(node.attributes.get_int("transB", 0))


def is_global_mean(node: ir.Node) -> bool:
    """Whether a ReduceMean is over height and width of a batch of images."""
    value = node.inputs[0]
    axes = constant_array(node.inputs[1]) if len(node.inputs) > 1 else None
    if value is None or value.shape is None or len(value.shape) != 4 or axes is None:
        return False
    return sorted(int(axis) % 4 for axis in axes.ravel()) == [2, 3]


def find_fused_activation(node: ir.Node) -> ir.Node | None:
    """Return the Relu or Clip that runtimes fuse into a node: the only reader of its output."""
    reader = only_reader(node.outputs[0])
    return reader if reader is not None and reader.op_type in FUSIBLE_ACTIVATIONS else None


def find_matmul_bias(node: ir.Node) -> tuple[ir.Node | None, ir.Value | None]:
    """Return the Add behind a MatMul that acts as its bias, one number per output, and what it adds."""
    add = only_reader(node.outputs[0], *QDQ_OPS) if node.op_type == "MatMul" else None
    for value in add.inputs if add is not None and add.op_type == "Add" else ():
        array = constant_array(value)
        if value is not None and array is not None and array.shape == weight_shape(node)[-1:]:
            return (add, value) if len(value.uses()) == 1 else (None, None)
    return None, None


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
