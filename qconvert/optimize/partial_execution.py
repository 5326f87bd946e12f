"""A graph run a stretch at a time, so that no more is kept of it than what is still to be read.

Every node runs once. The images are in parts, each of which is run by itself as a batch, so it does
not matter which axis of a tensor is the batch, or whether it has one.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import onnx_ir as ir

from qconvert.core.tensors import RunModel, Tensors

OpenModel = Callable[[ir.Model], RunModel]


class PartialExecution:
    """A model on its way through the images of `parts`; `held` has for each part what is kept."""

    def __init__(self, model: ir.Model, open_model: OpenModel, parts: Sequence[Tensors]) -> None:
        self._model, self._open = model, open_model
        self._nodes = list(model.graph)
        self._places = {node.name: place for place, node in enumerate(self._nodes)}
        self._last = _last_readers(self._nodes, model.graph.outputs)
        self._at = 0
        self.live: list[Tensors] = [dict(part) for part in parts]

    def run_to(self, name: str, wanted: str, *, beyond: bool = False) -> None:
        """Run all before a node, and with `beyond` the node too; keep `wanted` until the next."""
        stop = self._places[name] + beyond
        nodes = self._nodes[self._at : stop]
        self._at = stop
        made = {str(value.name) for node in nodes for value in node.outputs if value.name}
        keep = {each for each in made if self._last.get(each, -1) >= stop or each == wanted}
        if keep:
            self._run(nodes, sorted(keep))
        self.live = [
            {
                each: part[each]
                for each in part
                if self._last.get(each, -1) >= stop or each == wanted
            }
            for part in self.live
        ]

    def open_rest(self) -> RunModel:
        """Return what runs on from here to the answers, fed with what is held of a part."""
        answers = [str(value.name) for value in self._model.graph.outputs]
        missing = [name for name in answers if name not in self.live[0]]
        if not missing:
            return lambda held: {}
        return self._opened(self._nodes[self._at :], missing)

    def _run(self, nodes: Sequence[ir.Node], keep: Sequence[str]) -> None:
        run = self._opened(nodes, keep)
        for part in self.live:
            part.update(run(part))

    def _opened(self, nodes: Sequence[ir.Node], keep: Sequence[str]) -> RunModel:
        """Return what makes tensors with these nodes from what is held."""
        read = {str(value.name) for node in nodes for value in _read_values(node)}
        feeds = sorted(read & self.live[0].keys())
        graph = ir.convenience.extract(self._model.graph, feeds, keep)
        run = self._open(ir.Model(graph, ir_version=self._model.ir_version))
        return lambda held: run({each: held[each] for each in feeds})


def find_untyped_tensor(model: ir.Model) -> str:
    """Return a tensor whose type is not known, at which a graph cannot be cut; empty if none."""
    made = (value for node in model.graph for value in node.outputs if value.uses())
    return next((str(value.name) for value in made if value.dtype is None), "")


def _read_values(node: ir.Node) -> Iterator[ir.Value]:
    """Yield what a node reads, and what the bodies inside it read from outside."""
    yield from (value for value in node.inputs if value is not None)
    for attribute in node.attributes.values():
        if attribute.type is ir.AttributeType.GRAPH:
            for inner in attribute.as_graph().all_nodes():
                yield from (value for value in inner.inputs if value is not None)


def _last_readers(nodes: Sequence[ir.Node], outputs: Sequence[ir.Value]) -> dict[str, int]:
    """Return where in the graph each tensor is read for the last time."""
    last = {
        str(value.name): place for place, node in enumerate(nodes) for value in _read_values(node)
    }
    return last | {str(value.name): len(nodes) for value in outputs}


def peak_activation_bytes(model: ir.Model) -> int:
    """Return the bytes that one image takes at the widest place of a graph, as far as is known."""
    nodes = list(model.graph)
    last = _last_readers(nodes, model.graph.outputs)
    now, widest = 0, 0
    leaving: dict[int, int] = {}
    for place, node in enumerate(nodes):
        for value in node.outputs:
            size = _bytes(value)
            now += size
            end = last.get(str(value.name), place)
            leaving[end] = leaving.get(end, 0) + size
        widest = max(widest, now)
        now -= leaving.pop(place, 0)
    return widest


def _bytes(value: ir.Value) -> int:
    """Return the bytes of a tensor for one image; sizes that are not known count once."""
    sizes = [size for size in value.shape or () if isinstance(size, int)]
    return 4 * math.prod(sizes[1:] if len(sizes) == len(value.shape or ()) else sizes)


def can_split(model: ir.Model) -> bool:
    """Whether every node says all that it reads, which one with a graph inside does not."""
    return not model.functions and all(
        attribute.type not in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
        for node in model.graph
        for attribute in node.attributes.values()
    )


def live_tensors(graph: ir.Graph, at: int) -> list[ir.Value]:
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


def extract_segment(model: ir.Model, start: int, stop: int) -> ir.Model | None:
    """Return the nodes from `start` up to `stop` as a model, None where nothing is computed there.

    It is fed what is live at `start` and answers with what is live at `stop`.
    """
    known = live_tensors(model.graph, start)
    wanted = list(_segment_outputs(model.graph, stop, known))
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


def _segment_outputs(graph: ir.Graph, stop: int, known: Sequence[ir.Value]) -> Iterator[ir.Value]:
    end = stop >= len(list(graph))
    given = set(known)
    yield from (
        value
        for value in (graph.outputs if end else live_tensors(graph, stop))
        if value not in given
    )
