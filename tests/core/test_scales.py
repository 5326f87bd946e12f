"""Quantization arithmetic: equal to a loop over scalars, and to ONNX Runtime."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from qconvert.backends.ort import open_cpu
from qconvert.core.scales import (
    MIN_SCALE,
    Grid,
    QuantParams,
    Range,
    choose_qparams,
    choose_qparams_for_bounds,
    dequantize,
    fake_quantize,
    quantize,
    round_scale_up,
)
from tests.models import floats, from_text

SIGNS = ((True, True), (False, True), (False, False))  # symmetric, signed
GRIDS = [Grid(bits, *signs) for bits in range(2, 17) for signs in SIGNS]
DTYPES = {"fp32": np.float32, "fp16": np.float16, "bf16": ml_dtypes.bfloat16}


@dataclass(frozen=True, eq=False)
class Case:
    """Values, the index of the range of each, and the parameters chosen for the ranges."""

    values: NDArray[np.float32]
    range_indices: NDArray[np.intp]
    bounds: NDArray[np.float32]
    qparams: QuantParams
    scale_dtype: str

    def parts(self) -> Iterator[tuple[float, float, float, int]]:
        """Yield the bounds of each range, widened to zero, its scale and its zero point."""
        lows, highs = np.minimum(self.bounds[0], 0), np.maximum(self.bounds[1], 0)
        parts = (lows, highs, self.qparams.scale, self.qparams.zero_point)
        return zip(*(part.ravel().tolist() for part in parts), strict=True)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Draw values of any magnitude, and ranges that leave some of them outside."""
    shape = tuple(draw(st.lists(st.integers(1, 7), min_size=1, max_size=3)))
    axis = draw(st.none() | st.integers(-len(shape), len(shape) - 1))
    range_indices = np.zeros(shape, np.intp) if axis is None else np.indices(shape)[axis]
    sizes = () if axis is None else (shape[axis],)
    random = np.random.default_rng(draw(st.integers(0, 99)))
    scale_dtype = draw(st.sampled_from(sorted(DTYPES)))
    magnitude = 10.0 ** draw(st.integers(-30, 3 if scale_dtype == "fp16" else 30))
    values = (random.standard_normal(shape) * magnitude).astype(np.float32)
    bounds = np.sort(random.standard_normal((2, *sizes)) * magnitude, axis=0).astype(np.float32)
    if sign := draw(st.sampled_from([-1, 0, 1])):
        bounds = np.sort(np.abs(bounds) * np.float32(sign), axis=0)
    grid = draw(st.sampled_from(GRIDS))
    qparams = choose_qparams_for_bounds(bounds[0], bounds[1], grid, axis, scale_dtype)
    return Case(values, range_indices, bounds, qparams, scale_dtype)


@settings(deadline=None)
@given(cases())
def test_quantize_equals_a_loop_over_scalars_and_keeps_zero(case: Case) -> None:
    grid, parts = case.qparams.grid, list(case.parts())
    integers, values = quantize(case.values, case.qparams), fake_quantize(case.values, case.qparams)
    np.testing.assert_array_equal(values, dequantize(integers, case.qparams))
    assert not fake_quantize(np.zeros_like(case.values), case.qparams).any()
    for index, value in np.ndenumerate(case.values):
        _, _, scale, zero_point = parts[case.range_indices[index]]
        nearest = round(float(value / np.float32(scale))) + zero_point
        expected = min(max(nearest, grid.quant_min), grid.quant_max)
        assert integers[index] == expected
        assert values[index] == np.float32(expected - zero_point) * np.float32(scale)


@settings(deadline=None)
@given(cases())
def test_fake_quantized_value_is_within_half_a_scale_or_clipped(case: Case) -> None:
    grid, parts = case.qparams.grid, list(case.parts())
    values = fake_quantize(case.values, case.qparams)
    for index, value in np.ndenumerate(case.values.astype(np.float64)):
        low, high, scale, zero_point = parts[case.range_indices[index]]
        # The float32 division itself has an error for values of many scales.
        half = scale * (0.5 + grid.levels * 2.0**-22)
        if low <= value <= high:
            assert abs(float(values[index]) - value) <= half
        end = (grid.quant_min if value < 0 else grid.quant_max) - zero_point
        if abs(value) > abs(end) * scale:
            assert values[index] == np.float32(end) * np.float32(scale)


@settings(deadline=None)
@given(cases())
def test_scale_spreads_the_grid_over_the_range(case: Case) -> None:
    grid, minimum = case.qparams.grid, MIN_SCALE[case.scale_dtype]
    precision = {"fp32": 2.0**-23, "fp16": 2.0**-10, "bf16": 2.0**-7}[case.scale_dtype]
    for low, high, scale, zero_point in case.parts():
        if grid.symmetric:
            exact = max(-low, high) / grid.symmetric_max
        else:
            exact = (high - low) / (grid.levels - 1)
        assert scale == pytest.approx(max(exact, minimum), rel=precision, abs=minimum)
        assert grid.quant_min <= zero_point <= grid.quant_max
        assert zero_point == 0 or not grid.symmetric


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_quantize_inverts_dequantize(grid: Grid) -> None:
    integers = np.arange(grid.quant_min, grid.quant_max + 1)
    assert len(integers) == grid.levels == 2**grid.bits
    for low, high in ((-0.37, 1.93), (0.0, 7.1), (-3e-4, 0.0), (0.0, 0.0), (-1e30, 3e29)):
        qparams = choose_qparams(Range(low, high), grid)
        np.testing.assert_array_equal(quantize(dequantize(integers, qparams), qparams), integers)


