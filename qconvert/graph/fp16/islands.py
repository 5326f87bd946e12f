"""Which nodes stay in float32 when the rest becomes half precision, and why."""

from collections.abc import Iterator, Mapping

import numpy as np
import onnx_ir as ir

from qconvert.graph.fp16.half_types import HalfTyping, handles_float32, is_float32
from qconvert.graph.fp16.overflow import (
    ACCUMULATING,
    Magnitudes,
    check_accumulation,
    check_constants,
    check_large_activations,
    check_quantization_scale,
    check_small_activations,
)
from qconvert.graph.observed_tensors import MOVING
from qconvert.graph.patterns import constant_array, is_standard

IslandReasons = dict[ir.Node, str]

SIZE_OPS = frozenset({"Shape", "Size", "Range"})
SCALING = MOVING | {"ReduceSum", "ReduceMean", "Add", "Mul", "Div", "Max", "Clip"}
ROOTS = frozenset({"Sqrt", "Pow"})


def find_islands(typing: HalfTyping, largest: Mapping[str, float]) -> IslandReasons:
    """Return the nodes that stay in float32, in graph order, each with the reason."""
    graph = typing.model.graph
    positions = set(_position_nodes(graph))
    found: IslandReasons = {}
    for node in graph:
        if handles_float32(node) and (why := _reason_for_node(node, typing, Magnitudes(largest))):
            found[node] = why
        elif node in positions:
            found[node] = f"it computes sizes or positions; {typing.name} lacks most whole numbers"
    if typing.half is ir.DataType.FLOAT16:
        _keep_squares(graph, found)
        _keep_roots(graph, found)
    _keep_moved_values(graph, found)
    return {node: found[node] for node in graph if node in found}


def _reason_for_node(node: ir.Node, typing: HalfTyping, ranges: Magnitudes) -> str:
    if refusal := typing.reason_to_refuse(node):
        return refusal
    slots = typing.slots(node)
    why = check_constants(node, slots, typing.half) or check_quantization_scale(node, typing.half)
    if why or typing.half is ir.DataType.BFLOAT16:
        return why
    why = check_large_activations(node, slots, ranges) or check_small_activations(
        node, slots, ranges
    )
    return why or check_accumulation(node, ranges)


def _position_nodes(graph: ir.Graph) -> Iterator[ir.Node]:
    """Yield the nodes that compute real numbers from the sizes of tensors alone."""
    known: set[ir.Value] = set()
    for node in graph:
        read = [
            value for value in node.inputs if value is not None and constant_array(value) is None
        ]
        makes_floats = any(is_float32(value) for value in node.outputs)
        if makes_floats and not is_standard(node, "Cast", "Range"):
            read = [value for value in read if is_float32(value)]
        if is_standard(node, *SIZE_OPS) or (read and known.issuperset(read)):
            known.update(node.outputs)
            if makes_floats:
                yield node


def _keep_squares(graph: ir.Graph, found: IslandReasons) -> None:
    """Keep what is squared only to be added up in float32."""
    for node in graph:
        readers = _readers(node)
        summed = [each for each in readers if each in found and each.op_type in ACCUMULATING]
        if node not in found and _squares(node) and readers and len(summed) == len(readers):
            found[node] = "its squares are added up in float32"


def _keep_roots(graph: ir.Graph, found: IslandReasons) -> None:
    """Keep what comes after squares in float32, up to the root that makes them small again."""
    large: set[ir.Value | None] = set()
    for node in graph:
        others = [value for value in node.inputs if value not in large]
        alone = all(value is None or constant_array(value) is not None for value in others)
        if node in found and (_squares(node) or is_standard(node, "ReduceSumSquare")):
            large.update(node.outputs)
        elif len(others) < len(node.inputs) and alone and is_standard(node, *SCALING, *ROOTS):
            found.setdefault(node, "it reads squares, which float16 may not hold")
            large.update(() if is_standard(node, *ROOTS) else node.outputs)


def _keep_moved_values(graph: ir.Graph, found: IslandReasons) -> None:
    """Keep what only moves values from one float32 node to others."""
    inside: set[ir.Node] = set(found)
    for node in reversed(graph):
        readers = _readers(node)
        if is_standard(node, *MOVING) and readers and inside.issuperset(readers):
            inside.add(node)
    for node in graph:
        source = node.inputs[0].producer() if node.inputs and node.inputs[0] else None
        if node in inside and source in found and is_float32(node.outputs[0]):
            found.setdefault(node, "it only moves values between nodes in float32")


def _readers(node: ir.Node) -> list[ir.Node]:
    """Return the nodes that read what a node makes; none if the graph returns it."""
    if any(value.is_graph_output() for value in node.outputs):
        return []
    return [use.node for value in node.outputs for use in value.uses()]


def _squares(node: ir.Node) -> bool:
    if is_standard(node, "Mul"):
        return node.inputs[0] is node.inputs[1]
    exponent = constant_array(node.inputs[1]) if is_standard(node, "Pow") else None
    return exponent is not None and bool(np.all(exponent == 2))
