"""The scales of weights have the promised error, and no bias overflows 32 bits."""

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from qconvert.backends.ort import open_cpu
from qconvert.core import onnx_io
from qconvert.core.errors import QConvertError
from qconvert.core.scales import (
    FloatArray,
    Grid,
    QuantParams,
    Range,
    choose_qparams_for_bounds,
    dequantize,
    fake_quantize,
    quantize,
)
from qconvert.quantize import weights
from qconvert.quantize.apply_plan import apply_plan
from qconvert.quantize.plan import LayerPlan, Plan, WeightSlot
from tests.models import floats, from_text

GRID = Grid(8)
METHODS = sorted(weights.WEIGHT_METHODS)


@st.composite
def arrays(draw: st.DrawFn) -> tuple[FloatArray, int]:
    """Draw a weight with channels of every spread, some with outliers, and its channel axis."""
    shape = tuple(draw(st.lists(st.integers(1, 6), min_size=2, max_size=4)))
    axis = draw(st.integers(0, len(shape) - 1))
    random = np.random.default_rng(draw(st.integers(0, 999)))
    array = random.standard_t(draw(st.sampled_from([1, 3, 30])), shape)
    sizes = [length if place == axis else 1 for place, length in enumerate(shape)]
    return (array * 10.0 ** random.integers(-6, 6, sizes)).astype(np.float32), axis


def errors(array: FloatArray, scale: QuantParams, axis: int) -> list[float]:
    """Return the squared error of each channel."""
    integers = np.maximum(quantize(array, scale), -scale.grid.symmetric_max)
    noise = np.square(dequantize(integers, scale).astype(np.float64) - array)
    return [float(channel.sum()) for channel in np.moveaxis(noise, axis, 0)]


@settings(deadline=None)
@given(arrays(), st.integers(4, 8))
def test_minmax_scale_covers_the_largest_weight_of_each_channel(
    given_array: tuple[FloatArray, int], bits: int
) -> None:
    array, axis = given_array
    scale = weights.minmax_qparams(array, Grid(bits), axis)
    largest = [np.abs(channel).max() for channel in np.moveaxis(array, axis, 0)]
    assert scale.axis == axis
    assert not scale.zero_point.any()
    assert scale.scale.tolist() == pytest.approx(
        [max(maximum / (2 ** (bits - 1) - 1), 2.0**-40) for maximum in largest]
    )


@settings(deadline=None)
@given(arrays(), st.integers(4, 8))
def test_mse_scale_is_the_best_of_all_clipping_shares(
    given_array: tuple[FloatArray, int], bits: int
) -> None:
    array, axis = given_array
    channel_errors = errors(array, weights.mse_qparams(array, Grid(bits), axis), axis)
    for channel, error in zip(np.moveaxis(array, axis, 0), channel_errors, strict=True):
        largest = float(np.abs(channel).max())
        tried = [choose_qparams_for_bounds(-end, end, Grid(bits), 0) for end in ends(largest)]
        least = min(errors(channel[np.newaxis], scale, 0)[0] for scale in tried)
        assert error <= least * (1 + 1e-5)
        assert error <= errors(channel[np.newaxis], tried[0], 0)[0] * (1 + 1e-5)


def ends(largest: float) -> list[NDArray[np.float64]]:
    return [np.array([largest * (1 - number / 64)]) for number in range(13)]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("axis", [0, 1])
def test_channel_scale_does_not_depend_on_other_channels(method: str, axis: int) -> None:
    array = floats(5, 6, 3)
    changed = np.moveaxis(array.copy(), axis, 0)
    changed[2] *= 50
    before, after = (
        weights.WEIGHT_METHODS[method](weight, GRID, axis, "fp32", None).scale
        for weight in (array, np.moveaxis(changed, 0, axis))
    )
    assert (before != after).tolist() == [place == 2 for place in range(len(before))]


