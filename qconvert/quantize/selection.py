"""Which nodes the user wants quantized, by patterns over names and operators."""

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
    """Return for each node that the user wants in float why so.

    `operators` could be quantized; what is `led` by the node before it `only` need not name.
    """
    nodes = [node for node in graph if node.op_type in operators]
    found: dict[str, str] = {}
    if "first" in selection.keep:
        found.update(dict.fromkeys(_end_nodes(nodes, 0), "it is first, kept by `--keep first`"))
    if "last" in selection.keep:
        found.update(dict.fromkeys(_end_nodes(nodes, 1), "it is last, kept by `--keep last`"))
    wanted = set(_match_patterns(nodes, selection.only, "only"))
    if selection.only:
        why = "`--only` does not name it"
        free = [node for node in nodes if node.op_type not in fused]
        found.update({_name(node): why for node in free if _name(node) not in wanted})
    for pattern in selection.exclude:
        found.update(
            dict.fromkeys(_match_patterns(nodes, (pattern,), "exclude"), f"excluded by `{pattern}`")
        )
    return found


def _match_patterns(nodes: Sequence[ir.Node], patterns: Iterable[str], option: str) -> list[str]:
    found = []
    for pattern in patterns:
        names = [
            _name(node)
            for node in nodes
            if _name(node) == pattern
            or fnmatchcase(_name(node), pattern)
            or fnmatchcase(node.op_type, pattern)
        ]
        if not names:
            _raise_no_match(nodes, pattern, option)
        found += names
    return found


def _raise_no_match(nodes: Sequence[ir.Node], pattern: str, option: str) -> None:
    known = [*dict.fromkeys(node.op_type for node in nodes), *(_name(node) for node in nodes)]
    near = difflib.get_close_matches(pattern.strip("*"), known)
    hint = "nearest names: " + ", ".join(f"`{name}`" for name in near) + "; " if near else ""
    raise UsageError(
        f"`--{option} {pattern}` matches no node that could be quantized",
        hint=f"{hint}`qconvert inspect MODEL --nodes` lists them",
    )


def _end_nodes(nodes: Sequence[ir.Node], side: int) -> list[str]:
    """Return the weighted nodes with no other before them (side 0), or none after them (1)."""
    weighted = [node for node in nodes if node.op_type in WEIGHTED]
    step = ir.Node.predecessors if side == 0 else ir.Node.successors
    return [_name(node) for node in weighted if not _reaches_weighted(node, step)]


def _reaches_weighted(start: ir.Node, step: Callable[[ir.Node], Sequence[ir.Node]]) -> bool:
    seen: set[ir.Node] = set()
    level = list(step(start))
    while level:
        node = level.pop()
        if node.op_type in WEIGHTED:
            return True
        if node not in seen:
            seen.add(node)
            level += step(node)
    return False


def _name(node: ir.Node) -> str:
    return node.name or ""