@pytest.mark.parametrize("grid", [Grid(8), Grid(8, False), Grid(8, False, False), Grid(4)], ids=str)
def test_ties_round_to_even_before_the_zero_point_is_added(grid: Grid) -> None:
    high = grid.symmetric_max if grid.symmetric else grid.levels - 4.0
    qparams = choose_qparams(Range(-3.0, high), grid)
    assert qparams.scale == 1.0
    assert grid.symmetric or qparams.zero_point == grid.quant_min + 3
    ties = np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 3.5], dtype=np.float32)
    assert fake_quantize(ties, qparams).tolist() == [-2, -2, 0, 0, 2, 2, 4]


@pytest.mark.parametrize(("dtype", "largest"), [("fp32", 1e30), ("bf16", 1e30), ("fp16", 6e4)])
@pytest.mark.parametrize("share", [0.0, 1e-45, 1e-30, 1.0])
def test_scale_of_every_range_is_above_zero(dtype: str, largest: float, share: float) -> None:
    end = largest * share
    for grid in GRIDS:
        for value_range in (Range(-end, end), Range(0.0, end), Range(-end, 0.0)):
            scale = float(choose_qparams(value_range, grid, dtype).scale)
            assert math.isfinite(scale)
            assert scale >= MIN_SCALE[dtype] > 0


@settings(deadline=None)
@given(st.floats(0.0, 6e4), st.sampled_from(sorted(DTYPES)))
def test_scale_is_rounded_up_to_the_next_number_of_its_type(exact: float, name: str) -> None:
    dtype = DTYPES[name]
    scale = round_scale_up(np.array(exact), name)
    assert scale.dtype == np.float32
    assert scale == scale.astype(dtype).astype(np.float32)
    assert float(scale) >= exact
    below = np.nextafter(scale.astype(dtype), dtype(0)).astype(np.float64)
    assert below < max(exact, MIN_SCALE[name])


@pytest.mark.parametrize(
    ("bits", "dtype"),
    [(2, "int8"), (4, "int8"), (7, "int8"), (8, "int8"), (9, "int16"), (16, "int16")],
)
def test_onnx_dtype_holds_the_grid_and_has_kernels(bits: int, dtype: str) -> None:
    for signed, name in ((True, dtype), (False, f"u{dtype}")):
        grid = Grid(bits, symmetric=False, signed=signed)
        ends = np.array([grid.quant_min, grid.quant_max])
        assert grid.onnx_dtype == name
        assert grid.fills_type is (bits in (8, 16))
        stored = ends.astype(ir.DataType[name.upper()].numpy())
        np.testing.assert_array_equal(stored.astype(np.int64), ends)


NET = """
<ir_version: 10, opset_import: ["": 21]>
net (float[5, 7] x) => (int32[5, 7] i, float[5, 7] y) {{
    q = QuantizeLinear {attributes} (x, scale, zero)
    i = Cast <to: int = 6> (q)
    y = DequantizeLinear {attributes} (q, scale, zero)
}}
"""
LAYOUTS: list[tuple[int | None, str, tuple[int, ...]]] = [
    (None, "", ()),
    (0, "<axis: int = 0>", (5,)),
    (-1, "<axis: int = -1>", (7,)),
]


@pytest.mark.parametrize("grid", [grid for grid in GRIDS if grid.fills_type], ids=str)
@pytest.mark.parametrize(("axis", "attributes", "sizes"), LAYOUTS)
def test_quantize_equals_onnx_runtime(
    grid: Grid, axis: int | None, attributes: str, sizes: tuple[int, ...]
) -> None:
    lows, highs = -np.abs(floats(*sizes)), np.abs(floats(*sizes, seed=1))
    qparams = choose_qparams_for_bounds(lows, highs, grid, axis)
    ties = dequantize(np.arange(35).reshape(5, 7) - 17, qparams) / 2
    zero = qparams.zero_point.astype(ir.DataType[grid.onnx_dtype.upper()].numpy())
    run = open_cpu(from_text(NET.format(attributes=attributes), scale=qparams.scale, zero=zero))
    for values in (floats(5, 7, seed=2), floats(5, 7, seed=3) * 9, ties, np.zeros_like(ties)):
        outputs = run({"x": values})
        np.testing.assert_array_equal(outputs["i"], quantize(values, qparams))
        np.testing.assert_array_equal(outputs["y"], fake_quantize(values, qparams))


@pytest.mark.parametrize(
    ("low", "high"), [(1.0, 0.0), (math.nan, 1.0), (0.0, math.nan), (0.0, math.inf)]
)
def test_range_that_does_not_ascend_is_rejected(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="must ascend"):
        Range(low, high)


def test_invalid_grids_and_scales_are_rejected() -> None:
    for bits in (0, 1, 17):
        with pytest.raises(ValueError, match="2 to 16 bits"):
            Grid(bits=bits)
    with pytest.raises(ValueError, match="must be signed"):
        Grid(symmetric=True, signed=False)
    for scale in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="above zero"):
            QuantParams(np.array(scale, np.float32), np.array(0, np.int32), Grid())
