"""Weights and biases as integers: stored once, a scale for each channel."""

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qconvert.errors import QConvertError
from qconvert.scales import Floats, Grid, PerChannel, Scale, over, quantize, rounded

# Shares of the largest weight that a scale may reach to. Below, large weights lose too much.
REACHES = 1.0 - np.arange(13) / 64
# How many weights are rounded at a time, to try one reach after the other.
MOST_VALUES = 1 << 22
# Room for the products that are added to a bias in 32 bits.
LARGEST_BIAS = 2.0**30

WeightMethod = Callable[[Floats, Grid, int, str], Scale]


def minmax(array: Floats, grid: Grid, axis: int, steps_in: str = "fp32") -> Scale:
    """Return scales that reach to the largest weight of each channel."""
    return _reaching(_largest(array, axis), grid, axis, steps_in)


def mse(array: Floats, grid: Grid, axis: int, steps_in: str = "fp32") -> Scale:
    """Return for each channel the scale with the least squared error of its weights.

    Some channels are looked at after the others, so that memory does not grow with the weight.
    """
    axis %= array.ndim
    pieces = max(1, min(array.shape[axis], -(-array.size // MOST_VALUES)))
    parts = np.array_split(array, pieces, axis)
    best = np.concatenate([_best_reach(part, grid, axis, steps_in) for part in parts])
    return _reaching(best, grid, axis, steps_in)


def _best_reach(array: Floats, grid: Grid, axis: int, steps_in: str) -> NDArray[np.float64]:
    largest = _largest(array, axis)
    others = tuple(place for place in range(array.ndim) if place != axis)
    best, least = largest, np.full(largest.shape, np.inf)
    for reach in REACHES:
        scale = _reaching(largest * reach, grid, axis, steps_in)
        error = np.square(rounded(array, scale) - array).sum(axis=others, dtype=np.float64)
        better = error < least
        best, least = np.where(better, largest * reach, best), np.where(better, error, least)
    return best


METHODS: Mapping[str, WeightMethod] = {"minmax": minmax, "mse": mse}


def weight_of(value: ir.Value, node: ir.Node) -> Floats:
    """Return the array of a weight; refuse one with values that are not finite."""
    tensor = ir.convenience.get_const_tensor(value)
    array = np.asarray(tensor.numpy() if tensor is not None else np.nan, dtype=np.float32)
    require_finite(array, "weight", value, node)
    return array


def require_finite(array: Floats, what: str, value: ir.Value | None, node: ir.Node) -> None:
    """Refuse a constant with values that are not finite, by its name."""
    wrong = int(array.size - np.isfinite(array).sum())
    if wrong:
        name = value.name if value is not None else ""
        raise QConvertError(
            f"the {what} `{name}` of `{node.name}` holds {wrong} values that are not finite",
            hint="the model is damaged or was not trained to its end; look at its checkpoint",
        )


def room_for_bias(scale: Scale, bias: Floats, step: float) -> Scale:
    """Return a scale whose bias fits into 32 bits: a channel of tiny weights gets larger steps.

    `step` is that of the activation; a bias has steps of `step` times those of the weight.
    """
    least = np.abs(bias.astype(np.float64)) / (step * LARGEST_BIAS)
    if (least <= scale.steps).all():
        return scale
    steps = np.maximum(scale.steps.astype(np.float64), least).astype(np.float32)
    return Scale(steps, scale.zeros, scale.grid, scale.granularity)


def integer_bias(bias: Floats, steps: Floats) -> NDArray[np.int32]:
    """Return a bias as integers of these steps, one for each channel."""
    wanted = np.rint(bias.astype(np.float64) / steps.astype(np.float64))
    limits = np.iinfo(np.int32)
    return np.clip(wanted, limits.min, limits.max).astype(np.int32)


def integers(array: Floats, scale: Scale) -> NDArray[np.generic]:
    """Return a weight as integers, in the narrowest type that holds them."""
    kind = ir.DataType[scale.grid.storage.upper()]
    return quantize(array, scale).astype(kind.numpy())


def _largest(array: Floats, axis: int) -> NDArray[np.float64]:
    others = tuple(place for place in range(array.ndim) if place != axis % array.ndim)
    largest: NDArray[np.float64] = np.abs(array).max(axis=others, initial=0.0).astype(np.float64)
    return largest


def _reaching(reach: NDArray[np.float64], grid: Grid, axis: int, steps_in: str) -> Scale:
    return over(-reach, reach, grid, PerChannel(axis), steps_in)
