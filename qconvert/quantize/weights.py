"""The integers of weights and biases, with a scale for each output channel."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qconvert.core.errors import QConvertError
from qconvert.core.scales import (
    FloatArray,
    Grid,
    IntArray,
    QuantParams,
    choose_qparams,
    choose_qparams_for_bounds,
    dequantize,
    quantize,
)
from qconvert.graph import patterns
from qconvert.quantize import pairs
from qconvert.quantize.plan import BIAS_SLOT, NO_ROUNDED_WEIGHTS, LayerPlan, Plan, RoundedWeights

# How many weights are quantized at a time in the search for the least error.
MAX_VALUES_AT_A_TIME = 1 << 22
# A grid with fewer bits is so coarse that clipping up to half of the range may pay.
FINE_BITS = 6
# The rest of the 32 bits is room for the products that are added to a bias.
MAX_INTEGER_BIAS = 2.0**30
# A bias may enlarge the scale of a shared weight by this factor.
MAX_SCALE_GROWTH = 1.5


def minmax_qparams(
    array: FloatArray,
    grid: Grid,
    axis: int,
    scale_dtype: str = "fp32",
    paired: ir.Node | None = None,
) -> QuantParams:
    """Return scales with which the largest weight of each channel is the largest integer.

    With a `paired` node, the largest sum of a pair is within its limit too.
    """
    largest = _largest_per_channel(array, axis)
    if paired is not None:
        largest = np.maximum(largest, _pair_ends(array, grid, paired))
    return choose_qparams_for_bounds(-largest, largest, grid, axis, scale_dtype)


def mse_qparams(
    array: FloatArray,
    grid: Grid,
    axis: int,
    scale_dtype: str = "fp32",
    paired: ir.Node | None = None,
) -> QuantParams:
    """Return for each channel the scale with the least mean squared error of its weights.

    The search is over scale = (1 - n / 64) * max |w| / largest integer, for n = 0 .. 12, and up to
    32 on grids of few integers: weights beyond that are clipped, so that all others are finer. With
    a smaller share, large weights lose too much. With a `paired` node, larger scales are tried too,
    up to that with which all pairs are within their limit. It takes some channels at a time, so
    that memory does not grow with the weight.
    """
    axis %= array.ndim
    others = tuple(other for other in range(array.ndim) if other != axis)
    steps = 13 if grid.bits >= FINE_BITS else 33
    pieces = max(1, min(array.shape[axis], -(-array.size // MAX_VALUES_AT_A_TIME)))
    maxima = []
    for part in np.array_split(array, pieces, axis):
        largest = _largest_per_channel(part, axis)
        ends = [largest * (1.0 - number / 64) for number in range(steps)]
        if paired is not None:
            beyond = np.maximum(_pair_ends(part, grid, paired) - largest, 0.0)
            ends += [largest + beyond * (number / 8) for number in range(1, 9)]
        best, least = largest, np.full(largest.shape, np.inf)
        for end in ends:
            qparams = choose_qparams_for_bounds(-end, end, grid, axis, scale_dtype)
            rounded = dequantize(_round(part, qparams, paired), qparams)
            error = np.square(rounded - part).sum(axis=others, dtype=np.float64)
            better = error < least
            best, least = np.where(better, end, best), np.where(better, error, least)
        maxima.append(best)
    largest = np.concatenate(maxima)
    return choose_qparams_for_bounds(-largest, largest, grid, axis, scale_dtype)


def _pair_ends(array: FloatArray, grid: Grid, paired: ir.Node) -> NDArray[np.float64]:
    """Return for each channel the largest weight of a scale that limits no pair."""
    rows, channels = pairs.kernel_rows(paired, array), pairs.input_channels(paired, array.shape)
    sums = pairs.largest_sums(rows.astype(np.float32), channels)
    return sums * (grid.symmetric_max / pairs.PAIR_LIMIT)


def _largest_per_channel(array: FloatArray, axis: int) -> NDArray[np.float64]:
    others = tuple(other for other in range(array.ndim) if other != axis % array.ndim)
    largest: FloatArray = np.abs(array).max(axis=others, initial=0.0)
    return largest.astype(np.float64)


def _round(array: FloatArray, qparams: QuantParams, paired: ir.Node | None) -> IntArray:
    """Return the nearest integers; those of a `paired` node are within the limit of pairs.

    They are never below the negative of the largest: products of two -128 overflow on ARM.
    """
    integers = np.maximum(quantize(array, qparams), -qparams.grid.symmetric_max)
    if paired is None:
        return integers
    scale = qparams.scale.reshape([-1 if axis == qparams.axis else 1 for axis in range(array.ndim)])
    rows, exact = (pairs.kernel_rows(paired, values) for values in (integers, array / scale))
    channels = pairs.input_channels(paired, array.shape)
    limited = pairs.limit_pairs(rows.astype(np.int32), exact.astype(np.float32), channels)
    return pairs.restore_rows(paired, limited, array.shape).astype(np.int32)


WeightMethod = Callable[[FloatArray, Grid, int, str, ir.Node | None], QuantParams]
WEIGHT_METHODS: Mapping[str, WeightMethod]
WEIGHT_METHODS = {"minmax": minmax_qparams, "mse": mse_qparams}


WeightKey = tuple[ir.Value, int, Grid, bool]


@dataclass(frozen=True, eq=False)
class WeightedLayer:
    """A node with a weight, its grid, the scale of its input, and its bias if that is constant.

    `paired` is the node if its weights are limited in pairs, else None.
    """

    node: ir.Node
    slot: int
    axis: int
    weight: ir.Value
    grid: Grid
    input_scale: float
    bias: FloatArray | None
    integer_bias: bool
    paired: ir.Node | None = None

    @property
    def key(self) -> WeightKey:
        """Layers with one key can share their integers."""
        return self.weight, self.axis, self.grid, self.paired is not None

    def with_room_for_bias(self, qparams: QuantParams) -> QuantParams:
        """Return scales with room for the bias: scale >= |bias| / (input_scale * MAX_INTEGER_BIAS).

        The scale of a bias is input_scale * scale, so a channel of tiny weights may need more.
        """
        if self.bias is None or not self.integer_bias:
            return qparams
        least = np.abs(self.bias.astype(np.float64)) / (self.input_scale * MAX_INTEGER_BIAS)
        scale = np.maximum(qparams.scale.astype(np.float64), least).astype(np.float32)
        return qparams if (least <= qparams.scale).all() else replace(qparams, scale=scale)

    def fits_bias(self, qparams: QuantParams) -> bool:
        """Whether the bias fits with scales that are hardly larger than these."""
        widened = self.with_room_for_bias(qparams)
        return bool((widened.scale <= MAX_SCALE_GROWTH * qparams.scale).all())


def find_weighted_layers(
    layers: Mapping[ir.Node, LayerPlan], plan: Plan
) -> Iterator[WeightedLayer]:
    """Yield the layers of a plan that have a weight."""
    for node, layer in layers.items():
        weight = node.inputs[layer.weight.slot] if layer.weight is not None else None
        if layer.weight is None or weight is None:
            continue
        input_scale, integer_bias = 1.0, plan.integer_bias and bool(layer.inputs)
        if integer_bias:
            value_range = plan.tensors[str(node.inputs[0].name)]  # type: ignore[union-attr]
            qparams = choose_qparams(value_range, plan.activations, plan.rest)
            input_scale = float(qparams.scale)
        slot, axis = layer.weight.slot, layer.weight.axis
        # A bias has one number for each channel of the weight.
        value = node.inputs[BIAS_SLOT] if len(node.inputs) > BIAS_SLOT else None
        bias, array = None, patterns.constant_array(value)
        channels = weight.shape[axis] if weight.shape is not None else None
        if array is not None and array.size == channels == array.shape[-1]:
            bias = array.astype(np.float32).reshape(-1)
            _require_finite(bias, "bias", value, node)
        limited = plan.portable and pairs.adds_pairs(node, patterns.weight_shape(node))
        paired = node if limited else None
        grid = plan.grid_of_weight(layer.weight)
        yield WeightedLayer(node, slot, axis, weight, grid, input_scale, bias, integer_bias, paired)


def weight_qparams(
    layers: Sequence[WeightedLayer], plan: Plan, learned: RoundedWeights = NO_ROUNDED_WEIGHTS
) -> list[QuantParams]:
    """Return the quantization parameters of each weight, one object for layers that share it.

    A layer whose bias needs scales much larger than the weight's own has its own integers:
    its bias must not make the weight coarse for all others.
    """
    own: dict[WeightKey, QuantParams] = {}
    shared: dict[WeightKey, QuantParams] = {}
    for layer in layers:
        if layer.key not in own:
            array = weight_array(layer.weight, layer.node)
            rounded = learned.get(layer.node.name or "")
            if rounded is not None:
                zero_points = np.zeros_like(rounded.steps, np.int32)
                qparams = QuantParams(rounded.steps, zero_points, layer.grid, layer.axis)
            else:
                method = WEIGHT_METHODS[plan.weight_method]
                qparams = method(array, layer.grid, layer.axis, plan.rest, layer.paired)
            own[layer.key] = shared[layer.key] = qparams
        if layer.fits_bias(own[layer.key]):
            shared[layer.key] = layer.with_room_for_bias(shared[layer.key])
    return [
        shared[layer.key]
        if layer.fits_bias(own[layer.key])
        else layer.with_room_for_bias(own[layer.key])
        for layer in layers
    ]


def weight_array(value: ir.Value, node: ir.Node) -> FloatArray:
    """Return the array of a weight, in float32; all its values must be finite."""
    tensor = ir.convenience.get_const_tensor(value)
    array = np.asarray(tensor.numpy() if tensor is not None else np.nan, dtype=np.float32)
    _require_finite(array, "weight", value, node)
    return array


def rounded_integers(
    layer: WeightedLayer, qparams: QuantParams, learned: RoundedWeights
) -> NDArray[np.generic]:
    """Return the integers of a layer: learned ones that have these steps, else the nearest."""
    rounded = learned.get(layer.node.name or "")
    if rounded is not None and qparams.scale is rounded.steps and layer.paired is None:
        return rounded.integers
    return quantize_weight(weight_array(layer.weight, layer.node), qparams, layer.paired)


def quantize_weight(
    array: FloatArray, qparams: QuantParams, paired: ir.Node | None = None
) -> NDArray[np.generic]:
    """Return a weight as integers, in the type that stores its grid."""
    integers = _round(array, qparams, paired)
    return integers.astype(ir.DataType[qparams.grid.onnx_dtype.upper()].numpy())


def quantize_bias(bias: FloatArray, scale: FloatArray) -> NDArray[np.int32]:
    """Return a bias as integers: clip(round(bias / scale)), with one scale for each channel."""
    integers = np.rint(bias.astype(np.float64) / scale.astype(np.float64))
    limits = np.iinfo(np.int32)
    return np.clip(integers, limits.min, limits.max).astype(np.int32)


def _require_finite(array: FloatArray, role: str, value: ir.Value | None, node: ir.Node) -> None:
    invalid = int(array.size - np.isfinite(array).sum())
    if invalid:
        name = value.name if value is not None else ""
        raise QConvertError(
            f"the {role} `{name}` of `{node.name}` has {invalid} values that are not finite",
            hint="the model is damaged or its training diverged; check its checkpoint",
        )
