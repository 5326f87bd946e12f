"""Integers of weights with a scale for each group of inputs: the arithmetic of weight-only formats.

A weight is a matrix [output, input]. Each output has one scale (and zero point) for so many inputs
in a row, which ONNX calls a block:

    weight[o, i] = (integer[o, i] - zero_point[o, g]) * scale[o, g],    g = i // group

Activations stay in float, so the smallest integer of a symmetric grid is used too: no kernel adds
products of two bytes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from qconvert.core.scales import FloatArray, Grid, IntArray, round_scale_up

# Weights that are searched at a time, so that memory does not grow with the weight.
MAX_VALUES_AT_A_TIME = 1 << 20
# The search for a scale clips a range of four bits down to this share, finer grids less.
MIN_SHARE, FINE_MIN_SHARE, SHARE_STEP, FINE_BITS = 0.5, 0.8125, 1 / 32, 6


@dataclass(frozen=True)
class WeightFormat:
    """How a weight-only format stores a weight: its grid, and how many inputs share a scale.

    A `group` of None is all inputs of an output: a scale for each channel. Scales are exact in
    `scale_dtype`.
    """

    grid: Grid
    group: int | None
    scale_dtype: str = "fp32"

    def group_size(self, inputs: int) -> int:
        """Return how many inputs of a weight with so many share a scale."""
        return inputs if self.group is None else self.group


@dataclass(frozen=True, eq=False)
class GroupedWeight:
    """The integers of a weight as [output, input], scales and zero points as [output, group]."""

    integers: IntArray
    scales: FloatArray
    zero_points: IntArray
    grid: Grid
    group: int

    def __post_init__(self) -> None:
        outputs, inputs = self.integers.shape
        shape = outputs, -(-inputs // self.group)
        if not self.scales.shape == self.zero_points.shape == shape:
            raise ValueError(f"{inputs} inputs in groups of {self.group} need scales of {shape}")

    def input_scales(self) -> FloatArray:
        """Return the scale of every weight."""
        return np.repeat(self.scales, self.group, axis=1)[:, : self.integers.shape[1]]

    def input_zero_points(self) -> IntArray:
        """Return the zero point of every weight."""
        return np.repeat(self.zero_points, self.group, axis=1)[:, : self.integers.shape[1]]

    def shifted(self) -> FloatArray:
        """Return the integers less their zero points, as floats."""
        return (self.integers - self.input_zero_points()).astype(np.float32)

    def dequantize(self) -> FloatArray:
        """Return the weight that the integers stand for."""
        values: FloatArray = self.shifted() * self.input_scales()
        return values

    def outputs(self, part: slice) -> "GroupedWeight":
        """Return some of the outputs."""
        arrays = self.integers[part], self.scales[part], self.zero_points[part]
        return GroupedWeight(*arrays, self.grid, self.group)

    def with_group(self, group: int) -> "GroupedWeight":
        """Return the same weight in smaller groups, each with a copy of its scale."""
        count = -(-self.integers.shape[1] // group)
        first = np.arange(count) * group // self.group
        scales, zero_points = self.scales[:, first], self.zero_points[:, first]
        return replace(self, scales=scales, zero_points=zero_points, group=group)

    @property
    def stored_bytes(self) -> int:
        """The bytes of integers, scales and zero points, as files hold them."""
        zero_points = 0 if self.grid.symmetric else self.zero_points.size
        bits = self.grid.bits * (self.integers.size + zero_points)
        return -(-bits // 8) + self.scales.nbytes


ScaleMethod = Callable[[FloatArray, WeightFormat, FloatArray], tuple[FloatArray, IntArray]]


def minmax_scales(
    groups: FloatArray, kind: WeightFormat, importance: FloatArray
) -> tuple[FloatArray, IntArray]:
    """Return the scale and zero point with which the ends of each group are integers.

    symmetric:  scale = max |w| / 2^(bits-1) - 1,       zero_point = 0
    asymmetric: scale = (high - low) / (2^bits - 1),    zero_point = round(-low / scale)
    """
    return _scales_of_ends(*_ends(groups), kind)


def mse_scales(
    groups: FloatArray, kind: WeightFormat, importance: FloatArray
) -> tuple[FloatArray, IntArray]:
    """Return the scale and zero point of each group with the least weighted squared error.

    The search cuts both ends of the range in steps of 1/32: weights beyond are clipped, so that all
    others are finer. An asymmetric grid has its ends cut one by one. `importance` weighs the error
    of each input by how large it is, as the diagonal of X X' says.
    """
    low, high = _ends(groups)
    least = FINE_MIN_SHARE if kind.grid.bits >= FINE_BITS else MIN_SHARE
    shares = np.arange(1.0, least - SHARE_STEP / 2, -SHARE_STEP)
    pairs = [(share, share) for share in shares]
    if not kind.grid.symmetric:
        coarse = shares[::4]
        pairs += [(left, right) for left in coarse for right in coarse if left != right]
    best = _scales_of_ends(low, high, kind)
    lowest = np.full(low.shape, np.inf)
    for left, right in pairs:
        scale, zero_point = _scales_of_ends(low * left, high * right, kind)
        rounded = _round(groups, scale[..., np.newaxis], zero_point[..., np.newaxis], kind.grid)
        values = (rounded - zero_point[..., np.newaxis]).astype(np.float32)
        error = np.square(values * scale[..., np.newaxis] - groups)
        error = (error * importance).sum(axis=-1)
        better = error < lowest
        lowest = np.where(better, error, lowest)
        best = np.where(better, scale, best[0]), np.where(better, zero_point, best[1])
    return best


SCALE_METHODS: dict[str, ScaleMethod] = {"minmax": minmax_scales, "mse": mse_scales}


def choose_scales(
    weight: FloatArray,
    kind: WeightFormat,
    method: str,
    importance: NDArray[np.floating] | None = None,
) -> GroupedWeight:
    """Return a weight [output, input] rounded to nearest, with the scales of a method.

    `importance` has a number for each input, by default all alike.
    """
    outputs, inputs = weight.shape
    size = kind.group_size(inputs)
    count = -(-inputs // size)
    missing = count * size - inputs
    # Zeros that fill up the last group are on every grid, and weigh nothing.
    weighed = np.ones(inputs, np.float32) if importance is None else importance.astype(np.float32)
    weighed = np.pad(weighed / (weighed.mean() or 1.0), (0, missing)).reshape(count, size)
    scales = np.empty((outputs, count), np.float32)
    zero_points = np.empty((outputs, count), np.int32)
    rows = max(1, MAX_VALUES_AT_A_TIME // (count * size))
    for start in range(0, outputs, rows):
        part = np.pad(weight[start : start + rows], ((0, 0), (0, missing)))
        groups = part.reshape(len(part), count, size)
        chosen = SCALE_METHODS[method](groups, kind, weighed)
        scales[start : start + rows], zero_points[start : start + rows] = chosen
    empty = GroupedWeight(np.zeros(weight.shape, np.int32), scales, zero_points, kind.grid, size)
    return round_to_nearest(weight, empty)


def join_outputs(parts: Sequence[GroupedWeight]) -> GroupedWeight:
    """Return the weight whose outputs are those of all parts."""
    return replace(
        parts[0],
        integers=np.concatenate([part.integers for part in parts]),
        scales=np.concatenate([part.scales for part in parts]),
        zero_points=np.concatenate([part.zero_points for part in parts]),
    )


def round_to_nearest(weight: FloatArray, scales: GroupedWeight) -> GroupedWeight:
    """Return the nearest integers of a weight with the scales of another."""
    integers = _round(weight, scales.input_scales(), scales.input_zero_points(), scales.grid)
    return replace(scales, integers=integers)


def _ends(groups: FloatArray) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    low, high = groups.min(axis=-1, initial=0.0), groups.max(axis=-1, initial=0.0)
    return low.astype(np.float64), high.astype(np.float64)


def _scales_of_ends(
    low: NDArray[np.float64], high: NDArray[np.float64], kind: WeightFormat
) -> tuple[FloatArray, IntArray]:
    grid = kind.grid
    if grid.symmetric:
        scale = round_scale_up(np.maximum(-low, high) / grid.symmetric_max, kind.scale_dtype)
        return scale, np.zeros(scale.shape, np.int32)
    scale = round_scale_up((high - low) / (grid.levels - 1), kind.scale_dtype)
    zero_point = np.clip(np.rint(-low / scale) + grid.quant_min, grid.quant_min, grid.quant_max)
    return scale, zero_point.astype(np.int32)


def _round(weight: FloatArray, scale: FloatArray, zero_point: IntArray, grid: Grid) -> IntArray:
    integers = np.rint(weight / scale) + zero_point
    clipped: IntArray = np.clip(integers, grid.quant_min, grid.quant_max).astype(np.int32)
    return clipped
