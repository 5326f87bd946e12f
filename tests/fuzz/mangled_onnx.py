"""ONNX graphs spoiled as graphs: files that parse, and say something that cannot be."""

import copy
import random
from collections.abc import Callable, Sequence
from typing import Any

import onnx
from onnx import AttributeProto, TensorProto

from tests.fuzz import mangled_tensors, mangled_whole, words

Spoil = Callable[[random.Random, onnx.ModelProto], None]

OPERATORS = (
    "Relu",
    "Add",
    "Identity",
    "Conv",
    "MatMul",
    "Gemm",
    "Reshape",
    "Expand",
    "Tile",
    "Resize",
    "Pad",
    "ConstantOfShape",
    "Range",
    "NonZero",
    "Gather",
    "GatherND",
    "ScatterND",
    "Slice",
    "Split",
    "Concat",
    "Transpose",
    "LSTM",
    "GRU",
    "Loop",
    "If",
    "Scan",
    "SequenceConstruct",
    "SplitToSequence",
    "Optional",
    "Einsum",
    "StringNormalizer",
    "TopK",
    "OneHot",
    "MaxPool",
    "ConvTranspose",
    "QuantizeLinear",
    "DequantizeLinear",
    "QLinearConv",
    "Cast",
    "BatchNormalization",
    "Softmax",
    "NonMaxSuppression",
    "RandomNormal",
    "Multinomial",
    "DFT",
    "EyeLike",
    "CumSum",
    "Unique",
    "Compress",
    "RoiAlign",
    "GridSample",
    "Attention",
    "LayerNormalization",
    "ReduceSum",
    "ArgMax",
    "Shape",
    "Size",
    "Squeeze",
)


def mangle(chance: random.Random, data: bytes) -> bytes:
    """Change one to three things of a model."""
    model = onnx.load_from_string(data)
    for _ in range(chance.choice((1, 1, 2, 3))):
        chance.choice(WAYS)(chance, model)
    return bytes(model.SerializeToString())


def graphs(graph: onnx.GraphProto) -> list[onnx.GraphProto]:
    """Return a graph and those inside its nodes."""
    inner = [each for node in graph.node for attribute in node.attribute
             for each in (attribute.g, *attribute.graphs) if each.node]  # fmt: skip
    return [graph, *(deep for each in inner for deep in graphs(each))]


def some_graph(chance: random.Random, model: onnx.ModelProto) -> onnx.GraphProto:
    """Return one of the graphs, mostly the outermost."""
    found = graphs(model.graph)
    return found[0] if chance.random() < 0.5 else chance.choice(found)


def some_node(chance: random.Random, model: onnx.ModelProto) -> onnx.NodeProto:
    """Return a node of a graph; a graph without any gets one."""
    graph = some_graph(chance, model)
    chosen: onnx.NodeProto = (
        chance.choice(graph.node) if graph.node else graph.node.add(op_type="Relu")
    )
    return chosen


def tensor_names(graph: onnx.GraphProto) -> list[str]:
    """Return the names of what a graph computes or holds."""
    made = [name for node in graph.node for name in node.output]
    return [
        *made,
        *(each.name for each in graph.initializer),
        *(each.name for each in graph.input),
        "",
    ]


def nodes_moved(chance: random.Random, model: onnx.ModelProto) -> None:
    """Drop, double or reorder nodes."""
    graph = some_graph(chance, model)
    nodes = [copy.deepcopy(node) for node in graph.node]
    match chance.choice(("drop", "double", "shuffle", "swap")):
        case "drop" if nodes:
            del nodes[chance.randrange(len(nodes))]
        case "double" if nodes:
            nodes.append(copy.deepcopy(chance.choice(nodes)))
        case "shuffle":
            chance.shuffle(nodes)
        case _:
            nodes.reverse()
    del graph.node[:]
    graph.node.extend(nodes)


def edges_moved(chance: random.Random, model: onnx.ModelProto) -> None:
    """Let a node read something else: itself, what comes later, nothing, or what is not there."""
    graph, node = model.graph, some_node(chance, model)
    new = chance.choice((*tensor_names(graph), words.name(chance), *node.output))
    ends = node.input if chance.random() < 0.7 else node.output
    match chance.choice(("set", "set", "set", "add", "drop", "many")):
        case "add":
            ends.append(new)
        case "drop" if ends:
            del ends[-1]
        case "many":
            ends.extend([new] * 300)
        case _ if ends:
            ends[chance.randrange(len(ends))] = new
        case _:
            ends.append(new)


def operator_changed(chance: random.Random, model: onnx.ModelProto) -> None:
    """Let a node be another operator, or of another domain."""
    node = some_node(chance, model)
    node.op_type = chance.choice((*OPERATORS, *OPERATORS, words.name(chance)))
    if chance.random() < 0.2:
        node.domain = chance.choice(("com.microsoft", "ai.onnx.ml", "ai.onnx", words.name(chance)))
    if chance.random() < 0.2:
        del node.attribute[:]


