"""The arithmetic of quantization: ranges, grids of integers, and the scales that join the two.

A real value is `step * (integer - zero)`. Rounding is to the nearest integer and to the even one
of two, then to the ends of the grid: what `QuantizeLinear` and TensorRT compute. Zero is always
one of the values, and a step is never zero.
"""

import math
from dataclasses import dataclass

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int32]

# Beyond this a value is as good as infinite: a sum of many overflows, and no step spans it.
MAX_MAGNITUDE = 1e30
# Below this a step stands for values that no layer can tell from zero; a half has none smaller.
MIN_SCALE = {"fp32": 2.0**-100, "fp16": 2.0**-24, "bf16": 2.0**-100}
SCALE_DTYPES: dict[str, np.dtype[np.generic]] = {
    "fp32": np.dtype(np.float32),
    "fp16": np.dtype(np.float16),
    "bf16": np.dtype(ml_dtypes.bfloat16),
}


@dataclass(frozen=True)
class Range:
    """The values of a tensor that are kept; what lies outside is clipped to the nearer end."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low <= self.high):
            raise ValueError(f"a range runs upward, got {self.low} .. {self.high}")

    def __or__(self, other: "Range") -> "Range":
        return Range(min(self.low, other.low), max(self.high, other.high))

    @property
    def max_abs(self) -> float:
        """The largest magnitude inside, which is what a symmetric grid needs."""
        return max(abs(self.low), abs(self.high))


@dataclass(frozen=True)
class Grid:
    """The integers that a range is laid on: symmetric around zero, or shifted by a zero point.

    Zero is always one of its values: the grid of a range is that of the range widened to zero.
    """

    bits: int = 8
    symmetric: bool = True
    signed: bool = True

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 16:
            raise ValueError(f"a grid has 2 to 16 bits, got {self.bits}")
        if self.symmetric and not self.signed:
            raise ValueError("a grid around zero has integers on both sides of it")

    @property
    def levels(self) -> int:
        """How many integers there are."""
        return 1 << self.bits

    @property
    def symmetric_max(self) -> int:
        """The largest integer of the symmetric grid: 127 for 8 bits."""
        return (1 << (self.bits - 1)) - 1

    @property
    def quant_min(self) -> int:
        """The smallest integer."""
        return -self.symmetric_max - 1 if self.signed else 0

    @property
    def quant_max(self) -> int:
        """The largest integer."""
        return self.quant_min + self.levels - 1

    @property
    def onnx_dtype(self) -> str:
        """The narrowest ONNX type that holds the integers, as `int8`."""
        width = next(each for each in (4, 8, 16) if each >= self.bits)
        return f"{'' if self.signed else 'u'}int{width}"


@dataclass(frozen=True)
class PerTensor:
    """One scale for the whole tensor."""


@dataclass(frozen=True)
class PerChannel:
    """A scale for each index of one axis."""

    axis: int


@dataclass(frozen=True)
class PerBlock:
    """A scale for each run of `size` neighbours along one axis, the last of which may be short."""

    axis: int
    size: int

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"a block has at least one value, got {self.size}")


Granularity = PerTensor | PerChannel | PerBlock


@dataclass(frozen=True, eq=False)
class QuantParams:
    """Steps and zero points, one of each for a tensor, a channel or a block."""

    scale: FloatArray
    zero_point: IntArray
    grid: Grid
    granularity: Granularity = PerTensor()

    def __post_init__(self) -> None:
        if not (np.isfinite(self.scale).all() and (self.scale > 0).all()):
            raise ValueError("steps are finite and above zero")


def choose_qparams(value_range: Range, grid: Grid, scale_dtype: str = "fp32") -> QuantParams:
    """Return the scale of a whole tensor that takes these values."""
    return choose_qparams_for_bounds(
        np.float32(value_range.low), np.float32(value_range.high), grid, PerTensor(), scale_dtype
    )


def choose_qparams_for_bounds(
    lows: NDArray[np.floating] | np.float32,
    highs: NDArray[np.floating] | np.float32,
    grid: Grid,
    granularity: Granularity,
    scale_dtype: str = "fp32",
) -> QuantParams:
    """Return scales that reach from `lows` to `highs`; steps are exact in the type `steps_in`."""
    low = np.minimum(np.asarray(lows, dtype=np.float64), 0.0)
    high = np.maximum(np.asarray(highs, dtype=np.float64), 0.0)
    if grid.symmetric:
        steps = round_scale_up(np.maximum(-low, high) / grid.symmetric_max, scale_dtype)
        return QuantParams(steps, np.zeros(steps.shape, dtype=np.int32), grid, granularity)
    steps = round_scale_up((high - low) / (grid.levels - 1), scale_dtype)
    zeros = np.clip(np.rint(-low / steps) + grid.quant_min, grid.quant_min, grid.quant_max)
    return QuantParams(steps, zeros.astype(np.int32), grid, granularity)


def exceeds_scale_dtype(value_range: Range, grid: Grid, scale_dtype: str) -> bool:
    """Whether a range needs steps beyond the largest number of their type."""
    most = float(ml_dtypes.finfo(SCALE_DTYPES[scale_dtype]).max)  # type: ignore[no-untyped-call]
    span = (
        2 * value_range.max_abs
        if grid.symmetric
        else max(value_range.high, 0.0) - min(value_range.low, 0.0)
    )
    return span / (grid.levels - 1) > most / 2


def round_scale_up(scale: NDArray[np.float64], scale_dtype: str) -> FloatArray:
    """Return steps that the type holds exactly, never smaller and never zero.

    A step that is too small would clip the ends; one that is rounded after the integers were
    chosen would make every value a little wrong.
    """
    kind = SCALE_DTYPES[scale_dtype]
    wanted = np.maximum(scale, MIN_SCALE[scale_dtype])
    stored = wanted.astype(kind)
    above = np.nextafter(stored, kind.type(np.inf))
    enough: FloatArray = np.where(stored.astype(np.float64) < wanted, above, stored).astype(
        np.float32
    )
    return enough


def quantize(values: NDArray[np.floating], qparams: QuantParams) -> IntArray:
    """Return the integers nearest to `values`, clipped to the grid."""
    values = np.asarray(values, dtype=np.float32)
    steps, zeros = _broadcast(qparams, values.shape)
    # In place and in float32, which holds every integer of a grid: weights can be of any size.
    integers = np.asarray(values / steps)
    np.rint(integers, out=integers)
    integers += zeros.astype(np.float32)
    np.clip(integers, qparams.grid.quant_min, qparams.grid.quant_max, out=integers)
    return integers.astype(np.int32)


def dequantize(integers: NDArray[np.integer], qparams: QuantParams) -> FloatArray:
    """Return the values that integers stand for."""
    steps, zeros = _broadcast(qparams, integers.shape)
    values: FloatArray = (integers.astype(np.int32) - zeros).astype(np.float32) * steps
    return values


def fake_quantize(values: NDArray[np.floating], qparams: QuantParams) -> FloatArray:
    """Return the values that `values` become when they are quantized."""
    return dequantize(quantize(values, qparams), qparams)


def _broadcast(scale: QuantParams, shape: tuple[int, ...]) -> tuple[FloatArray, IntArray]:
    """Return steps and zeros in a shape that meets a tensor value by value."""
    match scale.granularity:
        case PerTensor():
            return scale.scale, scale.zero_point
        case PerChannel(axis):
            aligned = [-1 if place == axis % len(shape) else 1 for place in range(len(shape))]
            return scale.scale.reshape(aligned), scale.zero_point.reshape(aligned)
        case PerBlock(axis, size):
            whole = np.arange(shape[axis]) // size
            return np.take(scale.scale, whole, axis), np.take(scale.zero_point, whole, axis)
