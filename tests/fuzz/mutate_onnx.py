"""Mutators of ONNX models: the results parse, and describe invalid models.

Nodes, edges, operators, attributes, types, stored tensors and names change, and so do versions,
metadata and functions; some models grow deep, long, wide, endless or larger than any memory.
"""

import copy
import itertools
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from tests.fuzz.values import any_float, any_integer, any_name

Change = Callable[[random.Random, onnx.ModelProto], None]
Shape = Sequence[str | int]
DEEP, LONG = 80, 3000  # protobuf itself reads no more than 100 levels

OPERATORS = (
    "Relu", "Add", "Identity", "Conv", "MatMul", "Gemm", "Reshape", "Expand", "Tile", "Resize",
    "Pad", "ConstantOfShape", "Range", "NonZero", "Gather", "GatherND", "ScatterND", "Slice",
    "Split", "Concat", "Transpose", "LSTM", "GRU", "Loop", "If", "Scan", "SequenceConstruct",
    "SplitToSequence", "Optional", "Einsum", "StringNormalizer", "TopK", "OneHot", "MaxPool",
    "ConvTranspose", "QuantizeLinear", "DequantizeLinear", "QLinearConv", "Cast",
    "BatchNormalization", "Softmax", "NonMaxSuppression", "RandomNormal", "Multinomial", "DFT",
    "EyeLike", "CumSum", "Unique", "Compress", "RoiAlign", "GridSample", "Attention",
    "LayerNormalization", "ReduceSum", "ArgMax", "Shape", "Size", "Squeeze",
)  # fmt: skip

LOCATIONS = (
    "../outside/weights",
    "/etc/passwd",
    "weights.bin/../../outside/x",
    "",
    ".",
    "nothing.bin",
    "link.bin",
    "\x1b[2J",
    "a" * 300,
    "/dev/zero",
    "/proc/self/mem",
    "net.onnx",
    "C:\\x",
    "file:///etc/passwd",
)


