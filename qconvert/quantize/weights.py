"""Weights and biases as integers, with a scale for each output channel."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qconvert.core.errors import QConvertError
from qconvert.core.scales import (
    FloatArray,
    Grid,
    QuantParams,
    choose_qparams,
    choose_qparams_for_bounds,
    fake_quantize,
    quantize,
)
from qconvert.graph.patterns import constant_array
from qconvert.quantize.plan import LayerPlan, Plan
from qconvert.quantize.qdq_builder import QDQBuilder
from qconvert.quantize.rounded_weights import NO_ROUNDED_WEIGHTS, RoundedWeights

# The shares of the largest weight that are tried as the largest value. With less, large weights
# lose too much.
CLIPPING_SHARES = 1.0 - np.arange(13) / 64
# How many weights are quantized at a time in that search.
MAX_VALUES_AT_A_TIME = 1 << 22
# The rest of the 32 bits is room for the products that are added to a bias.
MAX_INTEGER_BIAS = 2.0**30
# A bias may enlarge the scale of a shared weight by this factor.
MAX_SCALE_GROWTH = 1.5
BIAS_SLOT = 2

WeightMethod = Callable[[FloatArray, Grid, int, str], QuantParams]


def minmax_qparams(
    array: FloatArray, grid: Grid, axis: int, scale_dtype: str = "fp32"
) -> QuantParams:
    """Return scales with which the largest weight of each channel is the largest integer."""
    return _qparams_up_to(_largest_per_channel(array, axis), grid, axis, scale_dtype)


def mse_qparams(array: FloatArray, grid: Grid, axis: int, scale_dtype: str = "fp32") -> QuantParams:
    """Return for each channel the scale with the least mean squared error of its weights.

    The search is over share in CLIPPING_SHARES, with scale = share * max |w| / largest integer:
    weights beyond the share are clipped, so that all others are finer. It takes some channels at a
    time, so that memory does not grow with the weight.
    """
    axis %= array.ndim
    pieces = max(1, min(array.shape[axis], -(-array.size // MAX_VALUES_AT_A_TIME)))
    parts = np.array_split(array, pieces, axis)
    best = np.concatenate([_best_maximum(part, grid, axis, scale_dtype) for part in parts])
    return _qparams_up_to(best, grid, axis, scale_dtype)


def _best_maximum(
    array: FloatArray, grid: Grid, axis: int, scale_dtype: str
) -> NDArray[np.float64]:
    largest = _largest_per_channel(array, axis)
    other_axes = tuple(other for other in range(array.ndim) if other != axis)
    best, least = largest, np.full(largest.shape, np.inf)
    for share in CLIPPING_SHARES:
        qparams = _qparams_up_to(largest * share, grid, axis, scale_dtype)
        difference = fake_quantize(array, qparams) - array
        error = np.square(difference).sum(axis=other_axes, dtype=np.float64)
        better = error < least
        best, least = np.where(better, largest * share, best), np.where(better, error, least)
    return best


def _largest_per_channel(array: FloatArray, axis: int) -> NDArray[np.float64]:
    other_axes = tuple(other for other in range(array.ndim) if other != axis % array.ndim)
    largest: NDArray[np.float64] = np.abs(array).max(axis=other_axes, initial=0.0)
    return largest.astype(np.float64)


def _qparams_up_to(
    maximum: NDArray[np.float64], grid: Grid, axis: int, scale_dtype: str
) -> QuantParams:
    return choose_qparams_for_bounds(-maximum, maximum, grid, axis, scale_dtype)


WEIGHT_METHODS: Mapping[str, WeightMethod] = {"minmax": minmax_qparams, "mse": mse_qparams}


@dataclass(frozen=True, eq=False)
class WeightedLayer:
    """A node with a weight, the scale of its input, and its bias if that is constant.

    With `integer_bias` the bias becomes integers too.
    """

    node: ir.Node
    slot: int
    axis: int
    weight: ir.Value
    input_scale: float
    bias: FloatArray | None
    integer_bias: bool

    @property
    def key(self) -> tuple[ir.Value, int]:
        """Layers with one key can share their integers."""
        return self.weight, self.axis

    def with_room_for_bias(self, qparams: QuantParams) -> QuantParams:
        """Return scales with which the integers of the bias fit into 32 bits."""
        if self.bias is None or not self.integer_bias:
            return qparams
        return widen_for_bias(qparams, self.bias, self.input_scale)


def widen_for_bias(qparams: QuantParams, bias: FloatArray, input_scale: float) -> QuantParams:
    """Return scales with room for a bias: scale >= |bias| / (input_scale * MAX_INTEGER_BIAS).

    The scale of a bias is input_scale * scale, so a channel of tiny weights may need a larger one.
    """
    least = np.abs(bias.astype(np.float64)) / (input_scale * MAX_INTEGER_BIAS)
    if (least <= qparams.scale).all():
        return qparams
    scale = np.maximum(qparams.scale.astype(np.float64), least).astype(np.float32)
    return replace(qparams, scale=scale)


def find_weighted_layers(
    layers: Mapping[ir.Node, LayerPlan], plan: Plan
) -> Iterator[WeightedLayer]:
    """Yield the layers of a plan that have a weight."""
    for node, layer in layers.items():
        weight = node.inputs[layer.weight.slot] if layer.weight is not None else None
        if layer.weight is None or weight is None:
            continue
        slot, axis = layer.weight.slot, layer.weight.axis
        input_scale, integer_bias = 1.0, plan.integer_bias and bool(layer.inputs)
        if integer_bias:
            value_range = plan.tensors[str(node.inputs[0].name)]  # type: ignore[union-attr]
            qparams = choose_qparams(value_range, plan.activations, plan.rest)
            input_scale = float(qparams.scale)
        bias = _constant_bias(node, weight, axis)
        yield WeightedLayer(node, slot, axis, weight, input_scale, bias, integer_bias)


def quantize_weights(
    builder: QDQBuilder, layers: Sequence[WeightedLayer], plan: Plan, learned: RoundedWeights
) -> None:
    """Let each layer read its weight, and with integer biases its bias, from integers."""
    dequantized: dict[int, ir.Value] = {}
    for layer, qparams in zip(layers, weight_qparams(layers, plan, learned), strict=True):
        if id(qparams) not in dequantized:
            array = quantize_weight(weight_array(layer.weight, layer.node), qparams)
            integers = builder.add_constant(array, f"{layer.weight.name}_quantized")
            dequantized[id(qparams)] = builder.dequantize(
                integers, qparams.scale, layer.axis, layer.node
            )
        layer.node.replace_input_with(layer.slot, dequantized[id(qparams)])
        if layer.bias is not None and layer.integer_bias:
            _quantize_bias(builder, layer, layer.bias, qparams)
    for layer in layers:
        _drop_unused(builder.graph, layer.weight)


def weight_qparams(
    layers: Sequence[WeightedLayer], plan: Plan, learned: RoundedWeights = NO_ROUNDED_WEIGHTS
) -> list[QuantParams]:
    """Return the quantization parameters of each weight, one object for layers that share it.

    A layer whose bias needs scales much larger than the weight's own has the integers for itself:
    its bias must not make the weight coarse for all others.
    """
    method = WEIGHT_METHODS[plan.weight_method]
    own: dict[tuple[ir.Value, int], QuantParams] = {}
    shared: dict[tuple[ir.Value, int], QuantParams] = {}
    for layer in layers:
        if layer.key not in own:
            array = weight_array(layer.weight, layer.node)
            rounded = learned.get(layer.node.name or "")
            if rounded is not None:
                zero_points = np.zeros_like(rounded.steps, np.int32)
                qparams = QuantParams(rounded.steps, zero_points, plan.weights, layer.axis)
            else:
                qparams = method(array, plan.weights, layer.axis, plan.rest)
            own[layer.key] = shared[layer.key] = qparams
        if _bias_fits(layer, own[layer.key]):
            shared[layer.key] = layer.with_room_for_bias(shared[layer.key])
    return [
        shared[layer.key]
        if _bias_fits(layer, own[layer.key])
        else layer.with_room_for_bias(own[layer.key])
        for layer in layers
    ]


def weight_array(value: ir.Value, node: ir.Node) -> FloatArray:
    """Return the array of a weight, in float32; all its values must be finite."""
    tensor = ir.convenience.get_const_tensor(value)
    array = np.asarray(tensor.numpy() if tensor is not None else np.nan, dtype=np.float32)
    _require_finite(array, "weight", value, node)
    return array


def quantize_weight(array: FloatArray, qparams: QuantParams) -> NDArray[np.generic]:
    """Return a weight as integers, in the narrowest type that holds them."""
    return quantize(array, qparams).astype(ir.DataType[qparams.grid.onnx_dtype.upper()].numpy())


def quantize_bias(bias: FloatArray, scale: FloatArray) -> NDArray[np.int32]:
    """Return a bias as integers: clip(round(bias / scale)), with one scale for each channel."""
    integers = np.rint(bias.astype(np.float64) / scale.astype(np.float64))
    limits = np.iinfo(np.int32)
    return np.clip(integers, limits.min, limits.max).astype(np.int32)


def _bias_fits(layer: WeightedLayer, qparams: QuantParams) -> bool:
    """Whether the bias of a layer fits with scales that are hardly larger than these."""
    roomy = layer.with_room_for_bias(qparams)
    return bool((roomy.scale <= MAX_SCALE_GROWTH * qparams.scale).all())


def _quantize_bias(
    builder: QDQBuilder, layer: WeightedLayer, bias: FloatArray, qparams: QuantParams
) -> None:
    """Store the bias as integers with scale = input_scale * weight scale; no layer shares it."""
    node, old = layer.node, layer.node.inputs[BIAS_SLOT]
    scale = np.float32(layer.input_scale) * qparams.scale
    name = f"{old.name if old is not None else node.name}_quantized"
    integers = builder.add_constant(quantize_bias(bias, scale), name)
    node.replace_input_with(BIAS_SLOT, builder.dequantize(integers, scale, 0, node))
    if old is not None:
        _drop_unused(builder.graph, old)


def _constant_bias(node: ir.Node, weight: ir.Value, axis: int) -> FloatArray | None:
    """Return the constant bias of a node, one number for each channel of its weight."""
    value = node.inputs[BIAS_SLOT] if len(node.inputs) > BIAS_SLOT else None
    array = constant_array(value)
    channels = weight.shape[axis] if weight.shape is not None else None
    if array is None or array.size != channels or array.shape[-1] != channels:
        return None
    bias = array.astype(np.float32).reshape(-1)
    _require_finite(bias, "bias", value, node)
    return bias


def _require_finite(array: FloatArray, role: str, value: ir.Value | None, node: ir.Node) -> None:
    invalid = int(array.size - np.isfinite(array).sum())
    if invalid:
        name = value.name if value is not None else ""
        raise QConvertError(
            f"the {role} `{name}` of `{node.name}` has {invalid} values that are not finite",
            hint="the model is damaged or its training diverged; check its checkpoint",
        )


def _drop_unused(graph: ir.Graph, value: ir.Value) -> None:
    """Remove a constant that nothing reads any more."""
    name = value.name or ""
    if name in graph.initializers and not value.uses() and not value.is_graph_output():
        del graph.initializers[name]
