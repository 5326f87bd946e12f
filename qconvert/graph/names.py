"""Every node and tensor has a name of its own, the same on every run."""

from collections import Counter

import onnx_ir as ir
from onnx_ir.passes import common


def name_all(model: ir.Model) -> tuple[ir.Model, str]:
    """Name what has no name or one that another has; drop what exporters left for debugging."""
    named = model.clone()
    common.ClearMetadataAndDocStringPass()(named)
    taken: set[str] = set()
    counts: Counter[str] = Counter()
    given = 0
    for node in named.graph.all_nodes():
        if not node.name or node.name in taken:
            node.name = _free(node.name or node.op_type, taken, counts)
            given += 1
        taken.add(node.name)
    for node in named.graph.all_nodes():
        for index, value in enumerate(node.outputs):
            if not value.name and value.uses():
                value.name = f"{node.name}_output_{index}"
    return named, f"{given} nodes" if given else ""


def _free(stem: str, taken: set[str], counts: Counter[str]) -> str:
    while True:
        name = f"{stem}_{counts[stem]}"
        counts[stem] += 1
        if name not in taken:
            return name
