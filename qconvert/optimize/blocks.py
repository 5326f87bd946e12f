"""Blocks that are kept in float together: an operator with weights and what follows it.

A block leaves INT8 as a whole, so that no conversion is paid within it. If a network has more such
operators than can be tried one by one, neighbours are merged: the smallest first, and across the
end of a residual block only when nothing else is left.
"""

from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise, takewhile

import onnx_ir as ir

from qconvert.graph.describe import describe_model
from qconvert.graph.patterns import constant_array, is_standard
from qconvert.quantize.plan import Plan

MAX_BLOCKS = 64
WEIGHT_SUFFIXES = (".weight", ".kernel", "/weight", "/kernel")


@dataclass(frozen=True)
class Block:
    """Quantized nodes in the order of the graph, and their share of all multiplications.

    `followers` are nodes behind them that are in float anyway, up to the next block.
    """

    name: str
    nodes: tuple[str, ...]
    share: float
    followers: tuple[str, ...] = ()


@dataclass
class _Draft:
    """A block that may still be merged with the next one, at best if it ends no branch."""

    names: list[str]
    nodes: list[str] = field(default_factory=list)
    followers: list[str] = field(default_factory=list)
    macs: int = 0
    ends_branch: bool = False


def find_blocks(model: ir.Model, plan: Plan, max_blocks: int = MAX_BLOCKS) -> tuple[Block, ...]:
    """Return all quantized nodes of a plan, in at most `max_blocks` blocks."""
    macs = {node.name: node.macs or 0 for node in describe_model(model).nodes}
    owners: dict[ir.Node, int] = {}
    drafts: list[_Draft] = []
    for node in model.graph:
        name = node.name or ""
        owners[node] = max((owners.get(before, 0) for before in node.predecessors()), default=0)
        layer = plan.layers.get(name)
        if layer is None or layer.left:
            if drafts and node.predecessors():
                drafts[owners[node]].followers.append(name)
            continue
        if layer.weight is not None or not drafts:
            owners[node] = len(drafts)
            drafts.append(_Draft([_weight_name(node)]))
        draft = drafts[owners[node]]
        draft.nodes.append(name)
        draft.macs += macs.get(name, 0)
        if is_standard(node, "Add", "Concat"):
            inputs = [value for value in node.inputs if value is not None]
            draft.ends_branch |= sum(constant_array(value) is None for value in inputs) > 1
    while len(drafts) > max_blocks:
        costs = [
            (first.ends_branch, first.macs + second.macs) for first, second in pairwise(drafts)
        ]
        position = costs.index(min(costs))
        first, second = drafts[position], drafts.pop(position + 1)
        first.names += second.names
        first.nodes += second.nodes
        first.followers += second.followers
        first.macs += second.macs
        first.ends_branch = second.ends_branch
    total, seen, blocks = sum(macs.values()) or 1, Counter[str](), list[Block]()
    for draft in drafts:
        name = _common_name(draft.names)
        seen[name] += 1
        unique = name if seen[name] == 1 else f"{name} #{seen[name]}"
        blocks.append(Block(unique, tuple(draft.nodes), draft.macs / total, tuple(draft.followers)))
    return tuple(blocks)


def _weight_name(node: ir.Node) -> str:
    """Return what the author calls a layer: the name of its weight, else of its node."""
    names = (value.name or "" for value in node.inputs if value is not None)
    weights = (name for name in names if name.endswith(WEIGHT_SUFFIXES))
    weight = next(weights, "")
    return weight[: -len(".weight")].lstrip("_") if weight else node.name or node.op_type


def _common_name(names: list[str]) -> str:
    if len(names) == 1:
        return names[0]
    separator = "/" if "/" in names[0] else "."
    levels = zip(*(name.split(separator) for name in names), strict=False)
    shared = takewhile(lambda level: len(set(level)) == 1, levels)
    common = separator.join(level[0] for level in shared)
    # A name without a number, such as `blocks`, is that of many.
    return common if any(map(str.isdigit, common)) else f"{names[0]} .. {names[-1]}"
