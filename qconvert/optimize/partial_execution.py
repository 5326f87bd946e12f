"""Run a graph segment by segment, and hold only the tensors that are still to be read.

Every node runs once. Each batch runs by itself, so it does not matter which axis of a tensor is the
batch, or whether it has one.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import onnx_ir as ir

from qconvert.core.tensors import RunModel, Tensors

# Layer by layer, the activations of all images at the widest place of two models are in memory.
MAX_ACTIVATION_BYTES = 1_500_000_000

OpenModel = Callable[[ir.Model], RunModel]


class PartialExecution:
    """A model on its way through some batches; `live` has the tensors of each that are held.

    `batches` are read again by every segment that starts at the inputs of the model.
    """

    def __init__(self, model: ir.Model, open_model: OpenModel, batches: Iterable[Tensors]) -> None:
        self._model, self._open_model = model, open_model
        self._nodes = list(model.graph)
        self._positions = {node.name: position for position, node in enumerate(self._nodes)}
        self._last_reads = _last_reads(model.graph)
        self._names = {str(value.name) for value in model.graph.inputs}
        self.position = 0
        self.live: Iterable[Tensors] = batches

    def run_to(
        self, name: str, keep: str = "", *, inclusive: bool = False, max_bytes: float = math.inf
    ) -> bool:
        """Run all nodes before this one, and with `inclusive` this one; hold `keep` until the next.

        Return False, and stay at the old node, if the tensors to hold take more than `max_bytes`.
        """
        stop = self._positions[name] + inclusive
        nodes = self._nodes[self.position : stop]
        outputs = {str(value.name) for node in nodes for value in node.outputs if value.name}
        read_later = {name for name, last in self._last_reads.items() if last >= stop}
        names = (self._names | outputs) & {keep, *read_later}
        run = self._open(self._open_model, nodes, names & outputs)
        live: list[Tensors] = []
        held_bytes = 0
        for batch in self.live:
            tensors = {**batch, **run(batch)}
            live.append({tensor: tensors[tensor] for tensor in names})
            if math.isfinite(max_bytes):
                held_bytes += sum(array.nbytes for array in live[-1].values())
                if held_bytes > max_bytes:
                    return False
        self.live, self._names, self.position = live, names, stop
        return True

    def open_rest(self, open_model: OpenModel | None = None) -> RunModel:
        """Return what runs on to the outputs from the live tensors of a batch."""
        outputs = {str(value.name) for value in self._model.graph.outputs} - self._names
        return self._open(open_model or self._open_model, self._nodes[self.position :], outputs)

    def _open(self, open_model: OpenModel, nodes: Sequence[ir.Node], outputs: set[str]) -> RunModel:
        if not outputs:
            return lambda live: {}
        reads = {str(value.name) for node in nodes for value in _values_read(node)}
        inputs = sorted(reads & self._names)
        graph = ir.convenience.extract(self._model.graph, inputs, sorted(outputs))
        run = open_model(ir.Model(graph, ir_version=self._model.ir_version))
        return lambda live: run({name: live[name] for name in inputs})


def find_untyped_tensor(model: ir.Model) -> str:
    """Return a tensor of unknown type, at which a graph cannot be split; empty if there is none."""
    values = (value for node in model.graph for value in node.outputs if value.uses())
    return next((str(value.name) for value in values if value.dtype is None), "")


def limit_images(model: ir.Model, images: int) -> int:
    """Return how many of the images fit into memory while layers run alone, at least one."""
    return min(images, max(1, MAX_ACTIVATION_BYTES // max(1, 2 * peak_activation_bytes(model))))


def peak_activation_bytes(model: ir.Model) -> int:
    """Return the bytes that one image takes at the widest place of a graph, as far as is known."""
    last_reads = _last_reads(model.graph)
    live_bytes, peak, freed_bytes = 0, 0, Counter[int]()
    for position, node in enumerate(model.graph):
        for value in node.outputs:
            # Unknown dimensions count as one; the first is the batch.
            sizes = [size for size in value.shape or () if isinstance(size, int)]
            size = 4 * math.prod(sizes[1:] if len(sizes) == len(value.shape or ()) else sizes)
            live_bytes += size
            freed_bytes[last_reads.get(str(value.name), position)] += size
        peak = max(peak, live_bytes)
        live_bytes -= freed_bytes[position]
    return peak


def _values_read(node: ir.Node) -> list[ir.Value]:
    """Return what a node reads, and what graphs inside it read from outside."""
    graphs = (
        attribute.as_graph()
        for attribute in node.attributes.values()
        if attribute.type is ir.AttributeType.GRAPH
    )
    readers = [node, *(inner for graph in graphs for inner in graph.all_nodes())]
    return [value for reader in readers for value in reader.inputs if value is not None]


def _last_reads(graph: ir.Graph) -> dict[str, int]:
    """Return the position of the last node that reads each tensor."""
    positions = enumerate(graph)
    reads = {str(value.name): index for index, node in positions for value in _values_read(node)}
    return reads | {str(value.name): len(graph) for value in graph.outputs}
