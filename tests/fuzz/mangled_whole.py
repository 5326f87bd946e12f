"""Models spoiled as a whole: versions, metadata, functions, and graphs of another size or depth."""

import itertools
import random
from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.fuzz import words

Shape = Sequence[str | int]
DEEP, LONG = 80, 3000  # protobuf itself reads no more than 100 levels


def mangle(chance: random.Random, model: onnx.ModelProto) -> None:
    """Change one thing that the whole model has."""
    way = chance.choice(
        (_versions, _versions, _metadata, _function, _deep, _long, _huge, _endless, _sparse, _wide)
    )
    way(chance, model)


def _versions(chance: random.Random, model: onnx.ModelProto) -> None:
    if chance.random() < 0.3:
        model.ir_version = chance.choice((-1, 0, 1, 3, 4, 9, 13, 999, 2**63 - 1))
    elif not model.opset_import or chance.random() < 0.2:
        model.opset_import.add(domain=words.name(chance), version=1)
    else:
        chosen = chance.choice(model.opset_import)
        chosen.version = chance.choice(
            (-1, 0, 1, 5, 6, 7, 8, 9, 10, 11, 12, 13, 17, 21, 23, 24, 27, 999)
        )
        if chance.random() < 0.1:
            chosen.domain = words.name(chance)


def _metadata(chance: random.Random, model: onnx.ModelProto) -> None:
    said = (
        '{"resize": -1}',
        "{",
        "[]",
        "null",
        '{"mean": [1e999]}',
        words.name(chance),
        "[" * 3000,
    )
    key = chance.choice(("qconvert.preprocess", "qconvert.preprocess", words.name(chance)))
    model.metadata_props.add(key=key, value=chance.choice(said))
    model.doc_string = model.producer_name = words.name(chance)
    model.graph.name = words.name(chance)


def _function(chance: random.Random, model: onnx.ModelProto) -> None:
    """Add a function of the model's own: one that calls itself, or one named as an operator."""
    name, domain = chance.choice(
        (("F", "own"), ("Relu", ""), ("Conv", "own"), (words.name(chance), "own"))
    )
    call = helper.make_node(chance.choice((name, "Relu")), ["x"], ["y"], domain=domain)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("own", 1)]
    model.functions.append(helper.make_function(domain, name, ["x"], ["y"], [call], opsets))
    if all(each.domain != "own" for each in model.opset_import):
        model.opset_import.append(helper.make_opsetid("own", 1))
    if model.graph.node and chance.random() < 0.8:
        node = chance.choice(model.graph.node)
        node.op_type, node.domain = name, domain


def _deep(chance: random.Random, model: onnx.ModelProto) -> None:
    """Put an If inside an If inside an If in front of everything."""
    inner = helper.make_graph(
        [helper.make_node("Constant", [], ["deep"], value=_tensor(np.float32(1)))],
        "branch", [], [helper.make_tensor_value_info("deep", 1, [])],
    )  # fmt: skip
    for _ in range(chance.choice((3, 20, DEEP // 4))):
        node = helper.make_node("If", ["yes"], ["deep"], then_branch=inner, else_branch=_leaf())
        inner = helper.make_graph(
            [node], "branch", [], [helper.make_tensor_value_info("deep", 1, [])]
        )
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    top = helper.make_node("If", ["yes"], ["deep"], then_branch=inner, else_branch=_leaf())
    model.graph.node.insert(0, top)
    _keep(chance, model, "deep")


def _leaf() -> onnx.GraphProto:
    node = helper.make_node("Constant", [], ["leaf"], value=_tensor(np.float32(2)))
    return helper.make_graph([node], "leaf", [], [helper.make_tensor_value_info("leaf", 1, [])])


def _long(chance: random.Random, model: onnx.ModelProto) -> None:
    """Put a long chain of nodes in front of an output."""
    last = model.graph.output[0].name if model.graph.output else "x"
    count = chance.choice((100, LONG))
    op = chance.choice(("Relu", "Identity", "Abs", "Dropout", "Not"))
    names = [last, *(f"chain{at}" for at in range(count))]
    nodes = [helper.make_node(op, [a], [b]) for a, b in itertools.pairwise(names)]
    model.graph.node.extend(nodes)
    model.graph.output.append(helper.make_tensor_value_info(names[-1], 1, ["long"]))


def _huge(chance: random.Random, model: onnx.ModelProto) -> None:
    """Compute something far too large from very little."""
    size = chance.choice((2**20, 2**28, 2**31, 2**36, 2**40, 2**62, -1))
    op = chance.choice(
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
    _keep(chance, model, "huge", ["huge"])


def _endless(chance: random.Random, model: onnx.ModelProto) -> None:
    """Add a loop that never ends, or ends after very long."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Identity", ["s"], ["t"])],
        "body",
        [helper.make_tensor_value_info("i", TensorProto.INT64, []),
         helper.make_tensor_value_info("go", TensorProto.BOOL, []),
         helper.make_tensor_value_info("s", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("on", TensorProto.BOOL, []),
         helper.make_tensor_value_info("t", TensorProto.FLOAT, [1])],
    )  # fmt: skip
    count = chance.choice((3, 10**6, 2**62))
    trips = numpy_helper.from_array(np.array(count, np.int64), "trips")
    yes = numpy_helper.from_array(np.array(True), "go_on")
    start = numpy_helper.from_array(np.ones(1, np.float32), "start")
    model.graph.initializer.extend([trips, yes, start])
    ends = [chance.choice(("trips", "")), "go_on", "start"]
    model.graph.node.insert(0, helper.make_node("Loop", ends, ["endless"], body=body))
    _keep(chance, model, "endless", [1])


def _sparse(chance: random.Random, model: onnx.ModelProto) -> None:
    sparse = model.graph.sparse_initializer.add()
    sparse.values.CopyFrom(_tensor(np.ones(2, np.float32)))
    sparse.values.name = words.name(chance)
    sparse.indices.CopyFrom(_tensor(np.array([0, words.integer(chance)], np.int64)))
    sparse.dims.append(words.integer(chance))


def _wide(chance: random.Random, model: onnx.ModelProto) -> None:
    """Let something be read very often."""
    names = [name for node in model.graph.node for name in node.output] or ["x"]
    chosen = chance.choice(names)
    for at in range(500):
        model.graph.node.append(helper.make_node("Relu", [chosen], [f"wide{at}"]))
    model.graph.node.append(helper.make_node("Sum", [f"wide{at}" for at in range(500)], ["wide"]))
    _keep(chance, model, "wide", ["wide"])


def _keep(chance: random.Random, model: onnx.ModelProto, name: str, shape: Shape = ()) -> None:
    """Let somebody read a tensor: it is an output, or one of the inputs of a node."""
    if chance.random() < 0.5 or not model.graph.node:
        model.graph.output.append(helper.make_tensor_value_info(name, 1, shape))
        return
    node = chance.choice(model.graph.node)
    if node.input:
        node.input[chance.randrange(len(node.input))] = name


def _tensor(array: object) -> TensorProto:
    return numpy_helper.from_array(np.asarray(array))
