"""From a scheme, a model and what calibration saw of it to a plan."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import onnx_ir as ir

from qconvert import onnx_io
from qconvert.calibrate.summary import Summary
from qconvert.errors import QConvertError
from qconvert.graph.observed import observe
from qconvert.graph.patterns import is_quantized
from qconvert.quantize import ranges
from qconvert.quantize.fitting import Fit, fitting
from qconvert.quantize.placement import place, rounded
from qconvert.quantize.plan import Layer, Plan, Rest
from qconvert.quantize.ranges import ANSWERS, USUAL, Way
from qconvert.quantize.scheme import Scheme
from qconvert.quantize.selection import Selection


@dataclass(frozen=True)
class Wishes:
    """What the user decides; all else follows from the scheme.

    `apart` has the method of the tensors whose range another one than `method` chooses.
    """

    method: str = USUAL
    apart: Mapping[str, str] = field(default_factory=dict)
    weight_method: Literal["mse", "minmax"] = "mse"
    rest: Rest = "fp32"
    selection: Selection = field(default_factory=Selection)


def make_plan(
    model: ir.Model, scheme: Scheme, summaries: Mapping[str, Summary], wishes: Wishes
) -> Plan:
    """Return the plan of a scheme for a model; refuse a model of which nothing can be quantized."""
    require_float(model)
    observed = ranges.finite(observe(model), summaries)
    layers = place(model, scheme, observed, wishes.selection)
    require_some(layers)
    way = Way(wishes.method, scheme.activations, wishes.apart)
    found = ranges.choose(model.graph, observed, summaries, way)
    found = ranges.share(model.graph, layers, found, scheme.shared)
    layers = fitting(model.graph, layers, Fit(scheme, wishes.rest, found))
    require_some(layers)
    names = {
        value.name or ""
        for node in model.graph
        if (node.name or "") in layers
        for value in rounded(node, layers[node.name or ""])
    }
    return Plan(
        model=onnx_io.fingerprint(model),
        scheme=scheme.name,
        method=ANSWERS if wishes.apart else wishes.method,
        weight_method=wishes.weight_method,
        activations=scheme.activations,
        weights=scheme.weights,
        integer_bias=scheme.integer_bias,
        layers=layers,
        tensors={name: kept for name, kept in found.items() if name in names},
        rest=wishes.rest,
    )


def require_float(model: ir.Model) -> None:
    """Refuse a model that is quantized already."""
    if is_quantized(model):
        raise QConvertError(
            "this model is quantized already",
            hint="quantize the float model it was made from",
        )


def require_some(layers: Mapping[str, Layer]) -> None:
    """Refuse a model of which no node can be quantized, and say why not."""
    if any(not layer.left for layer in layers.values()):
        return
    why = dict.fromkeys(f"{layer.op}: {layer.left}" for layer in layers.values())
    raise QConvertError(
        "there is nothing to quantize in this model",
        details=list(why)[:5] or ["it has no convolution and no product"],
        hint="`qconvert inspect MODEL --nodes` shows what it is made of",
    )
