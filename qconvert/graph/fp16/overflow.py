"""Where half precision runs out of range: at 65504 in float16, nowhere near it in bfloat16."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from qconvert.graph.fp16.half_types import (
    MAX_FINITE,
    TYPE_NAMES,
    HalfSlots,
    fill_value,
    largest_magnitude,
    onnx_opset,
)
from qconvert.graph.patterns import constant_array, is_standard

# Images may hold larger values than those that were seen.
HEADROOM = 2.0
# Below, the smaller half of the values has less than six digits in binary.
FEW_DIGITS = 2.0**-12
FLOAT16_LIMIT = MAX_FINITE[ir.DataType.FLOAT16] / HEADROOM
# Where they compare with a constant that is out of range, the largest number bounds as little.
CLAMPING = frozenset({"Clip", "Max", "Min"})


@dataclass(frozen=True)
class Magnitudes:
    """The largest magnitude of tensors: of constants what they hold, of others what was seen."""

    measured: Mapping[str, float]

    def of(self, value: ir.Value | None) -> float | None:
        """Return the largest magnitude, None where nothing is known of it."""
        if value is None:
            return None
        stored = constant_array(value)
        return self.measured.get(value.name or "") if stored is None else largest_magnitude(stored)


def check_constants(node: ir.Node, slots: HalfSlots, half: ir.DataType) -> str:
    """Say which constant of a node is beyond half precision; empty where none is."""
    if is_standard(node, "ConstantOfShape"):
        top = largest_magnitude(fill_value(node).numpy())
        return _exceeds("its value", top, half) if top > MAX_FINITE[half] else ""
    if is_standard(node, *CLAMPING):
        return ""
    for value in (node.inputs[place] for place in sorted(slots.inputs)):
        stored = constant_array(value)
        if (
            value is not None
            and stored is not None
            and largest_magnitude(stored) > MAX_FINITE[half]
        ):
            return _exceeds(f"`{value.name}`", largest_magnitude(stored), half)
    return ""


def check_large_activations(node: ir.Node, slots: HalfSlots, ranges: Magnitudes) -> str:
    """Say which tensor that a node reads or makes came too near the end of float16."""
    read = [node.inputs[place] for place in sorted(slots.inputs)]
    for value in (*read, *(node.outputs[place] for place in sorted(slots.outputs))):
        if (
            value is not None
            and (top := ranges.measured.get(value.name or "", 0.0)) > FLOAT16_LIMIT
        ):
            return _exceeds(f"`{value.name}`", top, ir.DataType.FLOAT16)
    return ""


def check_small_activations(node: ir.Node, slots: HalfSlots, ranges: Magnitudes) -> str:
    """Say which tensor that a node reads or makes is so small that half has no digits for it."""
    read = [node.inputs[place] for place in sorted(slots.inputs)]
    for value in (*read, *(node.outputs[place] for place in sorted(slots.outputs))):
        top = ranges.measured.get(value.name or "", 0.0) if value is not None else 0.0
        if value is not None and 0 < top < FEW_DIGITS:
            return f"`{value.name}` came to {top:.1e} at most, where float16 has few digits"
    return ""


def check_quantization_scale(node: ir.Node, half: ir.DataType) -> str:
    """Say why half precision cannot hold the scale of a Quantize- or DequantizeLinear."""
    if not is_standard(node, "QuantizeLinear", "DequantizeLinear"):
        return ""
    scale, quantized = constant_array(node.inputs[1]), node.inputs[0]
    if quantized is not None and quantized.dtype is ir.DataType.INT32:
        # The scale of a bias is the product of two scales.
        return f"it reads 32 bit, which is more than {TYPE_NAMES[half]} holds"
    if scale is None or np.all((scale.astype(half.numpy()) != 0) | (scale == 0)):
        return ""
    smallest = float(scale[scale != 0].min())
    return f"its scale of {smallest:.4g} would be 0 in {TYPE_NAMES[half]}"


def _exceeds(what: str, top: float, half: ir.DataType) -> str:
    return f"{what} goes up to {top:.4g}, {TYPE_NAMES[half]} to {MAX_FINITE[half]:.5g}"


# Above this float16 does not hold every whole number, so that a sum of ones stands still.
MAX_EXACT_INTEGER = 2048
RANGE_NOT_MEASURED = "it adds up values whose range was not measured"
# Their attribute `stash_type` says in which type they add up; for GroupNormalization since 21.
STASH_TYPE_SINCE = {"LayerNormalization": 17, "RMSNormalization": 23, "GroupNormalization": 21}


@dataclass(frozen=True)
class Accumulation:
    """How many terms an operator adds up, what a term is at most, and how to speak of it.

    One that is `heavy` stays in float32 where nothing at all was measured.
    """

    count: Callable[[ir.Node], int | None]
    term: Callable[[float], float] = float
    terms: str = "values"
    heavy: bool = True


def check_accumulation(node: ir.Node, ranges: Magnitudes) -> str:
    """Say why float16 may be too small for what a node adds up; empty where it is not."""
    if is_standard(node) and node.op_type in OTHER_CHECKS:
        return OTHER_CHECKS[node.op_type](node, ranges)
    sum_ = ACCUMULATING.get(node.op_type) if is_standard(node) else None
    if sum_ is None or _accumulates_in_float32(node):
        return ""
    top = ranges.of(node.inputs[0])
    if top is None:
        return RANGE_NOT_MEASURED if ranges.measured or sum_.heavy else ""
    count = sum_.count(node)
    if count is None:
        return "how many values it adds up is not known"
    fits = count * sum_.term(top) <= FLOAT16_LIMIT
    return "" if fits else f"it adds up {count} {sum_.terms} of up to {top:.4g}"


def _check_softmax_row(node: ir.Node, ranges: Magnitudes) -> str:
    row = _size(node, [node.attributes.get_int("axis", -1)]) or 0
    return f"its rows of {row} are longer than float16 can count" if row > MAX_EXACT_INTEGER else ""


def _check_exponential(node: ir.Node, ranges: Magnitudes) -> str:
    top = ranges.of(node.inputs[0])
    if top is None:
        return "it grows fast, and its range was not measured" if ranges.measured else ""
    return f"e to the power of {top:.4g} leaves float16" if _power_of_e(top) > FLOAT16_LIMIT else ""


def _accumulates_in_float32(node: ir.Node) -> bool:
    """Whether the operator itself is defined to add up in float32 whatever it reads."""
    since = STASH_TYPE_SINCE.get(node.op_type)
    if since is None or node.graph is None or onnx_opset(node.graph.opset_imports) < since:
        return False
    return node.attributes.get_int("stash_type", ir.DataType.FLOAT) == ir.DataType.FLOAT


def _size(node: ir.Node, axes: list[int]) -> int | None:
    """Return how many values of the first input lie along some axes, None if a size is open."""
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    if shape is None or any(not -len(shape) <= axis < len(shape) for axis in axes):
        return None
    sizes = [shape[axis] for axis in axes]
    known = [size for size in sizes if isinstance(size, int)]
    return math.prod(known) if len(known) == len(sizes) else None


def _rank(node: ir.Node) -> int:
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    return len(shape) if shape is not None else 0


def _spatial(node: ir.Node) -> int | None:
    return _size(node, list(range(2, _rank(node)))) if _rank(node) else None


def _from_axis(node: ir.Node) -> int | None:
    axis, rank = node.attributes.get_int("axis", -1), _rank(node)
    return _size(node, list(range(axis % rank, rank))) if rank else None


def _group_size(node: ir.Node) -> int | None:
    values = _size(node, list(range(1, _rank(node)))) if _rank(node) else None
    return None if values is None else values // node.attributes.get_int("num_groups", 1)


def _kernel(node: ir.Node) -> int | None:
    return math.prod(node.attributes["kernel_shape"].as_ints())


def _reduced(node: ir.Node) -> int | None:
    """Count along the axes of a Reduce operator: an input, or an attribute in older opsets."""
    given = node.attributes.get("axes")
    axes = list(given.as_ints()) if given is not None else []
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        stored = constant_array(node.inputs[1])
        if stored is None:
            return None
        axes = [int(axis) for axis in stored.ravel()]
    noop: int = node.attributes.get_int("noop_with_empty_axes", 0)
    if noop and not axes:
        return 1
    return _size(node, axes or list(range(_rank(node)))) if _rank(node) else None


def _square(top: float) -> float:
    return top * top


def _power_of_e(top: float) -> float:
    return math.exp(min(top, 700.0))


SQUARES = "squares of values"
POWERS = "powers of e with exponents"

# Products (`Conv`, `MatMul`, ...) are not among them: every engine adds those up in float32.
ACCUMULATING: dict[str, Accumulation] = {
    "ReduceSum": Accumulation(_reduced),
    "ReduceMean": Accumulation(_reduced),
    "ReduceL1": Accumulation(_reduced),
    "ReduceLogSum": Accumulation(_reduced),
    "ReduceSumSquare": Accumulation(_reduced, _square, SQUARES),
    "ReduceL2": Accumulation(_reduced, _square, SQUARES),
    "ReduceLogSumExp": Accumulation(_reduced, _power_of_e, POWERS),
    "LayerNormalization": Accumulation(_from_axis, _square, SQUARES),
    "RMSNormalization": Accumulation(_from_axis, _square, SQUARES),
    "GroupNormalization": Accumulation(_group_size, _square, SQUARES),
    "InstanceNormalization": Accumulation(_spatial, _square, SQUARES),
    "MeanVarianceNormalization": Accumulation(
        lambda node: _size(node, list(node.attributes.get_ints("axes", (0, 2, 3)))),
        _square,
        SQUARES,
    ),
    "LpNormalization": Accumulation(
        lambda node: _size(node, [node.attributes.get_int("axis", -1)]), _square, SQUARES
    ),
    "LRN": Accumulation(lambda node: node.attributes["size"].as_int(), _square, SQUARES),
    "GlobalAveragePool": Accumulation(_spatial, heavy=False),
    "AveragePool": Accumulation(_kernel, heavy=False),
    "GlobalLpPool": Accumulation(_spatial, _square, SQUARES, heavy=False),
    "LpPool": Accumulation(_kernel, _square, SQUARES, heavy=False),
}

# Those that overflow in another way.
OTHER_CHECKS: dict[str, Callable[[ir.Node, Magnitudes], str]] = {
    "Softmax": _check_softmax_row,
    "LogSoftmax": _check_softmax_row,
    "Exp": _check_exponential,
}
