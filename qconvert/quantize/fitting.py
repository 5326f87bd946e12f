"""Layers whose numbers do not fit the grid or the type of its steps are left in float."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from qconvert.graph.patterns import constant
from qconvert.quantize.placement import rounded
from qconvert.quantize.plan import Layer, Rest
from qconvert.quantize.scheme import Scheme
from qconvert.scales import Grid, Range, too_wide

# Half steps below have few digits left, and below 2**-24 none.
FINEST_HALF = 2.0**-20
POOLS = frozenset({"AveragePool", "GlobalAveragePool"})
# ONNX Runtime refuses to run a pool whose scales are further apart.
FURTHEST_APART = 200.0


@dataclass(frozen=True)
class Fit:
    """What layers are held against."""

    scheme: Scheme
    rest: Rest
    ranges: Mapping[str, Range]


def fitting(graph: ir.Graph, layers: Mapping[str, Layer], fit: Fit) -> dict[str, Layer]:
    """Return the layers, those that do not fit left in float with the reason."""
    kept = dict(layers)
    for node in graph:
        layer = layers.get(node.name or "")
        if layer is not None and (why := _why_not(node, layer, fit)):
            kept[node.name or ""] = Layer(node.op_type, left=why)
    return kept


def _why_not(node: ir.Node, layer: Layer, fit: Fit) -> str:
    grid = fit.scheme.activations
    values = list(rounded(node, layer))
    for value in values:
        kept = fit.ranges[value.name or ""]
        if too_wide(kept, grid, fit.rest):
            return f"the range of `{value.name}` is too wide for a step in {fit.rest}"
        if _too_fine(kept.largest, grid, fit.rest):
            return f"the values of `{value.name}` are too small for a step in {fit.rest}"
    if layer.weight is not None and not layer.left:
        array = constant(node.inputs[layer.weight.slot])
        largest = float(np.abs(array).max(initial=0.0)) if array is not None else 0.0
        if _too_fine(largest, fit.scheme.weights, fit.rest):
            return f"its weights are too small for steps in {fit.rest}"
    if node.op_type in POOLS and layer.output:
        spans = [fit.ranges[value.name or ""].largest for value in values]
        if min(spans) and max(spans) > FURTHEST_APART * min(spans):
            return "what it reads and what it makes are too far apart for one integer kernel"
    return ""


def _too_fine(largest: float, grid: Grid, rest: Rest) -> bool:
    return rest == "fp16" and 0 < largest / grid.half < FINEST_HALF