@pytest.mark.parametrize("method", METHODS)
def test_negative_axis_counts_from_the_end(method: str) -> None:
    scales = [
        weights.WEIGHT_METHODS[method](floats(4, 6), GRID, axis, "fp32", None).scale
        for axis in (1, -1)
    ]
    assert scales[0].tolist() == scales[1].tolist()


@pytest.mark.parametrize("axis", [0, 1])
def test_mse_scales_do_not_depend_on_how_many_channels_are_searched_at_a_time(
    axis: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = floats(60, 40, 3)
    whole = weights.mse_qparams(array, GRID, axis)
    monkeypatch.setattr(weights, "MAX_VALUES_AT_A_TIME", 500)
    in_parts = weights.mse_qparams(array, GRID, axis)
    np.testing.assert_array_equal(whole.scale, in_parts.scale)


@pytest.mark.parametrize("method", METHODS)
def test_channel_of_zeros_stays_zero(method: str) -> None:
    array = floats(3, 4, 2)
    array[1] = 0
    scale = weights.WEIGHT_METHODS[method](array, GRID, 0, "fp32", None)
    assert scale.scale[1] > 0
    np.testing.assert_array_equal(fake_quantize(array, scale)[1], 0)
    assert np.abs(fake_quantize(array, scale) - array).max() < 0.02


@pytest.mark.parametrize("scale_dtype", ["fp16", "bf16"])
@pytest.mark.parametrize("method", METHODS)
def test_weight_scales_are_exact_in_the_rest_precision(method: str, scale_dtype: str) -> None:
    kind = {"fp16": np.dtype(np.float16), "bf16": ir.DataType.BFLOAT16.numpy()}[scale_dtype]
    steps = weights.WEIGHT_METHODS[method](floats(40, 9), GRID, 0, scale_dtype, None).scale
    np.testing.assert_array_equal(steps, steps.astype(kind).astype(np.float32))


@pytest.mark.parametrize(("bits", "kind"), [(4, "int8"), (8, "int8"), (9, "int16")])
def test_quantized_weight_has_the_type_of_its_grid(bits: int, kind: str) -> None:
    array, scale = floats(3, 5), weights.minmax_qparams(floats(3, 5), Grid(bits), 0)
    stored = weights.quantize_weight(array, scale)
    assert stored.dtype.name == kind
    np.testing.assert_array_equal(stored.astype(np.int32), quantize(array, scale))


def test_the_smallest_integer_is_not_used_as_arm_overflows_on_it() -> None:
    array = np.array([[-1.0, 1.0, 0.5]], np.float32)
    clipping = choose_qparams_for_bounds(np.array([-0.8]), np.array([0.8]), GRID, 0)
    assert quantize(array, clipping).tolist() == [[-128, 127, 79]]
    assert weights.quantize_weight(array, clipping).tolist() == [[-127, 127, 79]]


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_non_finite_weight_is_rejected_with_its_name_and_node(wrong: float) -> None:
    array = floats(4, 3, 1, 1)
    array[1, 2], array[3, 0] = wrong, wrong
    model = conv(array, floats(4))
    with pytest.raises(QConvertError, match=r"`w` of `head`.* 2 values that are not finite"):
        apply_plan(model, plan(model, 1.0))


@pytest.mark.parametrize("wrong", [np.nan, -np.inf])
def test_non_finite_bias_is_rejected_with_its_name(wrong: float) -> None:
    model = conv(floats(4, 3, 1, 1), np.array([1, wrong, 2, 3], dtype=np.float32))
    with pytest.raises(QConvertError, match="`b` of `head`"):
        apply_plan(model, plan(model, 1.0))


@settings(deadline=None)
@given(st.integers(1, 8), st.integers(0, 999), st.integers(-30, 10), st.floats(2.0**-40, 1.0))
def test_scale_is_widened_only_for_a_bias_without_room(
    channels: int, seed: int, exponent: int, step: float
) -> None:
    bias = floats(channels, seed=seed) * np.float32(10.0**exponent)
    before = choose_qparams_for_bounds(-np.ones(channels), np.ones(channels) * 0.5, GRID, 0)
    weight, node = ir.Value(name="w"), ir.node("Conv", [])
    layer = weights.WeightedLayer(node, 1, 0, weight, Grid(), step, bias, integer_bias=True)
    after = layer.with_room_for_bias(before)
    integers = np.abs(bias.astype(np.float64)) / (step * after.scale.astype(np.float64))
    assert integers.max() <= 2.0**30 * (1 + 2.0**-23)
    had = np.abs(bias.astype(np.float64)) / (step * before.scale.astype(np.float64)) <= 2.0**30
    np.testing.assert_array_equal(after.scale == before.scale, had)
    assert (after.scale >= before.scale).all()
    assert (after.axis, after.grid) == (before.axis, before.grid)


@settings(deadline=None)
@given(st.integers(0, 999), st.integers(-4, 4))
def test_bias_is_quantized_to_the_nearest_integers(seed: int, exponent: int) -> None:
    bias, steps = floats(6, seed=seed), np.abs(floats(6, seed=seed + 1)) + np.float32(1e-3)
    bias *= np.float32(10.0**exponent)
    integers = weights.quantize_bias(bias, steps)
    assert integers.dtype == np.int32
    assert integers.tolist() == [
        round(float(b) / float(s)) for b, s in zip(bias, steps, strict=True)
    ]


def test_bias_beyond_int32_is_clipped() -> None:
    far = np.array([1e30, -1e30, 1.5, -2.5], dtype=np.float32)
    expected = [2**31 - 1, -(2**31), 2, -2]
    assert weights.quantize_bias(far, np.ones(4, dtype=np.float32)).tolist() == expected


def conv(weight: FloatArray, bias: FloatArray) -> ir.Model:
    model = from_text(
        '<ir_version: 10, opset_import: ["": 20]>\n'
        f"net (float[N, {weight.shape[1]}, 4, 4] x) => (float[N, {len(bias)}, 4, 4] y) "
        "{ y = Conv (x, w, b) }",
        w=weight,
        b=bias,
    )
    model.graph[0].name = "head"
    return model


def plan(model: ir.Model, largest: float) -> Plan:
    activations = Grid(8, symmetric=False, signed=False)
    layers = {"head": LayerPlan("Conv", inputs=(0,), weight=WeightSlot(1, 0))}
    ranges = {"x": Range(-largest, largest)}
    return Plan(
        onnx_io.fingerprint(model), "cpu", "mse", "mse", activations, GRID, True, layers, ranges
    )


@pytest.mark.parametrize("size", [0.0, 1e-12, 1e-6, 1e-3])
def test_tiny_weights_with_large_biases_keep_the_float_outputs(size: float) -> None:
    weight = floats(6, 5, 1, 1)
    weight[2:4] *= np.float32(size)
    bias = np.array([0.5, -3.0, 700.0, -9e4, 0.0, 1e-4], dtype=np.float32)
    model, images = conv(weight, bias), floats(3, 5, 4, 4, seed=4)
    images /= np.abs(images).max()
    rewritten = apply_plan(model, plan(model, 1.0))
    stored = {name: value.const_value for name, value in rewritten.graph.initializers.items()}
    scale_names = ("x_scale", "w_scale", "b_scale")
    scales = [tensor.numpy() for tensor in map(stored.get, scale_names) if tensor]
    np.testing.assert_array_equal(scales[2], scales[0] * scales[1])
    assert rewritten.graph.initializers["b_quantized"].dtype is ir.DataType.INT32
    expected, outputs = (open_cpu(variant)({"x": images})["y"] for variant in (model, rewritten))
    np.testing.assert_allclose(outputs, expected, atol=0.05, rtol=1e-6)
