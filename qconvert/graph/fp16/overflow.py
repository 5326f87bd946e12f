"""Reasons why a node would overflow or underflow in half precision; empty where it does not.

float16 ends at 65504 and has 11 bits of precision; bfloat16 has the range of float32. `magnitudes`
has the largest magnitude that calibration measured for each tensor.
"""

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

Magnitudes = Mapping[str, float]

# Other images may hold larger values than those used for calibration.
HEADROOM = 2.0
FLOAT16_LIMIT = MAX_FINITE[ir.DataType.FLOAT16] / HEADROOM
# Below this magnitude, half of the values of a tensor have fewer than six binary digits.
FEW_DIGITS = 2.0**-12
# float16 does not hold every whole number above this, so a sum of ones stops growing there.
MAX_EXACT_INTEGER = 2048
# They compare with their constants: one out of range is as good clamped to the largest number.
CLAMPING = frozenset({"Clip", "Max", "Min"})
# Since these opsets the attribute `stash_type` sets the type in which they accumulate.
STASH_TYPE_SINCE = {"LayerNormalization": 17, "RMSNormalization": 23, "GroupNormalization": 21}


def describe_overflow(name: str, magnitude: float, half: ir.DataType) -> str:
    """Say that a magnitude is beyond what the half type holds."""
    return f"{name} reaches {magnitude:.4g}, {TYPE_NAMES[half]} only {MAX_FINITE[half]:.5g}"


def check_constants(node: ir.Node, slots: HalfSlots, half: ir.DataType) -> str:
    """Say which constant of a node is beyond half precision."""
    if is_standard(node, *CLAMPING):
        return ""
    if is_standard(node, "ConstantOfShape"):
        constants = {"its value": fill_value(node).numpy()}
    else:
        constants = {
            f"`{value.name}`": array
            for value in (node.inputs[index] for index in sorted(slots.inputs))
            if value is not None and (array := constant_array(value)) is not None
        }
    for name, array in constants.items():
        if (magnitude := largest_magnitude(array)) > MAX_FINITE[half]:
            return describe_overflow(name, magnitude, half)
    return ""


def check_activations(node: ir.Node, slots: HalfSlots, magnitudes: Magnitudes) -> str:
    """Say which input or output came too close to the limits of float16."""
    measured = {value.name: magnitudes.get(value.name or "", 0.0) for value in slots.values(node)}
    for name, magnitude in measured.items():
        if magnitude > FLOAT16_LIMIT:
            return describe_overflow(f"`{name}`", magnitude, ir.DataType.FLOAT16)
    for name, magnitude in measured.items():
        if 0 < magnitude < FEW_DIGITS:
            return f"`{name}` never exceeds {magnitude:.1e}, where float16 has few digits"
    return ""


def check_quantization_scale(node: ir.Node, half: ir.DataType) -> str:
    """Say why half precision cannot hold the scale of a Quantize- or DequantizeLinear."""
    if not is_standard(node, "QuantizeLinear", "DequantizeLinear"):
        return ""
    scale, quantized = constant_array(node.inputs[1]), node.inputs[0]
    if quantized is not None and quantized.dtype is ir.DataType.INT32:
        # A quantized bias: its scale is the product of two scales.
        return f"it reads int32, which {TYPE_NAMES[half]} cannot hold"
    if scale is None or np.all((scale.astype(half.numpy()) != 0) | (scale == 0)):
        return ""
    smallest = float(scale[scale != 0].min())
    return f"its scale of {smallest:.4g} would be 0 in {TYPE_NAMES[half]}"


@dataclass(frozen=True)
class Accumulation:
    """How many terms an operator adds up, the bound of a term, and what the terms are.

    A `heavy` one stays in float32 if nothing was measured at all.
    """

    count: Callable[[ir.Node], int | None]
    term: Callable[[float], float] = float
    terms: str = "values"
    heavy: bool = True


def check_accumulation(node: ir.Node, magnitudes: Magnitudes) -> str:
    """Say why float16 may be too small for a sum: count * term(magnitude) > FLOAT16_LIMIT."""
    if is_standard(node, "Softmax", "LogSoftmax"):
        return _check_softmax(node)
    if is_standard(node, "Exp"):
        return _check_exponential(_magnitude(node.inputs[0], magnitudes), magnitudes)
    accumulation = ACCUMULATING.get(node.op_type) if is_standard(node) else None
    if accumulation is None or _accumulates_in_float32(node):
        return ""
    magnitude = _magnitude(node.inputs[0], magnitudes)
    if magnitude is None:
        unknown = bool(magnitudes) or accumulation.heavy
        return "it adds up values whose range was not measured" if unknown else ""
    count = accumulation.count(node)
    if count is None:
        return "how many values it adds up is unknown"
    fits = count * accumulation.term(magnitude) <= FLOAT16_LIMIT
    return "" if fits else f"it adds up {count} {accumulation.terms} of up to {magnitude:.4g}"


