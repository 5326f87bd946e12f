"""The range of every activation that could be quantized, chosen with regard to its readers."""

from collections.abc import Mapping
from dataclasses import replace

import onnx_ir as ir

from qconvert.calibrate import methods
from qconvert.calibrate.summary import Summary
from qconvert.core.scales import MAX_MAGNITUDE, Grid, Range
from qconvert.graph.observed_tensors import ObservedTensors
from qconvert.quantize.plan import LayerPlan

# The default method; for each tensor the one with the least output error; the best of all methods.
DEFAULT_METHOD, OUTPUT_ERROR_METHOD, AUTO_METHOD = "mse", "answers", "auto"
# A shared range may be this many times wider than a tensor's own: one bit of precision.
MAX_WIDENING = 2.0
INFINITE_REASON = "it holds infinity, as an attention mask does"
# Their largest inputs decide the output, so those are never clipped.
TAIL_SENSITIVE = frozenset({"Sigmoid", "HardSigmoid", "Tanh", "Softmax", "LogSoftmax", "ArgMax"})


def choose_ranges(
    graph: ir.Graph,
    observed: ObservedTensors,
    summaries: Mapping[str, Summary],
    grid: Grid,
    method: str,
    per_tensor_methods: Mapping[str, str] | None = None,
) -> dict[str, Range]:
    """Return the range of each tensor by its own method or `method`; the full one if unclipped.

    The outputs of the graph are never clipped, nor the tensors whose extremes decide an output.
    """
    unclipped = {value.name or "" for value in graph.outputs}
    for node in graph:
        value = node.inputs[0] if node.inputs and node.op_type in TAIL_SENSITIVE else None
        if value is not None and not _only_gates(node, value):
            unclipped.add(value.name or "")
    methods_by_name = dict(per_tensor_methods or {})
    methods_by_name |= {observed.aliases.get(name, name): "minmax" for name in unclipped}
    by_method: dict[str, dict[str, Summary]] = {}
    for name, summary in summaries.items():
        if summary.size and has_finite_range(summary):
            by_method.setdefault(methods_by_name.get(name, method), {})[name] = summary
    ranges: dict[str, Range] = {}
    for chosen, group in by_method.items():
        ranges |= methods.compute_ranges(group, chosen, grid)
    aliases = observed.aliases.items()
    return ranges | {name: ranges[source] for name, source in aliases if source in ranges}


def has_finite_range(summary: Summary) -> bool:
    """Whether a tensor was finite on every image, and its range can be quantized."""
    return bool(summary.finite.all()) and max(-summary.low, summary.high) < MAX_MAGNITUDE


def skip_infinite_tensors(
    observed: ObservedTensors, summaries: Mapping[str, Summary]
) -> ObservedTensors:
    """Skip tensors that were infinite on an image: the graph uses them as a mask."""
    infinite = {name for name, summary in summaries.items() if not has_finite_range(summary)}
    if not infinite:
        return observed
    aliases = {name: source for name, source in observed.aliases.items() if source not in infinite}
    skipped = infinite | (observed.aliases.keys() - aliases.keys())
    return replace(
        observed,
        quantizable=tuple(name for name in observed.quantizable if name not in infinite),
        aliases=aliases,
        skipped={**observed.skipped, **dict.fromkeys(sorted(skipped), INFINITE_REASON)},
    )


def share_ranges(
    graph: ir.Graph,
    layers: Mapping[str, LayerPlan],
    ranges: Mapping[str, Range],
    operators: frozenset[str],
) -> dict[str, Range]:
    """Return the ranges, with one for all inputs and outputs of each of these operators.

    Then no tensor is requantized on the way. A tensor that would lose more than one bit keeps its
    own range.
    """
    groups: list[set[str]] = []
    for node in graph:
        layer = layers.get(node.name or "")
        if node.op_type in operators and layer is not None and not layer.left:
            names = {value.name or "" for value in (*node.inputs, *node.outputs) if value}
            if group := names & ranges.keys():
                touching = [other for other in groups if other & group]
                groups = [other for other in groups if not other & group]
                groups.append(group.union(*touching))
    shared = dict(ranges)
    for group in groups:
        lows, highs = zip(*((ranges[name].low, ranges[name].high) for name in group), strict=True)
        widest = Range(min(lows), max(highs))
        wide = [name for name in group if MAX_WIDENING * ranges[name].max_abs >= widest.max_abs]
        shared.update(dict.fromkeys(sorted(wide), widest))
    return shared


def _only_gates(node: ir.Node, value: ir.Value) -> bool:
    """Whether an activation only scales the tensor that it reads, as in SiLU: x * sigmoid(x)."""
    gate = node.outputs[0]
    readers = [reader for reader, _ in gate.uses()]
    gates = all(reader.op_type == "Mul" and value in reader.inputs for reader in readers)
    return bool(readers) and gates and not gate.is_graph_output()
