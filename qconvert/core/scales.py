"""The arithmetic of quantization: ranges, integer grids, and the scales that map one to the other.

    integer = clip(round(value / scale) + zero_point, quant_min, quant_max)
    value   = (integer - zero_point) * scale

Rounding is to the nearest integer, halves to even. Zero is represented exactly; no scale is zero.
"""

import math
from dataclasses import dataclass

import ml_dtypes
import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int32]

# Larger values count as infinite: sums of them overflow, and no scale covers them.
MAX_MAGNITUDE = 1e30
# A smaller scale stands for values that no layer distinguishes from zero; fp16 has no smaller one.
MIN_SCALE = {"fp32": 2.0**-100, "fp16": 2.0**-24, "bf16": 2.0**-100}
SCALE_DTYPES: dict[str, np.dtype[np.generic]] = {
    "fp32": np.dtype(np.float32),
    "fp16": np.dtype(np.float16),
    "bf16": np.dtype(ml_dtypes.bfloat16),
}


@dataclass(frozen=True)
class Range:
    """The values of a tensor that are represented; values outside are clipped to the nearer end."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low <= self.high):
            raise ValueError(f"the ends of a range must ascend, got {self.low} .. {self.high}")

    @property
    def max_abs(self) -> float:
        """The largest magnitude, which a symmetric grid must reach."""
        return max(abs(self.low), abs(self.high))


@dataclass(frozen=True)
class Grid:
    """The integers of a quantized tensor: symmetric around zero, or shifted by a zero point."""

    bits: int = 8
    symmetric: bool = True
    signed: bool = True

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 16:
            raise ValueError(f"a grid has 2 to 16 bits, got {self.bits}")
        if self.symmetric and not self.signed:
            raise ValueError("a symmetric grid must be signed")

    @property
    def levels(self) -> int:
        """The number of integers."""
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
    def fills_type(self) -> bool:
        """Whether every number of the type that stores the integers is one of them."""
        return self.bits in (8, 16)

    @property
    def onnx_dtype(self) -> str:
        """The ONNX type that stores the integers, as `int8`; kernels take none below 8 bits."""
        return f"{'' if self.signed else 'u'}int{8 if self.bits <= 8 else 16}"


@dataclass(frozen=True, eq=False)
class QuantParams:
    """Scale and zero point of a whole tensor, or of each index of `axis`."""

    scale: FloatArray
    zero_point: IntArray
    grid: Grid
    axis: int | None = None

    def __post_init__(self) -> None:
        if not (np.isfinite(self.scale).all() and (self.scale > 0).all()):
            raise ValueError("scales must be finite and above zero")


def choose_qparams(value_range: Range, grid: Grid, scale_dtype: str = "fp32") -> QuantParams:
    """Return the parameters with which a whole tensor represents a range."""
    # In double precision, so that the range of a grid gives back its scale to the last bit.
    return choose_qparams_for_bounds(value_range.low, value_range.high, grid, None, scale_dtype)


def choose_qparams_for_bounds(
    lows: ArrayLike, highs: ArrayLike, grid: Grid, axis: int | None, scale_dtype: str = "fp32"
) -> QuantParams:
    """Return the parameters that represent `lows` to `highs`, with scales exact in `scale_dtype`.

    symmetric:  scale = max(-low, high) / symmetric_max,  zero_point = 0
    asymmetric: scale = (high - low) / (levels - 1),      zero_point = round(-low / scale) + min
    """
    low = np.minimum(np.asarray(lows, dtype=np.float64), 0.0)
    high = np.maximum(np.asarray(highs, dtype=np.float64), 0.0)
    if grid.symmetric:
        scale = round_scale_up(np.maximum(-low, high) / grid.symmetric_max, scale_dtype)
        return QuantParams(scale, np.zeros(scale.shape, dtype=np.int32), grid, axis)
    scale = round_scale_up((high - low) / (grid.levels - 1), scale_dtype)
    zero_point = np.clip(np.rint(-low / scale) + grid.quant_min, grid.quant_min, grid.quant_max)
    return QuantParams(scale, zero_point.astype(np.int32), grid, axis)


def exceeds_scale_dtype(value_range: Range, grid: Grid, scale_dtype: str) -> bool:
    """Whether a range needs a scale beyond the largest number of its type."""
    largest = float(ml_dtypes.finfo(SCALE_DTYPES[scale_dtype]).max)  # type: ignore[no-untyped-call]
    low, high = min(value_range.low, 0.0), max(value_range.high, 0.0)
    span = 2 * max(-low, high) if grid.symmetric else high - low
    return span / (grid.levels - 1) > largest / 2


def round_scale_up(scale: NDArray[np.float64], scale_dtype: str) -> FloatArray:
    """Return scales that the type represents exactly: the next ones above, never zero."""
    # A smaller scale would clip the ends; one rounded later would shift every value.
    dtype = SCALE_DTYPES[scale_dtype]
    minimum = np.maximum(scale, MIN_SCALE[scale_dtype])
    nearest = minimum.astype(dtype)
    above = np.nextafter(nearest, dtype.type(np.inf))
    rounded = np.where(nearest.astype(np.float64) < minimum, above, nearest)
    return np.asarray(rounded, np.float32)


def quantize(values: NDArray[np.floating], qparams: QuantParams) -> IntArray:
    """Return the integers nearest to the values, clipped to the grid."""
    values = np.asarray(values, dtype=np.float32)
    scale, zero_point = _broadcast(qparams, values.ndim)
    # In place and in float32, which represents every integer of a grid: weights can be large.
    integers = np.asarray(values / scale)
    np.rint(integers, out=integers)
    integers += zero_point.astype(np.float32)
    np.clip(integers, qparams.grid.quant_min, qparams.grid.quant_max, out=integers)
    return integers.astype(np.int32)


def dequantize(integers: NDArray[np.integer], qparams: QuantParams) -> FloatArray:
    """Return the values that the integers represent."""
    scale, zero_point = _broadcast(qparams, integers.ndim)
    values: FloatArray = (integers.astype(np.int32) - zero_point).astype(np.float32) * scale
    return values


def fake_quantize(values: NDArray[np.floating], qparams: QuantParams) -> FloatArray:
    """Quantize and dequantize: return the values that a quantized tensor represents."""
    return dequantize(quantize(values, qparams), qparams)


def _broadcast(qparams: QuantParams, rank: int) -> tuple[FloatArray, IntArray]:
    """Return scale and zero point in a shape that broadcasts over a tensor."""
    if qparams.axis is None:
        return qparams.scale, qparams.zero_point
    shape = [1] * rank
    shape[qparams.axis] = -1
    return qparams.scale.reshape(shape), qparams.zero_point.reshape(shape)
