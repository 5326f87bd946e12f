"""The range of every tensor that could be rounded, chosen with care for what reads it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import onnx_ir as ir

from qconvert.calibrate import methods
from qconvert.calibrate.summary import Summary
from qconvert.core.scales import MAX_MAGNITUDE, Grid, Range
from qconvert.graph.observed_tensors import ObservedTensors
from qconvert.quantize.plan import LayerPlan

# The method that is taken where none is shown to be better, that which takes for each tensor the
# one that moves the answers least, and the choice among them all.
DEFAULT_METHOD, OUTPUT_ERROR_METHOD, AUTO_METHOD = "mse", "answers", "auto"
FULL_RANGE_METHOD = "minmax"
MAX_WIDENING = 2.0
INFINITE_REASON = "it holds infinity, as a mask does"
# What they make of their largest inputs decides the answer, so nothing is clipped before them.
TAIL_SENSITIVE = frozenset({"Sigmoid", "HardSigmoid", "Tanh", "Softmax", "LogSoftmax", "ArgMax"})


@dataclass(frozen=True)
class RangeOptions:
    """How ranges are chosen for a grid: by a method, but for the tensors `apart` by their own."""

    method: str
    grid: Grid
    per_tensor_methods: Mapping[str, str] = field(default_factory=dict)


def choose_ranges(
    graph: ir.Graph, observed: ObservedTensors, summaries: Mapping[str, Summary], way: RangeOptions
) -> dict[str, Range]:
    """Return the range of each tensor; the exact one where nothing may be clipped."""
    whole = {observed.aliases.get(name, name) for name in _never_clipped(graph)}
    counted = {
        name: seen for name, seen in summaries.items() if seen.size and has_finite_range(seen)
    }
    by = {
        name: FULL_RANGE_METHOD if name in whole else way.per_tensor_methods.get(name, way.method)
        for name in counted
    }
    ranges: dict[str, Range] = {}
    for method in dict.fromkeys(by.values()):
        some = {name: seen for name, seen in counted.items() if by[name] == method}
        ranges |= methods.compute_ranges(some, method, way.grid)
    shared = {name: ranges[source] for name, source in observed.aliases.items() if source in ranges}
    return ranges | shared


def has_finite_range(seen: Summary) -> bool:
    """Whether a tensor was finite on every image, and its range is one to round in."""
    return bool(seen.finite.all()) and max(-seen.low, seen.high) < MAX_MAGNITUDE


def skip_infinite_tensors(
    observed: ObservedTensors, summaries: Mapping[str, Summary]
) -> ObservedTensors:
    """Pass over tensors that were infinite on an image; the graph masks something with them."""
    infinite = {name for name, seen in summaries.items() if not has_finite_range(seen)}
    if not infinite:
        return observed
    shares = {name: of for name, of in observed.aliases.items() if of not in infinite}
    gone = infinite | (observed.aliases.keys() - shares.keys())
    return replace(
        observed,
        quantizable=tuple(name for name in observed.quantizable if name not in infinite),
        aliases=shares,
        skipped={**observed.skipped, **dict.fromkeys(sorted(gone), INFINITE_REASON)},
    )


def share_ranges(
    graph: ir.Graph,
    layers: Mapping[str, LayerPlan],
    ranges: Mapping[str, Range],
    operators: frozenset[str],
) -> dict[str, Range]:
    """Return the ranges with one for all that goes in and out of each of these operators.

    So nothing needs to be rounded a second time on the way; a part of which that would cost more
    than one bit stays as it is.
    """
    groups: list[set[str]] = []
    for node in graph:
        layer = layers.get(node.name or "")
        if node.op_type in operators and layer is not None and not layer.left:
            around = {value.name or "" for value in (*node.inputs, *node.outputs) if value}
            groups = _merge_groups(groups, around & ranges.keys())
    shared = dict(ranges)
    for group in groups:
        widest = Range(
            min(ranges[name].low for name in group), max(ranges[name].high for name in group)
        )
        # A part much narrower than the whole keeps its range for those who read it alone.
        wide = [name for name in group if MAX_WIDENING * ranges[name].max_abs >= widest.max_abs]
        shared.update(dict.fromkeys(sorted(wide), widest))
    return shared


def _merge_groups(groups: list[set[str]], new: set[str]) -> list[set[str]]:
    """Return the groups, those that share a tensor with `new` joined with it."""
    apart = [group for group in groups if not group & new]
    together = [group for group in groups if group & new]
    return [*apart, new.union(*together)] if new else groups


def _never_clipped(graph: ir.Graph) -> Iterator[str]:
    """Yield the tensors that the graph returns, and those whose extremes decide an answer."""
    yield from (value.name or "" for value in graph.outputs)
    for node in graph:
        value = node.inputs[0] if node.inputs else None
        if node.op_type in TAIL_SENSITIVE and value is not None and not _only_gates(node, value):
            yield value.name or ""


def _only_gates(node: ir.Node, value: ir.Value) -> bool:
    """Whether a Sigmoid only weighs the very tensor that it reads, as in SiLU."""
    gate = node.outputs[0]
    readers = [reader for reader, _ in gate.uses()]
    gating = all(reader.op_type == "Mul" and value in reader.inputs for reader in readers)
    return bool(readers) and gating and not gate.is_graph_output()
