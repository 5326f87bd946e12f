"""From a scheme's rules to a decision for every node that could be quantized."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import onnx_ir as ir

from qconvert.calibrate.summary import Summary
from qconvert.core import onnx_io
from qconvert.core.errors import QConvertError
from qconvert.core.scales import Grid, Range, exceeds_scale_dtype
from qconvert.graph.observed_tensors import FLOAT_TYPES, ObservedTensors, find_observed_tensors
from qconvert.graph.patterns import constant_array, is_quantized, is_standard
from qconvert.quantize import ranges
from qconvert.quantize.plan import LayerPlan, Plan, RestPrecision
from qconvert.quantize.ranges import DEFAULT_METHOD, OUTPUT_ERROR_METHOD, RangeOptions
from qconvert.quantize.scheme import QuantizedNodes, Scheme
from qconvert.quantize.selection import Selection, find_excluded_nodes


def place_quantizers(
    model: ir.Model, scheme: Scheme, observed: ObservedTensors, selection: Selection
) -> dict[str, LayerPlan]:
    """Return for each node its quantizers, or why it has none, in the order of the graph.

    Rules look at each other's results: all nodes start as quantized, and those whose needs are
    not met are taken out until nothing changes.
    """
    operators = frozenset(scheme.rules_by_operator)
    led = frozenset(op for op, rule in scheme.rules_by_operator.items() if rule.fuses_with_producer)
    kept = find_excluded_nodes(model.graph, selection, operators, led)
    layers: dict[ir.Node, LayerPlan] = {}
    for node in model.graph:
        rule = scheme.rules_by_operator.get(node.op_type)
        if rule is not None and is_standard(node):
            layer = rule.layer(node)
            why = kept.get(node.name or "", "") or next(
                filter(None, (check(node) for check in rule.checks)), ""
            )
            why = why or next(_unmeasured(node, layer, observed), "")
            layers[node] = LayerPlan(node.op_type, left=why) if why else layer
    drop_unmet_needs(layers, scheme)
    return {
        node.name or "": layer
        for node, layer in layers.items()
        if not layer.left or scheme.rules_by_operator[node.op_type].computes
    }


def drop_unmet_needs(layers: dict[ir.Node, LayerPlan], scheme: Scheme) -> None:
    """Take out nodes whose needs are not met until all that are left have theirs."""
    chosen = QuantizedNodes(layers)
    changed = True
    while changed:
        changed = False
        for node, layer in layers.items():
            needs = () if layer.left else scheme.rules_by_operator[node.op_type].needs
            why = next(filter(None, (need(node, chosen) for need in needs)), "")
            if why:
                layers[node] = LayerPlan(node.op_type, left=why)
                changed = True


def quantized_activations(node: ir.Node, layer: LayerPlan) -> Iterator[ir.Value]:
    """Yield the tensors that a layer rounds, weights aside."""
    if layer.left:
        return
    yield from (value for slot in layer.inputs if (value := node.inputs[slot]) is not None)
    if layer.output:
        for value in node.outputs:
            if value.dtype in FLOAT_TYPES and (value.uses() or value.is_graph_output()):
                yield value


def _unmeasured(node: ir.Node, layer: LayerPlan, observed: ObservedTensors) -> Iterator[str]:
    """Yield why a range that a layer needs was not measured."""
    for value in quantized_activations(node, layer):
        name = value.name or ""
        if name not in observed.quantizable and name not in observed.aliases:
            why = observed.skipped.get(name, "calibration does not look at it")
            yield f"`{name}` has no range: {why}"


# Half steps below have few digits left, and below 2**-24 none.
MIN_FP16_STEP = 2.0**-20
AVERAGE_POOLS = frozenset({"AveragePool", "GlobalAveragePool"})
# ONNX Runtime refuses to run a pool whose scales are further apart.
MAX_POOL_SCALE_RATIO = 200.0


@dataclass(frozen=True)
class RepresentableCheck:
    """What layers are held against."""

    scheme: Scheme
    rest: RestPrecision
    ranges: Mapping[str, Range]


def keep_representable(
    graph: ir.Graph, layers: Mapping[str, LayerPlan], fit: RepresentableCheck
) -> dict[str, LayerPlan]:
    """Return the layers, those that do not fit left in float with the reason."""
    kept = dict(layers)
    for node in graph:
        layer = layers.get(node.name or "")
        if layer is not None and (why := _why_not_representable(node, layer, fit)):
            kept[node.name or ""] = LayerPlan(node.op_type, left=why)
    return kept


def _why_not_representable(node: ir.Node, layer: LayerPlan, fit: RepresentableCheck) -> str:
    grid = fit.scheme.activations
    values = list(quantized_activations(node, layer))
    for value in values:
        kept = fit.ranges[value.name or ""]
        if exceeds_scale_dtype(kept, grid, fit.rest):
            return f"the range of `{value.name}` is too wide for a step in {fit.rest}"
        if _too_fine(kept.max_abs, grid, fit.rest):
            return f"the values of `{value.name}` are too small for a step in {fit.rest}"
    if layer.weight is not None and not layer.left:
        array = constant_array(node.inputs[layer.weight.slot])
        largest = float(np.abs(array).max(initial=0.0)) if array is not None else 0.0
        if _too_fine(largest, fit.scheme.weights, fit.rest):
            return f"its weights are too small for steps in {fit.rest}"
    if node.op_type in AVERAGE_POOLS and layer.output:
        spans = [fit.ranges[value.name or ""].max_abs for value in values]
        if min(spans) and max(spans) > MAX_POOL_SCALE_RATIO * min(spans):
            return "what it reads and what it makes are too far apart for one integer kernel"
    return ""


def _too_fine(largest: float, grid: Grid, rest: RestPrecision) -> bool:
    return rest == "fp16" and 0 < largest / grid.symmetric_max < MIN_FP16_STEP


@dataclass(frozen=True)
class QuantizeOptions:
    """What the user decides; all else follows from the scheme.

    `apart` has the method of the tensors whose range another one than `method` chooses.
    """

    method: str = DEFAULT_METHOD
    per_tensor_methods: Mapping[str, str] = field(default_factory=dict)
    weight_method: Literal["mse", "minmax"] = "mse"
    rest: RestPrecision = "fp32"
    selection: Selection = field(default_factory=Selection)


def make_plan(
    model: ir.Model, scheme: Scheme, summaries: Mapping[str, Summary], options: QuantizeOptions
) -> Plan:
    """Return the plan of a scheme for a model; refuse a model of which nothing can be quantized."""
    require_float_model(model)
    observed = ranges.skip_infinite_tensors(find_observed_tensors(model), summaries)
    layers = place_quantizers(model, scheme, observed, options.selection)
    require_quantizable(layers)
    way = RangeOptions(options.method, scheme.activations, options.per_tensor_methods)
    found = ranges.choose_ranges(model.graph, observed, summaries, way)
    found = ranges.share_ranges(model.graph, layers, found, scheme.shared_scale)
    layers = keep_representable(
        model.graph, layers, RepresentableCheck(scheme, options.rest, found)
    )
    require_quantizable(layers)
    names = {
        value.name or ""
        for node in model.graph
        if (node.name or "") in layers
        for value in quantized_activations(node, layers[node.name or ""])
    }
    return Plan(
        model=onnx_io.fingerprint(model),
        scheme=scheme.name,
        method=OUTPUT_ERROR_METHOD if options.per_tensor_methods else options.method,
        weight_method=options.weight_method,
        activations=scheme.activations,
        weights=scheme.weights,
        integer_bias=scheme.integer_bias,
        layers=layers,
        tensors={name: kept for name, kept in found.items() if name in names},
        rest=options.rest,
    )


def require_float_model(model: ir.Model) -> None:
    """Refuse a model that is quantized already."""
    if is_quantized(model):
        raise QConvertError(
            "this model is quantized already",
            hint="quantize the float model it was made from",
        )


def require_quantizable(layers: Mapping[str, LayerPlan]) -> None:
    """Refuse a model of which no node can be quantized, and say why not."""
    if any(not layer.left for layer in layers.values()):
        return
    why = dict.fromkeys(f"{layer.op}: {layer.left}" for layer in layers.values())
    raise QConvertError(
        "there is nothing to quantize in this model",
        details=list(why)[:5] or ["it has no convolution and no product"],
        hint="`qconvert inspect MODEL --nodes` shows what it is made of",
    )


def restore_float(
    model: ir.Model, plan: Plan, scheme: Scheme, nodes: Collection[str], why: str
) -> Plan:
    """Return the plan without these nodes; ranges and methods stay, tensors no one rounds go.

    The rules of the scheme are asked again: what needs an integer neighbour goes with it.
    """
    held = {node: plan.layers[node.name or ""] for node in model.graph if node.name in plan.layers}
    layers = {
        node: LayerPlan(node.op_type, left=why) if node.name in nodes and not layer.left else layer
        for node, layer in held.items()
    }
    drop_unmet_needs(layers, scheme)
    kept = {
        node: layer
        for node, layer in layers.items()
        if not layer.left or scheme.rules_by_operator[node.op_type].computes
    }
    names = {
        value.name for node, layer in kept.items() for value in quantized_activations(node, layer)
    }
    return replace(
        plan,
        layers={node.name or "": layer for node, layer in kept.items()},
        tensors={name: kept for name, kept in plan.tensors.items() if name in names},
    )
