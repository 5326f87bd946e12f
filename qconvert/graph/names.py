"""Every node and tensor has a unique name, the same on every run."""

from collections import Counter
from dataclasses import dataclass, field

import onnx_ir as ir
from onnx_ir.passes import common


def name_nodes(model: ir.Model) -> tuple[ir.Model, str]:
    """Give every node a unique name; drop the metadata that exporters left for debugging."""
    model, renamed = rename_duplicate_nodes(model, unnamed_too=True)
    common.ClearMetadataAndDocStringPass()(model)
    return model, f"{renamed} nodes" if renamed else ""


def rename_duplicate_nodes(model: ir.Model, *, unnamed_too: bool = False) -> tuple[ir.Model, int]:
    """Return a copy in which no two nodes share a name, and how many were renamed."""
    model = model.clone()
    taken: set[str] = set()
    counters: Counter[str] = Counter()
    renamed = 0
    for node in model.graph.all_nodes():
        if node.name in taken or (unnamed_too and not node.name):
            stem = node.name or node.op_type
            while (name := f"{stem}_{counters[stem]}") in taken:
                counters[stem] += 1
            counters[stem] += 1
            node.name = name
            renamed += 1
        if node.name:
            taken.add(node.name)
    return model, renamed


def tensor_names(graph: ir.Graph) -> set[str]:
    """Return the names of all tensors of a graph and of the graphs inside its nodes."""
    values: set[ir.Value | None] = set()
    for scope in (graph, *graph.subgraphs()):
        values.update(scope.inputs, scope.initializers.values())
    for node in graph.all_nodes():
        values.update(node.inputs, node.outputs)
    return {value.name for value in values if value is not None and value.name}


@dataclass(frozen=True)
class UniqueNames:
    """The names in use, and the last number that was appended to each stem."""

    taken: set[str]
    counters: Counter[str] = field(default_factory=Counter)

    def reserve(self, stem: str) -> str:
        """Return an unused name and mark it as used: the stem, or the stem and a number."""
        name = stem
        while name in self.taken:
            self.counters[stem] += 1
            name = f"{stem}_{self.counters[stem]}"
        self.taken.add(name)
        return name
