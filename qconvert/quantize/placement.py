"""From the rules of a scheme and a calibration to a plan: a decision for every node.

The range of every activation that could be quantized is chosen with regard to its readers.
"""

import difflib
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Literal

import numpy as np
import onnx_ir as ir

from qconvert.calibrate import methods
from qconvert.calibrate.summary import Summary
from qconvert.core import onnx_io
from qconvert.core.errors import QConvertError, UsageError
from qconvert.core.formats import FORMATS, QuantizedFormat
from qconvert.core.scales import MAX_MAGNITUDE, Grid, Range, exceeds_scale_dtype
from qconvert.graph import patterns
from qconvert.graph.taps import ObservedTensors, find_observed_tensors
from qconvert.quantize.plan import LayerPlan, Plan, RestPrecision
from qconvert.quantize.scheme import Scheme

# The default method; for each tensor the one with the least output error; the best of all methods.
DEFAULT_METHOD, OUTPUT_ERROR_METHOD, AUTO_METHOD = "mse", "answers", "auto"
# A shared range may be this many times wider than a tensor's own: one bit of precision.
MAX_WIDENING = 2.0
POOLS = frozenset({"AveragePool", "GlobalAveragePool", "ReduceMean"})
INFINITE_REASON = "it holds infinity, as an attention mask does"
# Their largest inputs decide the output, so those are never clipped.
TAIL_SENSITIVE = frozenset({"Sigmoid", "HardSigmoid", "Tanh", "Softmax", "LogSoftmax", "ArgMax"})
# HardSwish is zero below the first, and x * sigmoid(x) as good as zero (0.003) below the second.
HARD_SWISH_ZERO, SILU_ZERO = -3.0, -8.0


@dataclass(frozen=True)
class Selection:
    """Patterns match the whole name of a node, or its operator; `keep` holds `first` and `last`."""

    exclude: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()


@dataclass(frozen=True)
class QuantizeOptions:
    """What the user decides; `per_tensor_methods` has the tensors with another method."""

    method: str = DEFAULT_METHOD
    per_tensor_methods: Mapping[str, str] = field(default_factory=dict)
    weight_method: Literal["mse", "minmax"] = "mse"
    rest: RestPrecision = "fp32"
    selection: Selection = field(default_factory=Selection)


def make_plan(
    model: ir.Model,
    scheme: Scheme,
    summaries: Mapping[str, Summary],
    options: QuantizeOptions,
    precision: QuantizedFormat = "int8",
) -> Plan:
    """Return the plan of a scheme for a model; refuse a model with nothing to quantize.

    A format without scales of activations needs no summaries.
    """
    require_float_model(model)
    summaries = summaries if FORMATS[precision].needs_ranges else {}
    observed = skip_infinite_tensors(find_observed_tensors(model), summaries)
    layers = place_quantizers(model, scheme, observed, options.selection)
    require_quantizable(layers)
    grid, methods_by_name = scheme.activations, options.per_tensor_methods
    ranges = choose_ranges(model.graph, observed, summaries, grid, options.method, methods_by_name)
    ranges = share_ranges(model.graph, layers, ranges, scheme.shared_scale)
    layers = keep_representable(model.graph, layers, ranges, scheme, options.rest)
    require_quantizable(layers)
    return Plan(
        model=onnx_io.fingerprint(model),
        scheme=scheme.name,
        method=OUTPUT_ERROR_METHOD if options.per_tensor_methods else options.method,
        weight_method=options.weight_method,
        activations=scheme.activations,
        weights=scheme.weights,
        integer_bias=scheme.integer_bias,
        layers=layers,
        tensors=_used_ranges(model.graph, layers, ranges),
        rest=options.rest,
        portable=scheme.portable,
        precision=precision,
        group=scheme.group,
        kernels=scheme.kernels,
    )


def restore_float(
    model: ir.Model, plan: Plan, scheme: Scheme, nodes: Collection[str], reason: str
) -> Plan:
    """Return the plan with these nodes in float, and with them those whose needs they met."""
    layers = {
        node: plan.layers[node.name or ""] for node in model.graph if node.name in plan.layers
    }
    for node, layer in layers.items():
        if node.name in nodes and not layer.left:
            layers[node] = LayerPlan(node.op_type, left=reason)
    placed = _settle(layers, scheme)
    tensors = _used_ranges(model.graph, placed, plan.tensors)
    return replace(plan, layers=placed, tensors=tensors)


def require_float_model(model: ir.Model) -> None:
    """Refuse a model that is quantized already."""
    if patterns.is_quantized(model):
        raise QConvertError(
            "this model is already quantized", hint="quantize the float model it was made from"
        )


