"""Constants behind QuantizeLinear and DequantizeLinear: weights and biases of quantized files.

A file holds integers, or floats that a quantizer rounds when the file is loaded. Either way the
numbers that the graph computes with are integer * step, with a step for each element here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from qconvert.core.errors import QConvertError
from qconvert.core.scales import FloatArray, IntArray
from qconvert.graph import patterns
from qconvert.quantize.plan import RoundedWeight

# What may stand between the DequantizeLinear of a weight and its reader.
MOVES = frozenset({"Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Identity"})
INTEGER_RANGES = {
    "INT4": (-8, 7),
    "UINT4": (0, 15),
    "INT8": (-128, 127),
    "UINT8": (0, 255),
    "INT16": (-32768, 32767),
    "UINT16": (0, 65535),
    "INT32": (-(2**31), 2**31 - 1),
}
Number = TypeVar("Number", np.int32, np.float32)
EXPORT_HINT = "export it again with integers of 8 bits or fewer, and with constant scales"


@dataclass(frozen=True, eq=False)
class QuantizedConstant:
    """A constant as integers without their zero point, and the step of each.

    `original` has the floats from which the graph rounds them, None if it holds only integers.
    """

    integers: IntArray
    steps: FloatArray
    original: FloatArray | None = None

    @property
    def values(self) -> FloatArray:
        """The numbers that the graph computes with."""
        return self.integers.astype(np.float32) * self.steps

    def scaled(self, factors: NDArray[np.float64]) -> "QuantizedConstant":
        """Return the constant times factors of its shape; the signs go to the integers."""
        steps = (self.steps * np.abs(factors)).astype(np.float32)
        integers = np.where(factors < 0, -self.integers, self.integers)
        original = None if self.original is None else (self.original * factors).astype(np.float32)
        # A channel that is multiplied by zero keeps its steps, which must be above zero.
        zero = factors == 0
        return QuantizedConstant(
            np.where(zero, 0, integers), np.where(zero, self.steps, steps), original
        )

    def moved(self, node: ir.Node) -> "QuantizedConstant | None":
        """Return what a node of `MOVES` makes of it; None where its other inputs vary."""
        if any(patterns.constant_array(value) is None for value in node.inputs[1:]):
            return None
        original = None if self.original is None else _move(node, self.original)
        return QuantizedConstant(_move(node, self.integers), _move(node, self.steps), original)


@dataclass(frozen=True, eq=False)
class NodeParams:
    """Scale, zero point and integers of a Q/DQ node; arrays if they differ along an axis."""

    scale: FloatArray
    zero_point: IntArray
    low: int
    high: int
    dtype: str

    def shaped(self, node: ir.Node, shape: tuple[int, ...]) -> "NodeParams":
        """Return the parameters in a shape that broadcasts over a tensor of this shape."""
        if self.scale.size == 1:
            return replace(
                self, scale=self.scale.reshape(()), zero_point=self.zero_point.ravel()[0]
            )
        axis = node.attributes.get_int("axis", 1) % max(len(shape), 1)
        if block := node.attributes.get_int("block_size", 0):
            indices = np.arange(shape[axis]) // block
            return replace(
                self,
                scale=self.scale.take(indices, axis),
                zero_point=self.zero_point.take(indices, axis),
            )
        along = [-1 if index == axis else 1 for index in range(len(shape))]
        return replace(
            self, scale=self.scale.reshape(along), zero_point=self.zero_point.reshape(along)
        )


def read_params(node: ir.Node) -> NodeParams:
    """Return the parameters of a QuantizeLinear or DequantizeLinear, which must be constant."""
    constant = patterns.constant_array(node.inputs[1])
    stored = node.inputs[2] if len(node.inputs) > 2 else None
    zero_point = patterns.constant_array(stored)
    if constant is None or (stored is not None and zero_point is None):
        raise QConvertError(
            f"the scale of `{node.name}` depends on the data: this is dynamic quantization",
            hint=EXPORT_HINT,
        )
    is_quantizer = node.op_type == "QuantizeLinear"
    typed = stored if stored is not None or is_quantizer else node.inputs[0]
    dtype = typed.dtype if typed is not None else None
    if dtype is None and is_quantizer:
        number = node.attributes.get_int("output_dtype", 0)
        dtype = ir.DataType(number) if number else ir.DataType.UINT8
    name = dtype.name if dtype is not None else "UINT8"
    if name not in INTEGER_RANGES:
        raise QConvertError(
            f"`{node.name}` quantizes to {name.lower()}, which is no integer type", hint=EXPORT_HINT
        )
    scale: FloatArray = constant.astype(np.float32)
    if not (np.isfinite(scale).all() and (scale > 0).all()):
        raise QConvertError(
            f"a scale of `{node.name}` is not above zero",
            hint="its training diverged, or its quantizers were never calibrated",
        )
    zeros = np.zeros(scale.shape, np.int32)
    points = zeros if zero_point is None else zero_point.astype(np.int32)
    return NodeParams(scale, np.broadcast_to(points, scale.shape), *INTEGER_RANGES[name], name)


def read_constant(
    node: ir.Node, constants: Mapping[ir.Value, QuantizedConstant]
) -> QuantizedConstant | None:
    """Return the constant that a DequantizeLinear reads; None if it reads an activation.

    `constants` has the values behind other DequantizeLinear nodes, which may be rounded again.
    """
    source, clip = node.inputs[0], None
    if (integers := patterns.constant_array(source)) is not None:
        return _dequantize(node, integers.astype(np.int64), None)
    producer = patterns.producer_of(source)
    if producer is not None and producer.op_type == "Clip":
        clip, producer = producer, patterns.producer_of(producer.inputs[0])
    if producer is None or producer.op_type != "QuantizeLinear":
        return None
    value = producer.inputs[0]
    array = patterns.constant_array(value)
    if array is None and value is not None and value in constants:
        array = constants[value].values
    if array is None:
        return None
    original = array.astype(np.float32)
    params = read_params(producer).shaped(producer, original.shape)
    rounded = np.rint(original / params.scale) + params.zero_point
    low, high = clip_bounds(clip, params) if clip is not None else (params.low, params.high)
    return _dequantize(node, np.clip(rounded, low, high).astype(np.int64), original)


def clip_bounds(clip: ir.Node, params: NodeParams) -> tuple[int, int]:
    """Return the smallest and largest integer that a Clip behind a QuantizeLinear lets pass."""
    low, high = None, None
    for slot, value in enumerate(clip.inputs[1:3]):
        end = patterns.constant_array(value)
        if value is not None and end is None:
            raise QConvertError(f"the limits of `{clip.name}` depend on the data", hint=EXPORT_HINT)
        low, high = (end, high) if slot == 0 else (low, end)
    return (
        params.low if low is None else max(params.low, int(low)),
        params.high if high is None else min(params.high, int(high)),
    )


def round_weight(constant: QuantizedConstant, axis: int) -> RoundedWeight | str:
    """Return a constant as signed bytes with a step for each index of an axis, or why it is not."""
    channels = constant.steps.shape[axis]
    rows = np.moveaxis(constant.steps, axis, 0).reshape(channels, -1)
    if not rows.size:
        return "its weight is empty"
    steps = rows[:, 0]
    if not (rows == steps[:, np.newaxis]).all():
        return "the scales of its weight differ within an output channel"
    low, high = int(constant.integers.min()), int(constant.integers.max())
    if low < -128 or high > 127:
        return f"its weight is asymmetric: its integers reach from {low} to {high} around zero"
    return RoundedWeight(constant.integers.astype(np.int8), np.ascontiguousarray(steps), None)


def _dequantize(
    node: ir.Node, integers: NDArray[np.int64], original: FloatArray | None
) -> QuantizedConstant:
    params = read_params(node).shaped(node, integers.shape)
    centred = integers - params.zero_point
    limits = np.iinfo(np.int32)
    steps = np.broadcast_to(params.scale, integers.shape).astype(np.float32)
    return QuantizedConstant(
        np.clip(centred, limits.min, limits.max).astype(np.int32), steps, original
    )


def _move(node: ir.Node, array: NDArray[Number]) -> NDArray[Number]:
    """Return what a node makes of an array, its other inputs being constant."""
    proto = ir.to_proto(node)
    arrays: list[Any] = [array, *(patterns.constant_array(value) for value in node.inputs[1:])]
    results: Any = ReferenceEvaluator(proto).run(None, dict(zip(proto.input, arrays, strict=True)))
    moved: NDArray[Number] = results[0]
    return moved
