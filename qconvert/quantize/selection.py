"""Which nodes the user selects for quantization, by patterns over names and operators."""

import difflib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import onnx_ir as ir

from qconvert.core.errors import UsageError
from qconvert.graph.patterns import WEIGHTED


@dataclass(frozen=True)
class Selection:
    """Patterns match the whole name of a node, or its operator; `keep` holds `first` and `last`."""

    exclude: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()


def find_excluded_nodes(
    graph: ir.Graph,
    selection: Selection,
    operators: frozenset[str],
    fused: frozenset[str] = frozenset(),
) -> dict[str, str]:
    """Return the nodes that the user wants in float, each with the reason.

    `operators` could be quantized; `fused` ones follow the operator before them, so `only` need not
    name them.
    """
    nodes = [node for node in graph if node.op_type in operators]
    reasons: dict[str, str] = {}
    if "first" in selection.keep:
        first = _end_nodes(nodes, ir.Node.predecessors)
        reasons |= dict.fromkeys(first, "it is first, kept by `--keep first`")
    if "last" in selection.keep:
        last = _end_nodes(nodes, ir.Node.successors)
        reasons |= dict.fromkeys(last, "it is last, kept by `--keep last`")
    selected = set(_match_patterns(nodes, selection.only, "only"))
    if selection.only:
        free = [_name(node) for node in nodes if node.op_type not in fused]
        reasons |= {name: "`--only` does not name it" for name in free if name not in selected}
    for pattern in selection.exclude:
        excluded = _match_patterns(nodes, (pattern,), "exclude")
        reasons |= dict.fromkeys(excluded, f"excluded by `{pattern}`")
    return reasons


def _match_patterns(nodes: Sequence[ir.Node], patterns: Iterable[str], option: str) -> list[str]:
    matches = []
    for pattern in patterns:
        names = [
            _name(node)
            for node in nodes
            if _name(node) == pattern
            or fnmatchcase(_name(node), pattern)
            or fnmatchcase(node.op_type, pattern)
        ]
        if not names:
            candidates = [*dict.fromkeys(node.op_type for node in nodes), *map(_name, nodes)]
            similar = difflib.get_close_matches(pattern.strip("*"), candidates)
            names_hint = ", ".join(f"`{name}`" for name in similar)
            raise UsageError(
                f"`--{option} {pattern}` matches no node that could be quantized",
                hint=(f"similar names: {names_hint}; " if similar else "")
                + "`qconvert inspect MODEL --nodes` lists all nodes",
            )
        matches += names
    return matches


def _end_nodes(nodes: Sequence[ir.Node], step: Callable[[ir.Node], Sequence[ir.Node]]) -> list[str]:
    """Return the weighted nodes from which `step` leads to no other weighted node."""
    weighted = [node for node in nodes if node.op_type in WEIGHTED]
    return [_name(node) for node in weighted if not _reaches_weighted(node, step)]


def _reaches_weighted(start: ir.Node, step: Callable[[ir.Node], Sequence[ir.Node]]) -> bool:
    visited: set[ir.Node] = set()
    pending = list(step(start))
    while pending:
        node = pending.pop()
        if node.op_type in WEIGHTED:
            return True
        if node not in visited:
            visited.add(node)
            pending += step(node)
    return False


def _name(node: ir.Node) -> str:
    return node.name or ""