def require_quantizable(layers: Mapping[str, LayerPlan]) -> None:
    """Refuse a model of which no node can be quantized, and say why not."""
    if any(not layer.left for layer in layers.values()):
        return
    reasons = dict.fromkeys(f"{layer.op}: {layer.left}" for layer in layers.values())
    raise QConvertError(
        "there is nothing to quantize in this model",
        details=list(reasons)[:5] or ["it has no convolution and no matrix product"],
        hint="`qconvert inspect MODEL --nodes` lists its operators",
    )


def place_quantizers(
    model: ir.Model, scheme: Scheme, observed: ObservedTensors, selection: Selection
) -> dict[str, LayerPlan]:
    """Return for each node its quantizers, or why it has none, in graph order."""
    rules = scheme.rules_by_operator
    fused = frozenset(op for op, rule in rules.items() if rule.fuses_with_producer)
    excluded = find_excluded_nodes(model.graph, selection, frozenset(rules), fused)
    layers: dict[ir.Node, LayerPlan] = {}
    for node in model.graph:
        rule = rules.get(node.op_type)
        if rule is not None and patterns.is_standard(node):
            layer = rule.layer(node)
            reason = (
                excluded.get(node.name or "")
                or next(filter(None, (check(node) for check in rule.checks)), "")
                or next(_unmeasured(node, layer, observed), "")
            )
            layers[node] = LayerPlan(node.op_type, left=reason) if reason else layer
    return _settle(layers, scheme)


def find_excluded_nodes(
    graph: ir.Graph,
    selection: Selection,
    operators: frozenset[str],
    fused: frozenset[str] = frozenset(),
) -> dict[str, str]:
    """Return the nodes that the user wants in float, each with the reason.

    `operators` could be quantized; `only` need not name those `fused` with the one before them.
    """
    nodes = [node for node in graph if node.op_type in operators]
    reasons: dict[str, str] = {}
    names = {node.name or "" for node in nodes}
    if "first" in selection.keep:
        ends = names & _end_nodes(graph.all_nodes(), ir.Node.predecessors)
        reasons |= dict.fromkeys(ends, "it is first, kept by `--keep first`")
    if "last" in selection.keep:
        ends = names & _end_nodes(reversed(list(graph.all_nodes())), ir.Node.successors)
        reasons |= dict.fromkeys(ends, "it is last, kept by `--keep last`")
    if selection.only:
        selected = {
            name for pattern in selection.only for name in _match_pattern(nodes, pattern, "only")
        }
        free = {node.name or "" for node in nodes if node.op_type not in fused}
        reasons |= dict.fromkeys(free - selected, "`--only` does not name it")
    for pattern in selection.exclude:
        excluded = _match_pattern(nodes, pattern, "exclude")
        reasons |= dict.fromkeys(excluded, f"excluded by `{pattern}`")
    return reasons


def _match_pattern(nodes: Sequence[ir.Node], pattern: str, option: str) -> list[str]:
    operators = {node.name or "": node.op_type for node in nodes}
    matches = [
        name
        for name, op in operators.items()
        if name == pattern or fnmatchcase(name, pattern) or fnmatchcase(op, pattern)
    ]
    if not matches:
        candidates = [*dict.fromkeys(operators.values()), *operators]
        similar = difflib.get_close_matches(pattern.strip("*"), candidates)
        names_hint = ", ".join(f"`{name}`" for name in similar)
        raise UsageError(
            f"`--{option} {pattern}` matches no node that could be quantized",
            hint=(f"similar names: {names_hint}; " if similar else "")
            + "`qconvert inspect MODEL --nodes` lists all nodes",
        )
    return matches


def _end_nodes(nodes: Iterable[ir.Node], step: Callable[[ir.Node], Sequence[ir.Node]]) -> set[str]:
    """Return the weighted nodes from which `step` leads to none; it leads to earlier `nodes`."""
    ends: set[str] = set()
    reaching: set[ir.Node] = set()
    for node in nodes:
        if any(other.op_type in patterns.WEIGHTED or other in reaching for other in step(node)):
            reaching.add(node)
        elif node.op_type in patterns.WEIGHTED:
            ends.add(node.name or "")
    return ends


def _settle(layers: dict[ir.Node, LayerPlan], scheme: Scheme) -> dict[str, LayerPlan]:
    """Leave nodes in float until the needs of all others are met; return the layers by name.

    Needs depend on other nodes, so this repeats until nothing changes. It ends with the largest
    set of quantized nodes, because the loss of one never meets the need of another.
    """
    rules = scheme.rules_by_operator
    quantized = {node for node, layer in layers.items() if not layer.left}
    changed = True
    while changed:
        changed = False
        for node, layer in layers.items():
            # The plan of a training may quantize an operator that has no rule.
            has_needs = not layer.left and node.op_type in rules
            needs = rules[node.op_type].needs if has_needs else ()
            if reason := next(filter(None, (need(node, quantized) for need in needs)), ""):
                layers[node] = LayerPlan(node.op_type, left=reason)
                quantized.remove(node)
                changed = True
    return {
        node.name or "": layer
        for node, layer in layers.items()
        if not layer.left or (node.op_type in rules and rules[node.op_type].computes)
    }


