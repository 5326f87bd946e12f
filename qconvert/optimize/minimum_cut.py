"""The minimum cut of a small graph, by shortest augmenting paths (Edmonds and Karp 1972)."""

from collections import defaultdict, deque
from collections.abc import Hashable, Mapping

Edges = Mapping[tuple[Hashable, Hashable], float]
# Capacities are times: what is left of them below this is rounding.
ROUNDING = 1e-9


def minimum_cut(edges: Edges, source: Hashable, sink: Hashable) -> set[Hashable]:
    """Return the nodes on the side of the source, where the edges to the other side weigh least."""
    left: dict[Hashable, dict[Hashable, float]] = defaultdict(lambda: defaultdict(float))
    for (start, end), capacity in edges.items():
        left[start][end] += capacity
    while sink in (before := _reachable(left, source)):
        path, node = [], sink
        while node != source:
            path.append((before[node], node))
            node = before[node]
        flow = min(left[start][end] for start, end in path)
        for start, end in path:
            left[start][end] -= flow
            left[end][start] += flow
    return set(before)


def _reachable(
    left: Mapping[Hashable, Mapping[Hashable, float]], source: Hashable
) -> dict[Hashable, Hashable]:
    """Return every node that a shortest path reaches, with the one before it."""
    before, queue = {source: source}, deque([source])
    while queue:
        node = queue.popleft()
        for neighbour, capacity in left.get(node, {}).items():
            if capacity > ROUNDING and neighbour not in before:
                before[neighbour] = node
                queue.append(neighbour)
    return before
