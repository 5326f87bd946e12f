"""The parts that are lifted out of INT8 together: an operator with weights and what follows it.

A part leaves the integers whole, so that no conversion is paid within it. Where a network has more
operators with weights than can be tried one by one, neighbours are joined: the smallest first, and
over the end of a residual block only when nothing else is left.
"""

from collections.abc import Sequence
from dataclasses import dataclass

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
    """A block that may still be joined with the next one, unless it is the end of a branch."""

    leads: tuple[ir.Node, ...]
    nodes: tuple[ir.Node, ...]
    macs: int
    ends_branch: bool


def find_blocks(model: ir.Model, plan: Plan, most: int = MAX_BLOCKS) -> tuple[Block, ...]:
    """Return the quantized nodes of a plan in at most so many blocks; none is left out."""
    macs = {node.name: node.macs or 0 for node in describe_model(model).nodes}
    drafts = _draft_blocks(model.graph, plan, macs)
    while len(drafts) > most:
        at = min(range(len(drafts) - 1), key=lambda at: _merge_cost(drafts[at], drafts[at + 1]))
        drafts[at : at + 2] = [_merge(drafts[at], drafts[at + 1])]
    total = sum(macs.values()) or 1
    names = _make_unique([_block_name(draft.leads) for draft in drafts])
    return tuple(
        Block(name, tuple(node.name or "" for node in draft.nodes), draft.macs / total)
        for name, draft in zip(names, drafts, strict=True)
    )


def _draft_blocks(graph: ir.Graph, plan: Plan, macs: dict[str, int]) -> list[BlockDraft]:
    """Return a draft for each quantized node with weights, with what comes after it."""
    owner: dict[ir.Node, int] = {}
    leads: list[ir.Node] = []
    nodes: list[list[ir.Node]] = []
    for node in graph:
        layer = plan.layers.get(node.name or "")
        if layer is not None and not layer.left and layer.weight is not None:
            owner[node] = len(leads)
            leads.append(node)
            nodes.append([node])
            continue
        owner[node] = max((owner.get(each, 0) for each in node.predecessors()), default=0)
        if layer is not None and not layer.left:
            if not leads:
                leads.append(node)
                nodes.append([])
            nodes[owner[node]].append(node)
    return [
        BlockDraft(
            (lead,),
            tuple(own),
            sum(macs.get(each.name or "", 0) for each in own),
            _ends_branch(own),
        )
        for lead, own in zip(leads, nodes, strict=True)
    ]


def _ends_branch(nodes: Sequence[ir.Node]) -> bool:
    return any(
        is_standard(node, *JOIN_OPERATORS)
        and sum(value is not None and constant_array(value) is None for value in node.inputs) > 1
        for node in nodes
    )


def _merge_cost(first: BlockDraft, second: BlockDraft) -> tuple[bool, int]:
    return first.ends_branch, first.macs + second.macs


def _merge(first: BlockDraft, second: BlockDraft) -> BlockDraft:
    both = (*first.nodes, *second.nodes)
    return BlockDraft(
        (*first.leads, *second.leads), both, first.macs + second.macs, second.ends_branch
    )


def _block_name(leads: Sequence[ir.Node]) -> str:
    """Return what its author calls a block, as far as weights and nodes still tell."""
    own = [_own_name(node) for node in leads]
    if len(own) == 1:
        return own[0]
    separator = "/" if "/" in own[0] else "."
    split = [name.split(separator) for name in own]
    shared = 0
    while all(len(each) > shared and each[shared] == split[0][shared] for each in split):
        shared += 1
    common = separator.join(split[0][:shared])
    # A name without a number, as `blocks`, is that of many.
    return common if any(map(str.isdigit, common)) else f"{own[0]} .. {own[-1]}"


def _own_name(node: ir.Node) -> str:
    for value in node.inputs:
        name = (value.name or "") if value is not None else ""
        if name.endswith(WEIGHT_SUFFIXES):
            return name[: -len(WEIGHT_SUFFIXES[0])].lstrip("_")
    return node.name or node.op_type


def _make_unique(names: Sequence[str]) -> list[str]:
    seen: dict[str, int] = {}
    found = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        found.append(name if seen[name] == 1 else f"{name} #{seen[name]}")
    return found