def quantized_activations(node: ir.Node, layer: LayerPlan) -> Iterator[ir.Value]:
    """Yield the activations that a layer quantizes."""
    if layer.left:
        return
    yield from (value for slot in layer.inputs if (value := node.inputs[slot]) is not None)
    if layer.output:
        for value in node.outputs:
            if value.dtype in patterns.FLOAT_TYPES and (value.uses() or value.is_graph_output()):
                yield value


def keep_representable(
    graph: ir.Graph,
    layers: Mapping[str, LayerPlan],
    ranges: Mapping[str, Range],
    scheme: Scheme,
    rest: RestPrecision,
) -> dict[str, LayerPlan]:
    """Return the layers, with those in float whose scales the type of `rest` cannot represent."""

    def underflows(largest: float, grid: Grid) -> bool:
        # fp16 scales below have few digits left, and below 2**-24 none.
        return rest == "fp16" and 0 < largest / grid.symmetric_max < 2.0**-20

    def reason(node: ir.Node, layer: LayerPlan) -> str:
        names = [value.name or "" for value in quantized_activations(node, layer)]
        for name in names:
            if exceeds_scale_dtype(ranges[name], scheme.activations, rest):
                return f"the range of `{name}` is too wide for a scale in {rest}"
            if underflows(ranges[name].max_abs, scheme.activations):
                return f"the values of `{name}` are too small for a scale in {rest}"
        if layer.weight is not None and not layer.left:
            array = patterns.constant_array(node.inputs[layer.weight.slot])
            largest = 0.0 if array is None else float(np.abs(array).max(initial=0.0))
            if underflows(largest, scheme.weights):
                return f"its weights are too small for scales in {rest}"
        if node.op_type in POOLS and layer.output:
            # ONNX Runtime refuses an integer pool if one of its scales is 200 times the other.
            maxima = [ranges[name].max_abs for name in names]
            if 0 < 200.0 * min(maxima) < max(maxima):
                return "the scales of its input and output differ too much for one integer kernel"
        return ""

    nodes = {node.name: node for node in graph}
    reasons = {name: reason(nodes[name], layer) for name, layer in layers.items()}
    return {
        name: LayerPlan(layer.op, left=reasons[name]) if reasons[name] else layer
        for name, layer in layers.items()
    }


def _unmeasured(node: ir.Node, layer: LayerPlan, observed: ObservedTensors) -> Iterator[str]:
    """Yield why a range that a layer needs was not measured."""
    for value in quantized_activations(node, layer):
        name = value.name or ""
        if name not in observed.quantizable and name not in observed.aliases:
            reason = observed.skipped.get(name, "calibration does not observe it")
            yield f"`{name}` has no range: {reason}"


def _used_ranges(
    graph: ir.Graph, layers: Mapping[str, LayerPlan], ranges: Mapping[str, Range]
) -> dict[str, Range]:
    names = {
        value.name
        for node in graph
        if (layer := layers.get(node.name or "")) is not None
        for value in quantized_activations(node, layer)
    }
    return {name: value_range for name, value_range in ranges.items() if name in names}


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
    Where all that reads a tensor turns its lowest values into zeros, the range leaves them out.
    """
    unclipped = {value.name or "" for value in graph.outputs}
    for node in graph:
        value = node.inputs[0] if node.inputs and node.op_type in TAIL_SENSITIVE else None
        if value is not None and not _only_gates(node, value):
            unclipped.add(value.name or "")
    methods_by_name = dict(per_tensor_methods or {})
    methods_by_name |= {observed.aliases.get(name, name): "minmax" for name in unclipped}
    ranges = {
        name: methods.find_method(methods_by_name.get(name, method))(summary, grid)
        for name, summary in summaries.items()
        if summary.size and has_finite_range(summary)
    }
    for value in patterns.computed_values(graph):
        low, own = _zero_below(value), ranges.get(value.name or "")
        if own is not None and own.low < low < own.high:
            ranges[value.name or ""] = replace(own, low=low)
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


def _zero_below(value: ir.Value) -> float:
    """Return the number below which the activation that alone reads a tensor gives zeros."""
    readers = {use.node for use in value.uses()}
    if value.is_graph_output():
        return -math.inf
    if {node.op_type for node in readers} == {"HardSwish"}:
        return HARD_SWISH_ZERO
    gates = {node for node in readers if node.op_type == "Sigmoid" and _only_gates(node, value)}
    products = {use.node for gate in gates for use in gate.outputs[0].uses()}
    return SILU_ZERO if gates and readers == gates | products else -math.inf