def attribute_changed(chance: random.Random, model: onnx.ModelProto) -> None:
    """Change, add, drop or retype an attribute."""
    node = some_node(chance, model)
    if not node.attribute or chance.random() < 0.2:
        name = chance.choice(
            ("axis", "perm", "pads", "strides", "kernel_shape", "group", "to", "value", "body",
             "epsilon", "then_branch", "mode", "equation", "num_outputs", words.name(chance))
        )  # fmt: skip
        node.attribute.append(_attribute(chance, name))
        return
    at = chance.randrange(len(node.attribute))
    attribute = node.attribute[at]
    match chance.choice(("value", "value", "type", "rename", "drop", "double")):
        case "value":
            _other_value(chance, attribute)
        case "type":
            attribute.type = chance.choice(AttributeProto.AttributeType.values())
        case "rename":
            attribute.name = words.name(chance)
        case "drop":
            del node.attribute[at]
        case _:
            node.attribute.append(attribute)


def _other_value(chance: random.Random, attribute: AttributeProto) -> None:
    if attribute.type == AttributeProto.INTS and attribute.ints:
        attribute.ints[chance.randrange(len(attribute.ints))] = words.integer(chance)
    elif attribute.type == AttributeProto.INT:
        attribute.i = words.integer(chance)
    elif attribute.type == AttributeProto.TENSOR:
        mangled_tensors.mangle(chance, attribute.t)
    else:
        attribute.CopyFrom(_attribute(chance, attribute.name))


def _attribute(chance: random.Random, name: str) -> AttributeProto:
    values: tuple[Any, ...] = (
        words.integer(chance),
        words.number(chance),
        words.name(chance).encode(),
        chance.randbytes(9),
        [words.integer(chance) for _ in range(4)],
        [0] * 100_000,
        [words.number(chance)] * 3,
    )
    return onnx.helper.make_attribute(name or "a", chance.choice(values))


def ends_changed(chance: random.Random, model: onnx.ModelProto) -> None:
    """Change an input, an output or the type that is noted of a tensor."""
    graph = some_graph(chance, model)
    infos: Sequence[onnx.ValueInfoProto] = [*graph.input, *graph.output, *graph.value_info]
    if not infos:
        return
    info = chance.choice(infos)
    held = chance.choice((graph.input, graph.output, graph.value_info))
    match chance.choice(("shape", "shape", "type", "name", "drop", "add", "sequence")):
        case "shape":
            _reshape(chance, info.type.tensor_type.shape)
        case "type":
            info.type.tensor_type.elem_type = chance.randrange(-1, 26)
        case "name":
            info.name = chance.choice((words.name(chance), *tensor_names(graph)))
        case "drop" if held:
            del held[chance.randrange(len(held))]
        case "add":
            held.append(copy.deepcopy(info))
            held[-1].name = chance.choice((info.name, words.name(chance), *tensor_names(graph)))
        case "sequence":
            info.type.sequence_type.elem_type.tensor_type.elem_type = 1
        case _:
            info.ClearField("type")


def _reshape(chance: random.Random, shape: onnx.TensorShapeProto) -> None:
    if not shape.dim or chance.random() < 0.3:
        shape.dim.add()
    dim = chance.choice(shape.dim)
    match chance.choice(("value", "param", "drop", "clear")):
        case "value":
            dim.dim_value = words.integer(chance)
        case "param":
            dim.dim_param = words.name(chance)
        case "drop":
            del shape.dim[chance.randrange(len(shape.dim))]
        case _:
            dim.Clear()


def weights_changed(chance: random.Random, model: onnx.ModelProto) -> None:
    """Change a stored tensor, drop it, double it or rename it."""
    graph = some_graph(chance, model)
    if not graph.initializer:
        graph.initializer.append(onnx.helper.make_tensor(words.name(chance), 1, [1], [1.0]))
    at = chance.randrange(len(graph.initializer))
    match chance.choice(("tensor",) * 6 + ("drop", "double", "rename")):
        case "drop":
            del graph.initializer[at]
        case "double":
            graph.initializer.append(copy.deepcopy(graph.initializer[at]))
        case "rename":
            graph.initializer[at].name = chance.choice((words.name(chance), *tensor_names(graph)))
        case _:
            mangled_tensors.mangle(chance, graph.initializer[at])


def renamed(chance: random.Random, model: onnx.ModelProto) -> None:
    """Give a tensor, node or graph an awkward name, everywhere it stands."""
    graph, new = some_graph(chance, model), words.name(chance)
    old = chance.choice(tensor_names(graph))
    if chance.random() < 0.4 or not old:
        some_node(chance, model).name = new
        return
    for each in graphs(model.graph):
        for node in each.node:
            for ends in (node.input, node.output):
                ends[:] = [new if name == old else name for name in ends]
        held: tuple[Sequence[TensorProto | onnx.ValueInfoProto], ...] = (
            each.initializer, each.input, each.output, each.value_info,
        )  # fmt: skip
        for item in (item for group in held for item in group if item.name == old):
            item.name = new


WAYS: tuple[Spoil, ...] = (
    nodes_moved, edges_moved, edges_moved, operator_changed, attribute_changed, attribute_changed,
    ends_changed, ends_changed, weights_changed, weights_changed, renamed, mangled_whole.mangle,
)  # fmt: skip
