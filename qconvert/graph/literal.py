"""Half precision written out: computed in float32, and each result rounded to the half type.

So a processor without half kernels computes what one with them would: its runtime may keep float32
between the nodes of a half graph, but not between casts that the graph asks for.
"""

import onnx_ir as ir

from qconvert.graph.half_types import SPELLED
from qconvert.graph.names import Names, tensor_names
from qconvert.graph.patterns import is_standard

FLOAT = ir.DataType.FLOAT
CASTS = ("Cast", "CastLike")


def literal(model: ir.Model) -> ir.Model:
    """Return a copy that rounds to half precision by casts alone; tensors keep their names."""
    model = model.clone()
    names = Names(tensor_names(model.graph))
    for node in list(model.graph):
        if is_standard(node) and not is_standard(node, *CASTS) and not holds_graphs(node):
            _widen(node, names)
    return model


def holds_graphs(node: ir.Node) -> bool:
    """Whether a node has a graph of its own, as `If` and `Loop` do."""
    return any(each.type is ir.AttributeType.GRAPH for each in node.attributes.values())


def _widen(node: ir.Node, names: Names) -> None:
    halves = [slot for slot, value in enumerate(node.inputs) if _is_half(value)]
    for slot in halves:
        value = node.inputs[slot]
        assert value is not None
        cast = _cast(value, FLOAT, names.free(f"{value.name}_wide"))
        assert node.graph is not None
        node.graph.insert_before(node, cast)
        node.replace_input_with(slot, cast.outputs[0])
    # What reads nothing in half precision says by itself what it makes.
    for value in node.outputs if halves else ():
        if _is_half(value):
            _round(node, value, names)


def _round(node: ir.Node, value: ir.Value, names: Names) -> None:
    """Let a node make float32, and all others read it rounded under the name it had."""
    kind, name = value.dtype, str(value.name)
    assert kind is not None
    assert node.graph is not None
    cast = _cast(value, kind, name)
    ir.convenience.replace_all_uses_with(value, cast.outputs[0], replace_graph_outputs=True)
    cast.replace_input_with(0, value)
    value.name, value.type = names.free(f"{name}_exact"), ir.TensorType(FLOAT)
    node.graph.insert_after(node, cast)


def _cast(value: ir.Value, kind: ir.DataType, name: str) -> ir.Node:
    cast = ir.node("Cast", [value], {"to": kind})
    made = cast.outputs[0]
    made.name, made.shape, made.type = name, value.shape, ir.TensorType(kind)
    return cast


def _is_half(value: ir.Value | None) -> bool:
    return value is not None and value.dtype in SPELLED
