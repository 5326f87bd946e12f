"""Neighbouring weights of portable plans never sum to more than x86 adds in 16 bits."""

from dataclasses import replace
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from qconvert.backends.ort import open_cpu, runtime
from qconvert.core import onnx_io
from qconvert.core.scales import FloatArray, Grid, IntArray, dequantize, quantize
from qconvert.graph import patterns
from qconvert.quantize import pairs, plan_files, weights
from qconvert.quantize.apply_plan import apply_plan
from qconvert.quantize.plan import RoundedWeight
from qconvert.quantize.saturation import is_pair_safe
from tests.models import floats
from tests.quantize.quantized_models import model, planned

# Weights of convolutions by their attributes, and whether their kernels add pairs.
CONVOLUTIONS: dict[str, tuple[str, tuple[int, ...], bool]] = {
    "pointwise": ("", (6, 4, 1, 1), True),
    "3x3": ("", (6, 4, 3, 3), True),
    "odd channels": ("", (6, 3, 3, 3), True),
    "groups": ("<group = 2>", (6, 2, 3, 3), True),
    "depthwise": ("<group = 4>", (4, 1, 3, 3), False),
}


def convolution(name: str) -> ir.Model:
    attributes, shape, _ = CONVOLUTIONS[name]
    channels = 3 if name == "odd channels" else 4
    return model(
        f"y = Conv {attributes} (x, w)",
        f"(float[n, {channels}, 5, 5] x) => (float[n, a, b, c] y)",
        w=shape,
    )


def stored_weight(quantized: ir.Model) -> NDArray[np.generic]:
    return next(
        array
        for node in quantized.graph
        if node.op_type == "DequantizeLinear"
        and (array := patterns.constant_array(node.inputs[0])) is not None
        and array.dtype == np.int8
    )


def sums(rows: NDArray[np.generic]) -> IntArray:
    """Return the sums of neighbours; the last of an odd number is alone."""
    padded = np.pad(rows.astype(np.int32), ((0, 0), (0, rows.shape[1] % 2)))
    result: IntArray = padded[:, ::2] + padded[:, 1::2]
    return result


@pytest.mark.parametrize("name", sorted(CONVOLUTIONS))
def test_rows_have_all_channels_of_a_place_together_and_can_be_restored(name: str) -> None:
    node = convolution(name).graph[0]
    _, shape, adds = CONVOLUTIONS[name]
    weight = np.arange(np.prod(shape)).reshape(shape)
    rows = pairs.kernel_rows(node, weight)
    assert pairs.adds_pairs(node, shape) is adds
    assert rows[0].tolist() == [
        weight[0, channel, y, x]
        for y in range(shape[2])
        for x in range(shape[3])
        for channel in range(shape[1])
    ]
    np.testing.assert_array_equal(pairs.restore_rows(node, rows, shape), weight)


def test_transposed_convolutions_of_an_edited_plan_keep_their_weights() -> None:
    signature = "(float[n, 16, 8, 8] x) => (float[n, 16, a, b] y)"
    before = model("y = ConvTranspose (x, w)", signature, w=(16, 16, 3, 3))
    exact = planned(before, "tensorrt")
    limited = stored_weight(apply_plan(before, replace(exact, portable=True)))
    np.testing.assert_array_equal(limited, stored_weight(apply_plan(before, exact)))


@pytest.mark.parametrize("product", ["Gemm <transB = 1> (x, w)", "Gemm (x, w)", "MatMul (x, w)"])
def test_rows_of_products_are_their_outputs(product: str) -> None:
    transposed = "transB" in product
    shape = (5, 8) if transposed else (8, 5)
    node = model(f"y = {product}", "(float[n, 8] x) => (float[n, 5] y)", w=shape).graph[0]
    weight = floats(*shape)
    rows = pairs.kernel_rows(node, weight)
    np.testing.assert_array_equal(rows, weight if transposed else weight.T)
    np.testing.assert_array_equal(pairs.restore_rows(node, rows, shape), weight)


@settings(deadline=None)
@given(st.integers(1, 9), st.integers(0, 9999))
def test_limited_pairs_are_the_nearest_within_the_limit(inputs: int, seed: int) -> None:
    exact = (np.random.default_rng(seed).standard_normal((4, inputs)) * 80).astype(np.float32)
    exact = np.clip(exact, -127, 127)
    integers = np.rint(exact).astype(np.int32)
    limited = pairs.limit_pairs(integers, exact)
    assert np.abs(sums(limited)).max(initial=0) <= pairs.PAIR_LIMIT
    assert (np.abs(limited) <= np.abs(integers)).all()
    assert (limited * integers >= 0).all()
    for row in range(4):
        for place in range(0, inputs - 1, 2):
            pair, nearest = exact[row, place : place + 2], integers[row, place : place + 2]
            error = np.square(limited[row, place : place + 2] - pair).sum()
            if abs(nearest.sum()) <= pairs.PAIR_LIMIT:
                assert (limited[row, place : place + 2] == nearest).all()
                continue
            # Every other pair with the largest sum that is allowed is at least as far away.
            first = np.arange(-127, 128)
            second = np.sign(nearest.sum()) * pairs.PAIR_LIMIT - first
            others = np.square(first - pair[0]) + np.square(second - pair[1])
            assert error <= others.min() + 0.51


