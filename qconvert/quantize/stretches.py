"""A graph run a stretch at a time, so that no more is kept of it than what is still to be read.

Every node runs once. The images are in parts, each of which is run by itself as a batch, so it does
not matter which axis of a tensor is the batch, or whether it has one.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import onnx_ir as ir

from qconvert.feeds import Feeds, Run

Open = Callable[[ir.Model], Run]


class Stretches:
    """A model on its way through the images of `parts`; `held` has for each part what is kept."""

    def __init__(self, model: ir.Model, open_model: Open, parts: Sequence[Feeds]) -> None:
        self._model, self._open = model, open_model
        self._nodes = list(model.graph)
        self._places = {node.name: place for place, node in enumerate(self._nodes)}
        self._last = _last_readers(self._nodes, model.graph.outputs)
        self._at = 0
        self.held: list[Feeds] = [dict(part) for part in parts]

    def run_to(self, name: str, wanted: str, *, beyond: bool = False) -> None:
        """Run all before a node, and with `beyond` the node too; keep `wanted` until the next."""
        stop = self._places[name] + beyond
        nodes = self._nodes[self._at : stop]
        self._at = stop
        made = {str(value.name) for node in nodes for value in node.outputs if value.name}
        keep = {each for each in made if self._last.get(each, -1) >= stop or each == wanted}
        if keep:
            self._run(nodes, sorted(keep))
        self.held = [
            {
                each: part[each]
                for each in part
                if self._last.get(each, -1) >= stop or each == wanted
            }
            for part in self.held
        ]

    def rest(self) -> Run:
        """Return what runs on from here to the answers, fed with what is held of a part."""
        answers = [str(value.name) for value in self._model.graph.outputs]
        missing = [name for name in answers if name not in self.held[0]]
        if not missing:
            return lambda held: {}
        return self._opened(self._nodes[self._at :], missing)

    def _run(self, nodes: Sequence[ir.Node], keep: Sequence[str]) -> None:
        run = self._opened(nodes, keep)
        for part in self.held:
            part.update(run(part))

    def _opened(self, nodes: Sequence[ir.Node], keep: Sequence[str]) -> Run:
        """Return what makes tensors with these nodes from what is held."""
        read = {str(value.name) for node in nodes for value in _read(node)}
        feeds = sorted(read & self.held[0].keys())
        graph = ir.convenience.extract(self._model.graph, feeds, keep)
        run = self._open(ir.Model(graph, ir_version=self._model.ir_version))
        return lambda held: run({each: held[each] for each in feeds})


def untyped(model: ir.Model) -> str:
    """Return a tensor whose type is not known, at which a graph cannot be cut; empty if none."""
    made = (value for node in model.graph for value in node.outputs if value.uses())
    return next((str(value.name) for value in made if value.dtype is None), "")


def _read(node: ir.Node) -> Iterator[ir.Value]:
    """Yield what a node reads, and what the bodies inside it read from outside."""
    yield from (value for value in node.inputs if value is not None)
    for attribute in node.attributes.values():
        if attribute.type is ir.AttributeType.GRAPH:
            for inner in attribute.as_graph().all_nodes():
                yield from (value for value in inner.inputs if value is not None)


def _last_readers(nodes: Sequence[ir.Node], outputs: Sequence[ir.Value]) -> dict[str, int]:
    """Return where in the graph each tensor is read for the last time."""
    last = {str(value.name): place for place, node in enumerate(nodes) for value in _read(node)}
    return last | {str(value.name): len(nodes) for value in outputs}


def widest_bytes(model: ir.Model) -> int:
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
