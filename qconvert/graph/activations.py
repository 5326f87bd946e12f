"""HardSigmoid and HardSwish, put together from the arithmetic as which some exporters write them.

    HardSigmoid(x) = clip(x + c, 0, m) / m, with alpha = 1 / m and beta = c / m
    HardSwish(x)   = x clip(x + 3, 0, 6) / 6 = x HardSigmoid(x), with alpha = 1/6 and beta = 1/2

ONNX Runtime fuses them with the convolution before, but runs arithmetic step by step.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from qconvert.graph import patterns

HARD_SWISH_OPSET = 14
MAX_STEPS = 4  # Add, Clip, and two products


@dataclass(frozen=True)
class ClippedSum:
    """The tensor factor * clip(source + shift, 0, top), or that times its source."""

    source: ir.Value
    shift: float
    top: float
    factor: float = 1.0
    times_source: bool = False

    @property
    def operator(self) -> str:
        """Which operator computes it; empty if none does."""
        if self.top <= 0 or not math.isclose(self.factor * self.top, 1.0, rel_tol=1e-6):
            return ""
        if not self.times_source:
            return "HardSigmoid"
        as_in_swish = zip((self.shift, self.top), (3.0, 6.0), strict=True)
        same = all(math.isclose(*pair, rel_tol=1e-6) for pair in as_in_swish)
        return "HardSwish" if same else ""


def fuse_activations(model: ir.Model) -> tuple[ir.Model, str]:
    """Return a copy with HardSigmoid and HardSwish in place of their arithmetic."""
    fused = model.clone()
    has_hard_swish = fused.opset_imports.get("", 0) >= HARD_SWISH_OPSET
    count = 0
    for node in reversed(list(fused.graph)):  # the last product first, which includes the others
        is_product = node.graph is not None and patterns.is_standard(node, "Mul", "Div")
        clipped = find_clipped_sum(node.outputs[0]) if is_product else None
        operator = clipped.operator if clipped is not None else ""
        if clipped is None or not operator or (operator == "HardSwish" and not has_hard_swish):
            continue
        attributes = {"alpha": clipped.factor, "beta": clipped.shift * clipped.factor}
        attributes = attributes if operator == "HardSigmoid" else {}
        patterns.replace_node(node, operator, [clipped.source], **attributes)
        common.RemoveUnusedNodesPass()(fused)
        count += 1
    return (fused, f"{count} fused") if count else (model, "")


def find_clipped_sum(value: ir.Value | None, steps: int = MAX_STEPS) -> ClippedSum | None:
    """Return of which clipped sum a tensor is a multiple; no other node may read one in between."""
    node = patterns.producer_of(value)
    if node is None or not steps or not patterns.is_standard(node):
        return None
    source = node.inputs[0] if node.inputs else None
    if node.op_type == "HardSigmoid" and source is not None:
        alpha = node.attributes.get_float("alpha", 0.2)
        beta = node.attributes.get_float("beta", 0.5)
        return ClippedSum(source, beta / alpha, 1 / alpha, alpha) if alpha > 0 else None
    if node.op_type == "Clip":
        return _clip_of_sum(node)
    if node.op_type not in ("Mul", "Div"):
        return None
    for gate, other in (node.inputs, reversed(node.inputs)):
        if gate is None or patterns.only_reader(gate) is not node:
            continue
        number, inner = _number(other), find_clipped_sum(gate, steps - 1)
        if inner is None or (node.op_type == "Div" and gate is not node.inputs[0]):
            continue
        if number:
            factor = inner.factor * number if node.op_type == "Mul" else inner.factor / number
            return replace(inner, factor=factor)
        if node.op_type == "Mul" and other is inner.source and not inner.times_source:
            return replace(inner, times_source=True)
    return None


def _clip_of_sum(clip: ir.Node) -> ClippedSum | None:
    """Return clip(x + number, 0, top), if nothing else reads the sum."""
    total = patterns.producer_of(clip.inputs[0])
    low, top = (_number(value) for value in (*clip.inputs, None, None)[1:3])
    if total is None or not patterns.is_standard(total, "Add") or low != 0.0 or top is None:
        return None
    for source, other in (total.inputs, reversed(total.inputs)):
        shift = _number(other)
        if source is not None and shift is not None and patterns.only_reader(total.outputs[0]):
            return ClippedSum(source, shift, top)
    return None


def _number(value: ir.Value | None) -> float | None:
    """Return a constant of one number, in a type that both operators have."""
    array = patterns.constant_array(value)
    if array is None or array.size != 1 or array.dtype not in (np.float32, np.float16):
        return None
    return float(array.item())
