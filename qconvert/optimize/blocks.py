"""Blocks that are kept in float together: an operator with weights and what follows it.

A block leaves INT8 as a whole, so that no conversion is paid within it. If a network has more such
operators than can be tried one by one, neighbours are merged: the smallest first, and across the
end of a residual block only when nothing else is left.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile

import onnx_ir as ir

from qconvert.graph.describe import describe_model
from qconvert.graph.patterns import constant_array, is_standard
from qconvert.quantize.plan import Plan

MAX_BLOCKS = 64
JOIN_OPERATORS = ("Add", "Concat")
WEIGHT_SUFFIXES = (".weight", ".kernel", "/weight", "/kernel")


@dataclass(frozen=True)
class Block:
    """Quantized nodes in the order of the graph, and their share of all multiplications."""

    name: str
    nodes: tuple[str, ...]
    share: float


@dataclass(frozen=True)
class BlockDraft:
    """A block that may still be merged with the next one, at best if it ends no branch."""

    leads: tuple[ir.Node, ...]
    nodes: tuple[ir.Node, ...]
    macs: int
    ends_branch: bool


def find_blocks(model: ir.Model, plan: Plan, max_blocks: int = MAX_BLOCKS) -> tuple[Block, ...]:
    """Return all quantized nodes of a plan, in at most `max_blocks` blocks."""
    macs = {node.name: node.macs or 0 for node in describe_model(model).nodes}
    drafts = _draft_blocks(model.graph, plan, macs)
    while len(drafts) > max_blocks:
        pairs = [
            (first.ends_branch, first.macs + second.macs, position)
            for position, (first, second) in enumerate(pairwise(drafts))
        ]
        position = min(pairs)[-1]
        first, second = drafts[position : position + 2]
        drafts[position : position + 2] = [
            BlockDraft(
                (*first.leads, *second.leads),
                (*first.nodes, *second.nodes),
                first.macs + second.macs,
                second.ends_branch,
            )
        ]
    total = sum(macs.values()) or 1
    names, seen = [_block_name(draft.leads) for draft in drafts], Counter[str]()
    blocks = []
    for name, draft in zip(names, drafts, strict=True):
        seen[name] += 1
        unique = name if seen[name] == 1 else f"{name} #{seen[name]}"
        nodes = tuple(node.name or "" for node in draft.nodes)
        blocks.append(Block(unique, nodes, draft.macs / total))
    return tuple(blocks)


def _draft_blocks(graph: ir.Graph, plan: Plan, macs: dict[str, int]) -> list[BlockDraft]:
    """Return a draft for each quantized node with weights, with the nodes that follow it."""
    owners: dict[ir.Node, int] = {}
    leads: list[ir.Node] = []
    blocks: list[list[ir.Node]] = []
    for node in graph:
        layer = plan.layers.get(node.name or "")
        quantized = layer is not None and not layer.left
        if quantized and layer is not None and layer.weight is not None:
            owners[node] = len(leads)
            leads.append(node)
            blocks.append([node])
            continue
        owners[node] = max((owners.get(before, 0) for before in node.predecessors()), default=0)
        if quantized:
            if not leads:
                leads.append(node)
                blocks.append([])
            blocks[owners[node]].append(node)
    return [
        BlockDraft(
            (lead,),
            tuple(nodes),
            sum(macs.get(node.name or "", 0) for node in nodes),
            any(_joins_branches(node) for node in nodes),
        )
        for lead, nodes in zip(leads, blocks, strict=True)
    ]


def _joins_branches(node: ir.Node) -> bool:
    computed = [
        value for value in node.inputs if value is not None and constant_array(value) is None
    ]
    return is_standard(node, *JOIN_OPERATORS) and len(computed) > 1


def _block_name(leads: Sequence[ir.Node]) -> str:
    """Return what the author calls a block, as far as the names of weights and nodes say it."""
    names = [_lead_name(node) for node in leads]
    if len(names) == 1:
        return names[0]
    separator = "/" if "/" in names[0] else "."
    levels = zip(*(name.split(separator) for name in names), strict=False)
    shared = takewhile(lambda level: len(set(level)) == 1, levels)
    common = separator.join(level[0] for level in shared)
    # A name without a number, such as `blocks`, is that of many.
    return common if any(map(str.isdigit, common)) else f"{names[0]} .. {names[-1]}"


def _lead_name(node: ir.Node) -> str:
    for value in node.inputs:
        name = (value.name or "") if value is not None else ""
        if name.endswith(WEIGHT_SUFFIXES):
            return name[: -len(WEIGHT_SUFFIXES[0])].lstrip("_")
    return node.name or node.op_type
