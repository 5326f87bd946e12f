"""Half precision written out: computed in float32, and each result rounded to the half type.

So a processor without half kernels computes what one with them would: its runtime may keep float32
between the nodes of a half graph, but not between casts that the graph asks for.
"""

import onnx_ir as ir

from qconvert.graph.fp16.half_types import TYPE_NAMES
from qconvert.graph.names import UniqueNames, tensor_names
from qconvert.graph.patterns import has_subgraph, is_standard

FLOAT32 = ir.DataType.FLOAT
CAST_OPS = ("Cast", "CastLike")


def emulate_half(model: ir.Model) -> ir.Model:
    """Return a copy that rounds to half precision by casts alone; tensors keep their names."""
    model = model.clone()
    names = UniqueNames(tensor_names(model.graph))
    for node in list(model.graph):
        if is_standard(node) and not is_standard(node, *CAST_OPS) and not has_subgraph(node):
            _compute_in_float32(node, names)
    return model


def _compute_in_float32(node: ir.Node, names: UniqueNames) -> None:
    halves = [slot for slot, value in enumerate(node.inputs) if _is_half(value)]
    for slot in halves:
        value = node.inputs[slot]
        assert value is not None
        cast = _cast(value, FLOAT32, names.reserve(f"{value.name}_wide"))
        assert node.graph is not None
        node.graph.insert_before(node, cast)
        node.replace_input_with(slot, cast.outputs[0])
    # What reads nothing in half precision says by itself what it makes.
    for value in node.outputs if halves else ():
        if _is_half(value):
            _cast_output(node, value, names)


def _cast_output(node: ir.Node, value: ir.Value, names: UniqueNames) -> None:
    """Let a node make float32, and all others read it rounded under the name it had."""
    kind, name = value.dtype, str(value.name)
    assert kind is not None
    assert node.graph is not None
    cast = _cast(value, kind, name)
    ir.convenience.replace_all_uses_with(value, cast.outputs[0], replace_graph_outputs=True)
    cast.replace_input_with(0, value)
    value.name, value.type = names.reserve(f"{name}_exact"), ir.TensorType(FLOAT32)
    node.graph.insert_after(node, cast)


def _cast(value: ir.Value, kind: ir.DataType, name: str) -> ir.Node:
    cast = ir.node("Cast", [value], {"to": kind})
    made = cast.outputs[0]
    made.name, made.shape, made.type = name, value.shape, ir.TensorType(kind)
    return cast


def _is_half(value: ir.Value | None) -> bool:
    return value is not None and value.dtype in TYPE_NAMES
