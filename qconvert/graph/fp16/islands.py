"""Float32 islands: which nodes stay in float32 when the rest becomes half precision, and why."""

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from qconvert.graph.fp16.half_types import HalfTyping, handles_float32, is_float32
from qconvert.graph.fp16.overflow import (
    ACCUMULATING,
    Magnitudes,
    check_accumulation,
    check_activations,
    check_constants,
    check_quantization_scale,
)
from qconvert.graph.observed_tensors import MOVING
from qconvert.graph.patterns import constant_array, is_standard, producer_of

IslandReasons = dict[ir.Node, str]

SIZE_OPS = frozenset({"Shape", "Size", "Range"})
SCALING = MOVING | {"ReduceSum", "ReduceMean", "Add", "Mul", "Div", "Max", "Clip"}
ROOTS = frozenset({"Sqrt", "Pow"})


def find_islands(typing: HalfTyping, magnitudes: Magnitudes) -> IslandReasons:
    """Return the nodes that stay in float32, in graph order, each with the reason."""
    graph = typing.model.graph
    positions = set(_position_nodes(graph))
    islands: IslandReasons = {}
    for node in graph:
        if handles_float32(node) and (reason := _reason(node, typing, magnitudes)):
            islands[node] = reason
        elif node in positions:
            islands[node] = (
                f"it computes sizes or positions, and {typing.name} lacks most whole numbers"
            )
    if typing.half is ir.DataType.FLOAT16:
        _add_summed_squares(graph, islands)
        _add_roots_of_squares(graph, islands)
    _add_moved_values(graph, islands)
    return {node: islands[node] for node in graph if node in islands}


def _reason(node: ir.Node, typing: HalfTyping, magnitudes: Magnitudes) -> str:
    if refusal := typing.reason_to_refuse(node):
        return refusal
    slots = typing.slots(node)
    reason = check_constants(node, slots, typing.half) or check_quantization_scale(
        node, typing.half
    )
    if reason or typing.half is ir.DataType.BFLOAT16:
        return reason
    return check_activations(node, slots, magnitudes) or check_accumulation(node, magnitudes)


def _position_nodes(graph: ir.Graph) -> Iterator[ir.Node]:
    """Yield the nodes that compute real numbers from the sizes of tensors alone."""
    sizes: set[ir.Value] = set()
    for node in graph:
        inputs = [
            value for value in node.inputs if value is not None and constant_array(value) is None
        ]
        outputs_float = any(is_float32(value) for value in node.outputs)
        if outputs_float and not is_standard(node, "Cast", "Range"):
            inputs = [value for value in inputs if is_float32(value)]
        if is_standard(node, *SIZE_OPS) or (inputs and sizes.issuperset(inputs)):
            sizes.update(node.outputs)
            if outputs_float:
                yield node


def _add_summed_squares(graph: ir.Graph, islands: IslandReasons) -> None:
    """Add the nodes that square what only float32 islands add up."""
    for node in graph:
        readers = _readers(node) if node not in islands and _is_square(node) else []
        if readers and all(
            reader in islands and reader.op_type in ACCUMULATING for reader in readers
        ):
            islands[node] = "its squares are added up in float32"


def _add_roots_of_squares(graph: ir.Graph, islands: IslandReasons) -> None:
    """Add the nodes after squares, up to the root that makes the values small again."""
    squares: set[ir.Value | None] = set()
    for node in graph:
        others = [value for value in node.inputs if value not in squares]
        alone = all(value is None or constant_array(value) is not None for value in others)
        if node in islands and (_is_square(node) or is_standard(node, "ReduceSumSquare")):
            squares.update(node.outputs)
        elif len(others) < len(node.inputs) and alone and is_standard(node, *SCALING, *ROOTS):
            islands.setdefault(node, "it reads squares, which may exceed float16")
            squares.update(() if is_standard(node, *ROOTS) else node.outputs)


def _add_moved_values(graph: ir.Graph, islands: IslandReasons) -> None:
    """Add the nodes that only move values from one float32 node to others."""
    before_islands: set[ir.Node] = set(islands)
    for node in reversed(graph):
        readers = _readers(node)
        if is_standard(node, *MOVING) and readers and before_islands.issuperset(readers):
            before_islands.add(node)
    for node in graph:
        source = producer_of(node.inputs[0]) if node.inputs else None
        if node in before_islands and source in islands and is_float32(node.outputs[0]):
            islands.setdefault(node, "it only moves values between float32 nodes")


def _readers(node: ir.Node) -> list[ir.Node]:
    """Return the nodes that read the outputs of a node; none if the graph returns one."""
    if any(value.is_graph_output() for value in node.outputs):
        return []
    return [use.node for value in node.outputs for use in value.uses()]


def _is_square(node: ir.Node) -> bool:
    if is_standard(node, "Mul"):
        return node.inputs[0] is node.inputs[1]
    exponent = constant_array(node.inputs[1]) if is_standard(node, "Pow") else None
    return exponent is not None and bool(np.all(exponent == 2))