def test_pairs_of_an_odd_number_of_channels_also_begin_at_each_place() -> None:
    assert pairs.find_neighbours(5) == [[1], [0], [3], [2], []]
    assert pairs.find_neighbours(8, 4) == pairs.find_neighbours(8)
    assert pairs.find_neighbours(6, 3) == [[1, 1], [0, 0], [3], [2, 4], [5, 3], [4]]
    rows = np.array([[1, 2, 100, 3, 4, 5]], np.float32)
    assert pairs.largest_sums(rows).tolist() == [103]
    rows = np.array([[1, 2, 0, 60, 100, 0]], np.float32)
    assert [pairs.largest_sums(rows, channels).item() for channels in (0, 3)] == [100, 160]
    limited = pairs.limit_pairs(rows.astype(np.int32), rows, 3)
    assert limited.tolist() == [[1, 2, 0, 44, 84, 0]]


@pytest.mark.parametrize("name", sorted(CONVOLUTIONS))
@pytest.mark.parametrize("method", sorted(weights.WEIGHT_METHODS))
def test_portable_plans_limit_the_pairs_of_weights(
    name: str, method: Literal["mse", "minmax"]
) -> None:
    before = convolution(name)
    node, tensor = before.graph[0], before.graph.initializers["w"]
    # Weights of one sign: without the limit about half of all pairs exceed it.
    patterns.set_constant(tensor, np.abs(floats(*CONVOLUTIONS[name][1])))
    plan = replace(planned(before, "cpu"), weight_method=method, portable=True)
    rows = pairs.kernel_rows(node, stored_weight(apply_plan(before, plan)).astype(np.int32))
    exact = stored_weight(apply_plan(before, replace(plan, portable=False)))
    exact_rows = pairs.kernel_rows(node, exact.astype(np.int32))
    assert np.abs(sums(exact_rows)).max() > pairs.PAIR_LIMIT
    if CONVOLUTIONS[name][2]:
        assert np.abs(sums(rows)).max() <= pairs.PAIR_LIMIT
    else:
        np.testing.assert_array_equal(rows, exact_rows)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 999))
def test_limited_weights_are_nearer_by_mse_than_by_the_largest(seed: int) -> None:
    node = convolution("3x3").graph[0]
    array: FloatArray = floats(6, 4, 3, 3, seed=seed)
    errors = {}
    for method, function in weights.WEIGHT_METHODS.items():
        qparams = function(array, Grid(8), 0, "fp32", node)
        stored = weights.quantize_weight(array, qparams, node).astype(np.int32)
        errors[method] = np.square(dequantize(stored, qparams) - array).sum(axis=(1, 2, 3))
        if method == "minmax":
            # No weight is clipped: the scale alone keeps the pairs within their limit.
            assert np.abs(stored - quantize(array, qparams)).max() <= 1
    assert (errors["mse"] <= errors["minmax"] * (1 + 1e-5)).all()


def test_integers_are_shared_only_where_onnx_runtime_loads_them() -> None:
    before = model(
        "h = Conv (x, w)  y = Conv (h, w)",
        "(float[n, 4, 5, 5] x) => (float[n, a, b, c] y)",
        w=(4, 4, 1, 1),
    )
    plan = planned(before, "cpu")
    counts = {}
    for portable in (True, False):
        quantized = apply_plan(before, replace(plan, portable=portable))
        counts[portable] = sum(
            value.const_value is not None and value.shape == (4, 4, 1, 1)
            for value in quantized.graph.initializers.values()
        )
    assert counts == {True: 1, False: 2}


def test_exact_integers_in_a_portable_plan_are_repaired() -> None:
    before = convolution("pointwise")
    plan = replace(planned(before, "cpu"), portable=False)
    largest = np.full((6, 4, 1, 1), 127, np.int8)
    learned = {before.graph[0].name or "": RoundedWeight(largest, np.ones(6, np.float32), None)}
    plan = replace(plan, learned=plan_files.weights_digest(learned))
    assert not is_pair_safe(apply_plan(before, plan, learned))
    repaired = apply_plan(before, replace(plan, portable=True), learned)
    assert is_pair_safe(repaired)
    np.testing.assert_array_equal(stored_weight(repaired), 64)


@pytest.mark.parametrize(("portable", "precision"), [(True, "0"), (False, "1")])
def test_shared_weights_load_with_the_setting_that_they_need(
    portable: bool, precision: str
) -> None:
    before = model(
        "h = Conv (x, w)  y = Conv (h, w)",
        "(float[n, 4, 5, 5] x) => (float[n, a, b, c] y)",
        w=(4, 4, 1, 1),
    )
    plan = replace(planned(before, "cpu"), portable=portable)
    quantized = apply_plan(before, plan)
    options: Any = runtime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", precision)
    session = runtime.InferenceSession(onnx_io.serialize(quantized), options)
    (y,) = session.run(None, {"x": floats(2, 4, 5, 5)})
    expected = open_cpu(quantized, keep_qdq=True)({"x": floats(2, 4, 5, 5)})["y"]
    # Kernels may round halves to another side than the arithmetic in float.
    step = max(value_range.max_abs for value_range in plan.tensors.values()) / 127
    np.testing.assert_allclose(y, expected, atol=1.01 * step)
