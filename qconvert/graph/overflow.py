"""Where half precision runs out of range: at 65504 in float16, nowhere near it in bfloat16."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qconvert.graph.half_types import SPELLED, Slots, filled_with
from qconvert.graph.patterns import constant, is_standard

MOST = {ir.DataType.FLOAT16: 65504.0, ir.DataType.BFLOAT16: 3.3895313892515355e38}
LEAST = 2.0**-24  # in float16; what bfloat16 rounds to zero, float32 nearly does
# Images may hold larger values than those that were seen.
MARGIN = 2.0
# Below, the smaller half of the values has less than six digits in binary.
SMALL = 2.0**-12
LIMIT = MOST[ir.DataType.FLOAT16] / MARGIN
# Where they compare with a constant that is out of range, the largest number bounds as little.
BOUNDING = frozenset({"Clip", "Max", "Min"})


@dataclass(frozen=True)
class Ranges:
    """The largest magnitude of tensors: of constants what they hold, of others what was seen."""

    seen: Mapping[str, float]

    def of(self, value: ir.Value | None) -> float | None:
        """Return the largest magnitude, None where nothing is known of it."""
        if value is None:
            return None
        stored = constant(value)
        return self.seen.get(value.name or "") if stored is None else largest(stored)


def largest(array: NDArray[np.generic]) -> float:
    """Return the largest magnitude of an array, leaving out what is not finite."""
    if array.size == 0:
        return 0.0
    top = max(abs(float(array.max())), abs(float(array.min())))
    if math.isfinite(top):
        return top
    finite = array[np.isfinite(array.astype(np.float32))]
    return float(np.abs(finite).max()) if finite.size else 0.0


def fitted(array: NDArray[np.generic], half: ir.DataType) -> NDArray[np.generic]:
    """Return an array in half precision; what is finite stays so, and a lone number is not 0."""
    if largest(array) > MOST[half]:
        array = np.where(np.isfinite(array), np.clip(array, -MOST[half], MOST[half]), array)
    rounded: NDArray[np.generic] = array.astype(half.numpy())
    if array.size == 1 and array.any() and not rounded.any():
        # An epsilon keeps from dividing by zero: the least number does so too.
        rounded[...] = LEAST if array.max() > 0 else -LEAST
    return rounded


def stored_too_large(node: ir.Node, slots: Slots, half: ir.DataType) -> str:
    """Say which constant of a node is beyond half precision; empty where none is."""
    if is_standard(node, "ConstantOfShape"):
        top = largest(filled_with(node).numpy())
        return _beyond("its value", top, half) if top > MOST[half] else ""
    if is_standard(node, *BOUNDING):
        return ""
    for value in (node.inputs[place] for place in sorted(slots.inputs)):
        stored = constant(value)
        if value is not None and stored is not None and largest(stored) > MOST[half]:
            return _beyond(f"`{value.name}`", largest(stored), half)
    return ""


def seen_too_large(node: ir.Node, slots: Slots, ranges: Ranges) -> str:
    """Say which tensor that a node reads or makes came too near the end of float16."""
    read = [node.inputs[place] for place in sorted(slots.inputs)]
    for value in (*read, *(node.outputs[place] for place in sorted(slots.outputs))):
        if value is not None and (top := ranges.seen.get(value.name or "", 0.0)) > LIMIT:
            return _beyond(f"`{value.name}`", top, ir.DataType.FLOAT16)
    return ""


def seen_too_small(node: ir.Node, slots: Slots, ranges: Ranges) -> str:
    """Say which tensor that a node reads or makes is so small that half has no digits for it."""
    read = [node.inputs[place] for place in sorted(slots.inputs)]
    for value in (*read, *(node.outputs[place] for place in sorted(slots.outputs))):
        top = ranges.seen.get(value.name or "", 0.0) if value is not None else 0.0
        if value is not None and 0 < top < SMALL:
            return f"`{value.name}` came to {top:.1e} at most, where float16 has few digits"
    return ""


def scale_too_small(node: ir.Node, half: ir.DataType) -> str:
    """Say why half precision cannot hold the scale of a Quantize- or DequantizeLinear."""
    if not is_standard(node, "QuantizeLinear", "DequantizeLinear"):
        return ""
    scale, quantized = constant(node.inputs[1]), node.inputs[0]
    if quantized is not None and quantized.dtype is ir.DataType.INT32:
        # The scale of a bias is the product of two scales.
        return f"it reads 32 bit, which is more than {SPELLED[half]} holds"
    if scale is None or np.all((scale.astype(half.numpy()) != 0) | (scale == 0)):
        return ""
    smallest = float(scale[scale != 0].min())
    return f"its scale of {smallest:.4g} would be 0 in {SPELLED[half]}"


def _beyond(what: str, top: float, half: ir.DataType) -> str:
    return f"{what} goes up to {top:.4g}, {SPELLED[half]} to {MOST[half]:.5g}"