def _check_softmax(node: ir.Node) -> str:
    row = _size(node, [node.attributes.get_int("axis", -1)]) or 0
    return f"its rows of {row} are longer than float16 can count" if row > MAX_EXACT_INTEGER else ""


def _check_exponential(magnitude: float | None, magnitudes: Magnitudes) -> str:
    if magnitude is None:
        return "it is exponential, and its range was not measured" if magnitudes else ""
    overflows = _exponential(magnitude) > FLOAT16_LIMIT
    return f"e to the power of {magnitude:.4g} exceeds float16" if overflows else ""


def _magnitude(value: ir.Value | None, magnitudes: Magnitudes) -> float | None:
    """Return the largest magnitude of a constant, or the one measured; None if unknown."""
    if value is None:
        return None
    array = constant_array(value)
    return magnitudes.get(value.name or "") if array is None else largest_magnitude(array)


def _accumulates_in_float32(node: ir.Node) -> bool:
    """Whether the operator is defined to accumulate in float32 whatever type it reads."""
    since = STASH_TYPE_SINCE.get(node.op_type)
    if since is None or node.graph is None or onnx_opset(node.graph.opset_imports) < since:
        return False
    return node.attributes.get_int("stash_type", ir.DataType.FLOAT) == ir.DataType.FLOAT


def _size(node: ir.Node, axes: list[int]) -> int | None:
    """Return how many values of the first input lie along some axes; None if one is dynamic."""
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    if shape is None or any(not -len(shape) <= axis < len(shape) for axis in axes):
        return None
    sizes = [shape[axis] for axis in axes]
    fixed = [size for size in sizes if isinstance(size, int)]
    return math.prod(fixed) if len(fixed) == len(sizes) else None


def _size_from(node: ir.Node, axis: int) -> int | None:
    """Return how many values of the first input lie along an axis and those after it."""
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    if shape is None or not len(shape):
        return None
    start = axis % len(shape) if axis < 0 else axis
    return _size(node, list(range(start, len(shape))))


def _spatial_size(node: ir.Node) -> int | None:
    return _size_from(node, 2)


def _normalized_size(node: ir.Node) -> int | None:
    return _size_from(node, node.attributes.get_int("axis", -1))


def _group_size(node: ir.Node) -> int | None:
    values = _size_from(node, 1)
    return None if values is None else values // node.attributes.get_int("num_groups", 1)


def _kernel_size(node: ir.Node) -> int | None:
    return math.prod(node.attributes["kernel_shape"].as_ints())


def _reduced_size(node: ir.Node) -> int | None:
    """Count along the axes of a Reduce operator: an input, or an attribute in older opsets."""
    axes = list(node.attributes.get_ints("axes", ()))
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        array = constant_array(node.inputs[1])
        if array is None:
            return None
        axes = [int(axis) for axis in array.ravel()]
    noop: int = node.attributes.get_int("noop_with_empty_axes", 0)
    if noop and not axes:
        return 1
    return _size(node, axes) if axes else _size_from(node, 0)


def _exponential(magnitude: float) -> float:
    return math.exp(min(magnitude, 700.0))


def _squares(count: Callable[[ir.Node], int | None], *, heavy: bool = True) -> Accumulation:
    return Accumulation(count, lambda magnitude: magnitude * magnitude, "squares of values", heavy)


# Products (`Conv`, `MatMul`, ...) are not listed: every engine accumulates those in float32.
ACCUMULATING: dict[str, Accumulation] = {
    "ReduceSum": Accumulation(_reduced_size),
    "ReduceMean": Accumulation(_reduced_size),
    "ReduceL1": Accumulation(_reduced_size),
    "ReduceLogSum": Accumulation(_reduced_size),
    "ReduceSumSquare": _squares(_reduced_size),
    "ReduceL2": _squares(_reduced_size),
    "ReduceLogSumExp": Accumulation(_reduced_size, _exponential, "powers of e with exponents"),
    "LayerNormalization": _squares(_normalized_size),
    "RMSNormalization": _squares(_normalized_size),
    "GroupNormalization": _squares(_group_size),
    "InstanceNormalization": _squares(_spatial_size),
    "MeanVarianceNormalization": _squares(
        lambda node: _size(node, list(node.attributes.get_ints("axes", (0, 2, 3))))
    ),
    "LpNormalization": _squares(lambda node: _size(node, [node.attributes.get_int("axis", -1)])),
    "LRN": _squares(lambda node: node.attributes["size"].as_int()),
    "GlobalAveragePool": Accumulation(_spatial_size, heavy=False),
    "AveragePool": Accumulation(_kernel_size, heavy=False),
    "GlobalLpPool": _squares(_spatial_size, heavy=False),
    "LpPool": _squares(_kernel_size, heavy=False),
}