def mutate_onnx(rng: random.Random, data: bytes) -> bytes:
    """Apply one to three changes to a model."""
    model = onnx.load_from_string(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        rng.choice(CHANGES)(rng, model)
    return bytes(model.SerializeToString())


def graphs(graph: onnx.GraphProto) -> list[onnx.GraphProto]:
    """Return a graph and those inside its nodes."""
    attributes = [attribute for node in graph.node for attribute in node.attribute]
    inner = [body for item in attributes for body in (item.g, *item.graphs) if body.node]
    return [graph, *(deeper for body in inner for deeper in graphs(body))]


def choose_graph(rng: random.Random, model: onnx.ModelProto) -> onnx.GraphProto:
    """Return a graph, in half of the cases the outermost."""
    all_graphs = graphs(model.graph)
    return all_graphs[0] if rng.random() < 0.5 else rng.choice(all_graphs)


def choose_node(rng: random.Random, model: onnx.ModelProto) -> onnx.NodeProto:
    """Return a node; an empty graph gets one."""
    graph = choose_graph(rng, model)
    chosen: onnx.NodeProto = (
        rng.choice(graph.node) if graph.node else graph.node.add(op_type="Relu")
    )
    return chosen


def tensor_names(graph: onnx.GraphProto) -> list[str]:
    """Return the names of all tensors of a graph, and the empty name."""
    computed = [name for node in graph.node for name in node.output]
    stored = [tensor.name for tensor in (*graph.initializer, *graph.input)]
    return [*computed, *stored, ""]


def change_nodes(rng: random.Random, model: onnx.ModelProto) -> None:
    """Drop, duplicate or reorder nodes."""
    graph = choose_graph(rng, model)
    nodes = [copy.deepcopy(node) for node in graph.node]
    match rng.choice(("drop", "double", "shuffle", "swap")):
        case "drop" if nodes:
            del nodes[rng.randrange(len(nodes))]
        case "double" if nodes:
            nodes.append(copy.deepcopy(rng.choice(nodes)))
        case "shuffle":
            rng.shuffle(nodes)
        case _:
            nodes.reverse()
    del graph.node[:]
    graph.node.extend(nodes)


def change_edges(rng: random.Random, model: onnx.ModelProto) -> None:
    """Make a node read another tensor: its own output, a later one, none, or a missing one."""
    graph, node = model.graph, choose_node(rng, model)
    new = rng.choice((*tensor_names(graph), any_name(rng), *node.output))
    ends = node.input if rng.random() < 0.7 else node.output
    match rng.choice(("set", "set", "set", "add", "drop", "many")):
        case "add":
            ends.append(new)
        case "drop" if ends:
            del ends[-1]
        case "many":
            ends.extend([new] * 300)
        case _ if ends:
            ends[rng.randrange(len(ends))] = new
        case _:
            ends.append(new)


def change_operator(rng: random.Random, model: onnx.ModelProto) -> None:
    """Change the operator of a node, or its domain."""
    node = choose_node(rng, model)
    node.op_type = rng.choice((*OPERATORS, *OPERATORS, any_name(rng)))
    if rng.random() < 0.2:
        node.domain = rng.choice(("com.microsoft", "ai.onnx.ml", "ai.onnx", any_name(rng)))
    if rng.random() < 0.2:
        del node.attribute[:]


def change_attribute(rng: random.Random, model: onnx.ModelProto) -> None:
    """Change, add, drop or retype an attribute."""
    node = choose_node(rng, model)
    if not node.attribute or rng.random() < 0.2:
        name = rng.choice(
            ("axis", "perm", "pads", "strides", "kernel_shape", "group", "to", "value", "body",
             "epsilon", "then_branch", "mode", "equation", "num_outputs", any_name(rng))
        )  # fmt: skip
        node.attribute.append(_random_attribute(rng, name))
        return
    at = rng.randrange(len(node.attribute))
    attribute = node.attribute[at]
    match rng.choice(("value", "value", "type", "rename", "drop", "double")):
        case "value":
            _change_attribute_value(rng, attribute)
        case "type":
            attribute.type = rng.choice(AttributeProto.AttributeType.values())
        case "rename":
            attribute.name = any_name(rng)
        case "drop":
            del node.attribute[at]
        case _:
            node.attribute.append(attribute)


def _change_attribute_value(rng: random.Random, attribute: AttributeProto) -> None:
    if attribute.type == AttributeProto.INTS and attribute.ints:
        attribute.ints[rng.randrange(len(attribute.ints))] = any_integer(rng)
    elif attribute.type == AttributeProto.INT:
        attribute.i = any_integer(rng)
    elif attribute.type == AttributeProto.TENSOR:
        change_tensor(rng, attribute.t)
    else:
        attribute.CopyFrom(_random_attribute(rng, attribute.name))


def _random_attribute(rng: random.Random, name: str) -> AttributeProto:
    values: tuple[Any, ...] = (
        any_integer(rng),
        any_float(rng),
        any_name(rng).encode(),
        rng.randbytes(9),
        [any_integer(rng) for _ in range(4)],
        [0] * 100_000,
        [any_float(rng)] * 3,
    )
    return onnx.helper.make_attribute(name or "a", rng.choice(values))


def change_types(rng: random.Random, model: onnx.ModelProto) -> None:
    """Change an input, an output or the stated type of a tensor."""
    graph = choose_graph(rng, model)
    infos: Sequence[onnx.ValueInfoProto] = [*graph.input, *graph.output, *graph.value_info]
    if not infos:
        return
    info = rng.choice(infos)
    values = rng.choice((graph.input, graph.output, graph.value_info))
    match rng.choice(("shape", "shape", "type", "name", "drop", "add", "sequence")):
        case "shape":
            _change_shape(rng, info.type.tensor_type.shape)
        case "type":
            info.type.tensor_type.elem_type = rng.randrange(-1, 26)
        case "name":
            info.name = rng.choice((any_name(rng), *tensor_names(graph)))
        case "drop" if values:
            del values[rng.randrange(len(values))]
        case "add":
            values.append(copy.deepcopy(info))
            values[-1].name = rng.choice((info.name, any_name(rng), *tensor_names(graph)))
        case "sequence":
            info.type.sequence_type.elem_type.tensor_type.elem_type = 1
        case _:
            info.ClearField("type")


def _change_shape(rng: random.Random, shape: onnx.TensorShapeProto) -> None:
    if not shape.dim or rng.random() < 0.3:
        shape.dim.add()
    dim = rng.choice(shape.dim)
    match rng.choice(("value", "param", "drop", "clear")):
        case "value":
            dim.dim_value = any_integer(rng)
        case "param":
            dim.dim_param = any_name(rng)
        case "drop":
            del shape.dim[rng.randrange(len(shape.dim))]
        case _:
            dim.Clear()


def change_weights(rng: random.Random, model: onnx.ModelProto) -> None:
    """Change a stored tensor, drop it, double it or rename it."""
    graph = choose_graph(rng, model)
    if not graph.initializer:
        graph.initializer.append(onnx.helper.make_tensor(any_name(rng), 1, [1], [1.0]))
    at = rng.randrange(len(graph.initializer))
    match rng.choice(("tensor",) * 6 + ("drop", "double", "rename")):
        case "drop":
            del graph.initializer[at]
        case "double":
            graph.initializer.append(copy.deepcopy(graph.initializer[at]))
        case "rename":
            graph.initializer[at].name = rng.choice((any_name(rng), *tensor_names(graph)))
        case _:
            change_tensor(rng, graph.initializer[at])


def rename_everywhere(rng: random.Random, model: onnx.ModelProto) -> None:
    """Give a tensor or node a name that is hard to handle, wherever it occurs."""
    graph, new = choose_graph(rng, model), any_name(rng)
    old = rng.choice(tensor_names(graph))
    if rng.random() < 0.4 or not old:
        choose_node(rng, model).name = new
        return
    for inner in graphs(model.graph):
        for node in inner.node:
            for ends in (node.input, node.output):
                ends[:] = [new if name == old else name for name in ends]
        groups: tuple[Sequence[TensorProto | onnx.ValueInfoProto], ...] = (
            inner.initializer, inner.input, inner.output, inner.value_info,
        )  # fmt: skip
        for item in (item for group in groups for item in group if item.name == old):
            item.name = new


def change_tensor(rng: random.Random, tensor: TensorProto) -> None:
    """Change a stored tensor."""
    match rng.choice(("dims", "dims", "type", "content", "content", "both", "place", "segment")):
        case "dims":
            _change_dims(rng, tensor)
        case "type":
            tensor.data_type = rng.randrange(-1, 27)
        case "both":
            tensor.float_data.extend([any_float(rng)] * rng.choice((1, 10, 1000)))
            tensor.int64_data.append(any_integer(rng))
        case "place":
            _change_location(rng, tensor)
        case "segment":
            tensor.segment.begin, tensor.segment.end = any_integer(rng), any_integer(rng)
        case _:
            _change_content(rng, tensor)


def _change_dims(rng: random.Random, tensor: TensorProto) -> None:
    if not tensor.dims or rng.random() < 0.3:
        tensor.dims.append(any_integer(rng))
    elif rng.random() < 0.3:
        tensor.dims[:] = list(tensor.dims)[::-1]
    else:
        tensor.dims[rng.randrange(len(tensor.dims))] = any_integer(rng)


def _change_content(rng: random.Random, tensor: TensorProto) -> None:
    data = tensor.raw_data
    match rng.choice(("short", "long", "noise", "nan", "zero", "none")):
        case "short":
            tensor.raw_data = data[: rng.randrange(len(data) + 1)]
        case "long":
            tensor.raw_data = data + rng.randbytes(rng.choice((1, 4, 4000)))
        case "noise":
            tensor.raw_data = rng.randbytes(len(data))
        case "nan":
            tensor.raw_data = b"\xff\xff\xff\x7f" * (len(data) // 4) + data[len(data) // 4 * 4 :]
        case "zero":
            tensor.raw_data = bytes(len(data))
        case _:
            tensor.ClearField("raw_data")


def _change_location(rng: random.Random, tensor: TensorProto) -> None:
    """Move the data into an external file, or change where it lies."""
    if not tensor.external_data:
        tensor.data_location = TensorProto.EXTERNAL
        if rng.random() < 0.8:
            tensor.ClearField("raw_data")
        tensor.external_data.add(key="location", value=rng.choice(LOCATIONS))
        return
    entry = rng.choice(tensor.external_data)
    match entry.key:
        case "location":
            entry.value = rng.choice(LOCATIONS)
        case _:
            entry.value = rng.choice((str(any_integer(rng)), any_name(rng)))
    if rng.random() < 0.3:
        tensor.external_data.add(key=rng.choice(("offset", "length", "x")), value="4096")


def change_model(rng: random.Random, model: onnx.ModelProto) -> None:
    """Change something that concerns the whole model."""
    change = rng.choice((
        _change_versions, _change_versions, _add_metadata, _add_function, _add_nested_branches,
        _add_chain, _add_huge_tensor, _add_loop, _add_sparse_tensor, _add_many_readers,
    ))  # fmt: skip
    change(rng, model)


def _change_versions(rng: random.Random, model: onnx.ModelProto) -> None:
    if rng.random() < 0.3:
        model.ir_version = rng.choice((-1, 0, 1, 3, 4, 9, 13, 999, 2**63 - 1))
    elif not model.opset_import or rng.random() < 0.2:
        model.opset_import.add(domain=any_name(rng), version=1)
    else:
        chosen = rng.choice(model.opset_import)
        chosen.version = rng.choice(
            (-1, 0, 1, 5, 6, 7, 8, 9, 10, 11, 12, 13, 17, 21, 23, 24, 27, 999)
        )
        if rng.random() < 0.1:
            chosen.domain = any_name(rng)


def _add_metadata(rng: random.Random, model: onnx.ModelProto) -> None:
    texts = ('{"resize": -1}', "{", "[]", "null", '{"mean": [1e999]}', any_name(rng), "[" * 3000)
    key = rng.choice(("qconvert.preprocess", "qconvert.preprocess", any_name(rng)))
    model.metadata_props.add(key=key, value=rng.choice(texts))
    model.doc_string = model.producer_name = any_name(rng)
    model.graph.name = any_name(rng)


def _add_function(rng: random.Random, model: onnx.ModelProto) -> None:
    """Add a function of the model's own: one that calls itself, or one named as an operator."""
    name, domain = rng.choice((("F", "own"), ("Relu", ""), ("Conv", "own"), (any_name(rng), "own")))
    call = helper.make_node(rng.choice((name, "Relu")), ["x"], ["y"], domain=domain)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("own", 1)]
    model.functions.append(helper.make_function(domain, name, ["x"], ["y"], [call], opsets))
    if all(opset.domain != "own" for opset in model.opset_import):
        model.opset_import.append(helper.make_opsetid("own", 1))
    if model.graph.node and rng.random() < 0.8:
        node = rng.choice(model.graph.node)
        node.op_type, node.domain = name, domain


def _add_nested_branches(rng: random.Random, model: onnx.ModelProto) -> None:
    """Insert a deeply nested If in front of the graph."""
    inner = helper.make_graph(
        [helper.make_node("Constant", [], ["deep"], value=_tensor(np.float32(1)))],
        "branch", [], [helper.make_tensor_value_info("deep", 1, [])],
    )  # fmt: skip
    other = _constant_branch()
    for _ in range(rng.choice((3, 20, DEEP // 4))):
        node = helper.make_node("If", ["yes"], ["deep"], then_branch=inner, else_branch=other)
        inner = helper.make_graph(
            [node], "branch", [], [helper.make_tensor_value_info("deep", 1, [])]
        )
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    top = helper.make_node("If", ["yes"], ["deep"], then_branch=inner, else_branch=other)
    model.graph.node.insert(0, top)
    _read_somewhere(rng, model, "deep")


def _constant_branch() -> onnx.GraphProto:
    node = helper.make_node("Constant", [], ["leaf"], value=_tensor(np.float32(2)))
    return helper.make_graph([node], "leaf", [], [helper.make_tensor_value_info("leaf", 1, [])])


def _add_chain(rng: random.Random, model: onnx.ModelProto) -> None:
    """Put a long chain of nodes in front of an output."""
    last = model.graph.output[0].name if model.graph.output else "x"
    count = rng.choice((100, LONG))
    op = rng.choice(("Relu", "Identity", "Abs", "Dropout", "Not"))
    names = [last, *(f"chain{index}" for index in range(count))]
    nodes = [helper.make_node(op, [a], [b]) for a, b in itertools.pairwise(names)]
    model.graph.node.extend(nodes)
    model.graph.output.append(helper.make_tensor_value_info(names[-1], 1, ["long"]))


def _add_huge_tensor(rng: random.Random, model: onnx.ModelProto) -> None:
    """Compute a tensor far too large from a small input."""
    size = rng.choice((2**20, 2**28, 2**31, 2**36, 2**40, 2**62, -1))
    op = rng.choice(
        ("ConstantOfShape", "Expand", "Tile", "Range", "Pad", "Resize", "OneHot", "EyeLike")
    )
    shape = numpy_helper.from_array(np.array([size], np.int64), "huge_shape")
    one = numpy_helper.from_array(np.ones(1, np.float32), "huge_one")
    limit = numpy_helper.from_array(np.array(size, np.int64), "huge_limit")
    zero = numpy_helper.from_array(np.array(0, np.int64), "huge_zero")
    step = numpy_helper.from_array(np.array(1, np.int64), "huge_step")
    pads = numpy_helper.from_array(np.array([0, size], np.int64), "huge_pads")
    scale = numpy_helper.from_array(np.array([size], np.float32), "huge_scale")
    model.graph.initializer.extend([shape, one, limit, zero, step, pads, scale])
    ends = {
        "ConstantOfShape": ["huge_shape"], "Expand": ["huge_one", "huge_shape"],
        "Tile": ["huge_one", "huge_shape"], "Range": ["huge_zero", "huge_limit", "huge_step"],
        "Pad": ["huge_one", "huge_pads"], "Resize": ["huge_one", "", "huge_scale"],
        "OneHot": ["huge_shape", "huge_limit", "huge_pads"], "EyeLike": ["huge_shape"],
    }  # fmt: skip
    model.graph.node.insert(0, helper.make_node(op, ends[op], ["huge"]))
    _read_somewhere(rng, model, "huge", ["huge"])


def _add_loop(rng: random.Random, model: onnx.ModelProto) -> None:
    """Add a loop that never ends, or runs for very long."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Identity", ["s"], ["t"])],
        "body",
        [helper.make_tensor_value_info("i", TensorProto.INT64, []),
         helper.make_tensor_value_info("go", TensorProto.BOOL, []),
         helper.make_tensor_value_info("s", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("on", TensorProto.BOOL, []),
         helper.make_tensor_value_info("t", TensorProto.FLOAT, [1])],
    )  # fmt: skip
    count = rng.choice((3, 10**6, 2**62))
    trips = numpy_helper.from_array(np.array(count, np.int64), "trips")
    yes = numpy_helper.from_array(np.array(True), "go_on")
    start = numpy_helper.from_array(np.ones(1, np.float32), "start")
    model.graph.initializer.extend([trips, yes, start])
    ends = [rng.choice(("trips", "")), "go_on", "start"]
    model.graph.node.insert(0, helper.make_node("Loop", ends, ["endless"], body=body))
    _read_somewhere(rng, model, "endless", [1])


def _add_sparse_tensor(rng: random.Random, model: onnx.ModelProto) -> None:
    sparse = model.graph.sparse_initializer.add()
    sparse.values.CopyFrom(_tensor(np.ones(2, np.float32)))
    sparse.values.name = any_name(rng)
    sparse.indices.CopyFrom(_tensor(np.array([0, any_integer(rng)], np.int64)))
    sparse.dims.append(any_integer(rng))


def _add_many_readers(rng: random.Random, model: onnx.ModelProto) -> None:
    """Add 500 readers of a tensor."""
    names = [name for node in model.graph.node for name in node.output] or ["x"]
    chosen = rng.choice(names)
    for index in range(500):
        model.graph.node.append(helper.make_node("Relu", [chosen], [f"wide{index}"]))
    model.graph.node.append(
        helper.make_node("Sum", [f"wide{index}" for index in range(500)], ["wide"])
    )
    _read_somewhere(rng, model, "wide", ["wide"])


def _read_somewhere(
    rng: random.Random, model: onnx.ModelProto, name: str, shape: Shape = ()
) -> None:
    """Make a tensor an output, or an input of a node, so that no pass removes it."""
    if rng.random() < 0.5 or not model.graph.node:
        model.graph.output.append(helper.make_tensor_value_info(name, 1, shape))
        return
    node = rng.choice(model.graph.node)
    if node.input:
        node.input[rng.randrange(len(node.input))] = name


def _tensor(array: object) -> TensorProto:
    return numpy_helper.from_array(np.asarray(array))


CHANGES: tuple[Change, ...] = (
    change_nodes, change_edges, change_edges, change_operator, change_attribute, change_attribute,
    change_types, change_types, change_weights, change_weights, rename_everywhere, change_model,
)  # fmt: skip
