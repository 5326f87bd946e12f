"""Weights and biases as integers: stored once, a scale for each channel."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qconvert.core.errors import QConvertError
from qconvert.core.scales import (
    FloatArray,
    Grid,
    PerChannel,
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

# Shares of the largest weight that a scale may reach to. Below, large weights lose too much.
SCALE_FRACTIONS = 1.0 - np.arange(13) / 64
# How many weights are rounded at a time, to try one reach after the other.
MAX_VALUES_AT_A_TIME = 1 << 22
# Room for the products that are added to a bias in 32 bits.
MAX_INTEGER_BIAS = 2.0**30

WeightMethod = Callable[[FloatArray, Grid, int, str], QuantParams]


def minmax_scale(array: FloatArray, grid: Grid, axis: int, steps_in: str = "fp32") -> QuantParams:
    """Return scales that reach to the largest weight of each channel."""
    return _scale_to(_largest_per_channel(array, axis), grid, axis, steps_in)


def mse_scale(array: FloatArray, grid: Grid, axis: int, steps_in: str = "fp32") -> QuantParams:
    """Return for each channel the scale with the least squared error of its weights.

    Some channels are looked at after the others, so that memory does not grow with the weight.
    """
    axis %= array.ndim
    pieces = max(1, min(array.shape[axis], -(-array.size // MAX_VALUES_AT_A_TIME)))
    parts = np.array_split(array, pieces, axis)
    best = np.concatenate([_best_maximum(part, grid, axis, steps_in) for part in parts])
    return _scale_to(best, grid, axis, steps_in)


def _best_maximum(array: FloatArray, grid: Grid, axis: int, steps_in: str) -> NDArray[np.float64]:
    largest = _largest_per_channel(array, axis)
    others = tuple(place for place in range(array.ndim) if place != axis)
    best, least = largest, np.full(largest.shape, np.inf)
    for reach in SCALE_FRACTIONS:
        scale = _scale_to(largest * reach, grid, axis, steps_in)
        error = np.square(fake_quantize(array, scale) - array).sum(axis=others, dtype=np.float64)
        better = error < least
        best, least = np.where(better, largest * reach, best), np.where(better, error, least)
    return best


WEIGHT_METHODS: Mapping[str, WeightMethod] = {"minmax": minmax_scale, "mse": mse_scale}


def weight_array(value: ir.Value, node: ir.Node) -> FloatArray:
    """Return the array of a weight; refuse one with values that are not finite."""
    tensor = ir.convenience.get_const_tensor(value)
    array = np.asarray(tensor.numpy() if tensor is not None else np.nan, dtype=np.float32)
    require_finite(array, "weight", value, node)
    return array


def require_finite(array: FloatArray, what: str, value: ir.Value | None, node: ir.Node) -> None:
    """Refuse a constant with values that are not finite, by its name."""
    wrong = int(array.size - np.isfinite(array).sum())
    if wrong:
        name = value.name if value is not None else ""
        raise QConvertError(
            f"the {what} `{name}` of `{node.name}` holds {wrong} values that are not finite",
            hint="the model is damaged or was not trained to its end; look at its checkpoint",
        )


def widen_for_bias(scale: QuantParams, bias: FloatArray, step: float) -> QuantParams:
    """Return a scale whose bias fits into 32 bits: a channel of tiny weights gets larger steps.

    `step` is that of the activation; a bias has steps of `step` times those of the weight.
    """
    least = np.abs(bias.astype(np.float64)) / (step * MAX_INTEGER_BIAS)
    if (least <= scale.scale).all():
        return scale
    steps = np.maximum(scale.scale.astype(np.float64), least).astype(np.float32)
    return QuantParams(steps, scale.zero_point, scale.grid, scale.granularity)


def quantize_bias(bias: FloatArray, steps: FloatArray) -> NDArray[np.int32]:
    """Return a bias as integers of these steps, one for each channel."""
    wanted = np.rint(bias.astype(np.float64) / steps.astype(np.float64))
    limits = np.iinfo(np.int32)
    return np.clip(wanted, limits.min, limits.max).astype(np.int32)


def quantize_weight(array: FloatArray, scale: QuantParams) -> NDArray[np.generic]:
    """Return a weight as integers, in the narrowest type that holds them."""
    kind = ir.DataType[scale.grid.onnx_dtype.upper()]
    return quantize(array, scale).astype(kind.numpy())


def _largest_per_channel(array: FloatArray, axis: int) -> NDArray[np.float64]:
    others = tuple(place for place in range(array.ndim) if place != axis % array.ndim)
    largest: NDArray[np.float64] = np.abs(array).max(axis=others, initial=0.0).astype(np.float64)
    return largest


def _scale_to(reach: NDArray[np.float64], grid: Grid, axis: int, steps_in: str) -> QuantParams:
    return choose_qparams_for_bounds(-reach, reach, grid, PerChannel(axis), steps_in)


BIAS_INPUT = 2
MAX_STEP_GROWTH = 1.5


@dataclass(frozen=True, eq=False)
class WeightedLayer:
    """A node with a weight, the step of its activation, and its bias if that is constant.

    With `whole_bias` the bias becomes integers too.
    """

    node: ir.Node
    slot: int
    axis: int
    weight: ir.Value
    step: float
    bias: FloatArray | None
    integer_bias: bool

    @property
    def key(self) -> tuple[ir.Value, int]:
        """What is stored once."""
        return self.weight, self.axis


def find_weighted_layers(
    layers: Mapping[ir.Node, LayerPlan], plan: Plan
) -> Iterator[WeightedLayer]:
    """Yield the nodes of a plan that have a weight."""
    for node, layer in layers.items():
        value = node.inputs[layer.weight.slot] if layer.weight is not None else None
        if layer.weight is not None and value is not None:
            step, whole = 1.0, plan.integer_bias and bool(layer.inputs)
            if whole:
                kept = plan.tensors[str(node.inputs[0].name)]  # type: ignore[union-attr]
                step = float(choose_qparams(kept, plan.activations, plan.rest).scale)
            bias = _constant_bias(node, value, layer.weight.axis)
            yield WeightedLayer(
                node, layer.weight.slot, layer.weight.axis, value, step, bias, whole
            )


def quantize_weights(
    builder: QDQBuilder, layers: Sequence[WeightedLayer], plan: Plan, learned: RoundedWeights
) -> None:
    """Let each node read its weight, and where the plan wants it its bias, from integers."""
    stored: dict[int, ir.Value] = {}
    for each, scale in zip(layers, weight_scales(layers, plan, learned), strict=True):
        if id(scale) not in stored:
            array = weight_array(each.weight, each.node)
            integers = quantize_weight(array, scale)
            held = builder.add_constant(integers, f"{each.weight.name}_quantized")
            stored[id(scale)] = builder.dequantize(held, scale.scale, each.axis, each.node)
        each.node.replace_input_with(each.slot, stored[id(scale)])
        if each.bias is not None and each.integer_bias:
            _quantize_layer_bias(builder, each, each.bias, scale)
    for each in layers:
        _drop_unused(builder.graph, each.weight)


def weight_scales(
    layers: Sequence[WeightedLayer], plan: Plan, learned: RoundedWeights = NO_ROUNDED_WEIGHTS
) -> list[QuantParams]:
    """Return the scale of each product's weight, the same one for those that share it.

    A reader whose bias needs steps much larger than the weight's own has the weight for itself:
    its need must not crush the weight for all others.
    """
    method = WEIGHT_METHODS[plan.weight_method]
    own: dict[tuple[ir.Value, int], QuantParams] = {}
    shared: dict[tuple[ir.Value, int], QuantParams] = {}
    for each in layers:
        if each.key not in own:
            array = weight_array(each.weight, each.node)
            known = learned.get(each.node.name or "")
            own[each.key] = (
                QuantParams(
                    known.steps,
                    np.zeros_like(known.steps, np.int32),
                    plan.weights,
                    PerChannel(each.axis),
                )
                if known is not None
                else method(array, plan.weights, each.axis, plan.rest)
            )
            shared[each.key] = own[each.key]
        if _bias_fits(each, own[each.key]):
            shared[each.key] = _widen_for_layer_bias(each, shared[each.key])
    return [
        shared[each.key]
        if _bias_fits(each, own[each.key])
        else _widen_for_layer_bias(each, own[each.key])
        for each in layers
    ]


def _bias_fits(product: WeightedLayer, scale: QuantParams) -> bool:
    """Whether the bias of a product has room with steps that are hardly larger than these."""
    return bool(
        (_widen_for_layer_bias(product, scale).scale <= MAX_STEP_GROWTH * scale.scale).all()
    )


def _widen_for_layer_bias(product: WeightedLayer, scale: QuantParams) -> QuantParams:
    """Return a scale with room for the bias of a product."""
    if product.bias is None or not product.integer_bias:
        return scale
    return widen_for_bias(scale, product.bias, product.step)


def _quantize_layer_bias(
    wiring: QDQBuilder, product: WeightedLayer, bias: FloatArray, scale: QuantParams
) -> None:
    """A bias belongs to its node alone: its steps are those of the activation and the weight."""
    old = product.node.inputs[BIAS_INPUT]
    steps = np.float32(product.step) * scale.scale
    name = f"{old.name if old is not None else product.node.name}_quantized"
    held = wiring.add_constant(quantize_bias(bias, steps), name)
    result = wiring.dequantize(held, steps, 0, product.node)
    product.node.replace_input_with(BIAS_INPUT, result)
    if old is not None:
        _drop_unused(wiring.graph, old)


def _constant_bias(node: ir.Node, weight: ir.Value, axis: int) -> FloatArray | None:
    """Return the constant bias of a node, one number for each channel of its weight."""
    held = node.inputs[BIAS_INPUT] if len(node.inputs) > BIAS_INPUT else None
    array = constant_array(held)
    channels = weight.shape[axis] if weight.shape is not None else None
    if array is None or array.size != channels or array.shape[-1] != channels:
        return None
    bias = array.astype(np.float32).reshape(-1)
    require_finite(bias, "bias", held, node)
    return bias


def _drop_unused(graph: ir.Graph, value: ir.Value) -> None:
    """Forget a constant that nothing reads any more."""
    name = value.name or ""
    if name in graph.initializers and not value.uses() and not value.is_graph_output():
        del graph.initializers[name]
