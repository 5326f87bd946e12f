"""Two parts of a graph: what comes before a node, run once, and the rest, run for every trial."""

from collections.abc import Iterator, Sequence

import onnx_ir as ir


def can_be_cut(model: ir.Model) -> bool:
    """Whether every node says all that it reads, which one with a graph inside does not."""
    return not model.functions and all(
        attribute.type not in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
        for node in model.graph
        for attribute in node.attributes.values()
    )


def live(graph: ir.Graph, at: int) -> list[ir.Value]:
    """Return the tensors that are there before node number `at` and that it or a later one reads.

    Those that the graph returns and that are there already are among them.
    """
    nodes = list(graph)
    rest = set(nodes[at:])
    there = [*graph.inputs, *(value for node in nodes[:at] for value in node.outputs)]
    return [
        value
        for value in there
        if value.is_graph_output() or any(use.node in rest for use in value.uses())
    ]


def between(model: ir.Model, start: int, stop: int) -> ir.Model | None:
    """Return the nodes from `start` up to `stop` as a model, None where nothing is computed there.

    It is fed what is live at `start` and answers with what is live at `stop`.
    """
    known = live(model.graph, start)
    wanted = list(_wanted(model.graph, stop, known))
    if not wanted:
        return None
    graph = ir.convenience.extract(model.graph, known, wanted)
    read = {value.name for node in graph for value in node.inputs if value is not None}
    unread = [value for value in graph.inputs if value.name not in read]
    for value in unread:
        graph.inputs.remove(value)
    part = ir.Model(graph, ir_version=model.ir_version)
    part.opset_imports.update(model.opset_imports)
    return part


def _wanted(graph: ir.Graph, stop: int, known: Sequence[ir.Value]) -> Iterator[ir.Value]:
    end = stop >= len(list(graph))
    given = set(known)
    yield from (
        value for value in (graph.outputs if end else live(graph, stop)) if value not in given
    )
