"""Every node and tensor has a name of its own, the same on every run."""

from collections import Counter
from dataclasses import dataclass, field

import onnx_ir as ir
from onnx_ir.passes import common


def name_nodes(model: ir.Model) -> tuple[ir.Model, str]:
    """Name what has no name or one that another has; drop what exporters left for debugging."""
    named = model.clone()
    common.ClearMetadataAndDocStringPass()(named)
    given = _name_nodes(named.graph, unnamed_too=True)
    return named, f"{given} nodes" if given else ""


def rename_duplicate_nodes(model: ir.Model) -> tuple[ir.Model, int]:
    """Return a copy in which no two nodes share a name, and how many were given another."""
    named = model.clone()
    given = _name_nodes(named.graph, unnamed_too=False)
    return (named, given) if given else (model, 0)


def tensor_names(graph: ir.Graph) -> set[str]:
    """Return the names of all tensors of a graph and of the graphs inside its nodes."""
    found = {value.name for value in (*graph.inputs, *graph.initializers.values())}
    for node in graph.all_nodes():
        found.update(value.name for value in (*node.inputs, *node.outputs) if value is not None)
    for inner in graph.subgraphs():
        found.update(value.name for value in (*inner.inputs, *inner.initializers.values()))
    return {name for name in found if name}


@dataclass(frozen=True)
class UniqueNames:
    """The names that are taken, and how many of one stem were given out."""

    taken: set[str]
    counters: Counter[str] = field(default_factory=Counter)

    def reserve(self, stem: str) -> str:
        """Return a name that nothing has, and take it: the stem, or the stem and a number."""
        name = stem
        while name in self.taken:
            self.counters[stem] += 1
            name = f"{stem}_{self.counters[stem]}"
        self.taken.add(name)
        return name


def _name_nodes(graph: ir.Graph, *, unnamed_too: bool) -> int:
    """Give each node a name of its own; return how many got one."""
    taken: set[str] = set()
    counts: Counter[str] = Counter()
    given = 0
    for node in graph.all_nodes():
        if node.name in taken or (unnamed_too and not node.name):
            node.name = _numbered(node.name or node.op_type, taken, counts)
            given += 1
        if node.name:
            taken.add(node.name)
    return given


def _numbered(stem: str, taken: set[str], counts: Counter[str]) -> str:
    while True:
        name = f"{stem}_{counts[stem]}"
        counts[stem] += 1
        if name not in taken:
            return name
