"""Nodes of a plan put back into float, with all that cannot stay in integers without them."""

from collections.abc import Collection
from dataclasses import replace

import onnx_ir as ir

from qconvert.quantize.placement import rounded, settle
from qconvert.quantize.plan import Layer, Plan
from qconvert.quantize.scheme import Scheme


def lift(model: ir.Model, plan: Plan, scheme: Scheme, nodes: Collection[str], why: str) -> Plan:
    """Return the plan without these nodes; ranges and methods stay, tensors no one rounds go.

    The rules of the scheme are asked again: what needs an integer neighbour goes with it.
    """
    held = {node: plan.layers[node.name or ""] for node in model.graph if node.name in plan.layers}
    layers = {
        node: Layer(node.op_type, left=why) if node.name in nodes and not layer.left else layer
        for node, layer in held.items()
    }
    settle(layers, scheme)
    kept = {
        node: layer
        for node, layer in layers.items()
        if not layer.left or scheme.by_operator[node.op_type].computes
    }
    names = {value.name for node, layer in kept.items() for value in rounded(node, layer)}
    return replace(
        plan,
        layers={node.name or "": layer for node, layer in kept.items()},
        tensors={name: kept for name, kept in plan.tensors.items() if name in names},
    )
