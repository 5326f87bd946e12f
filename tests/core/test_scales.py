"""The arithmetic of quantization is that of a loop over scalars, and that of ONNX Runtime."""

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
    Granularity,
    Grid,
    PerBlock,
    PerChannel,
    PerTensor,
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

KINDS = ((True, True), (False, True), (False, False))  # symmetric, signed
GRIDS = [Grid(bits, *kind) for bits in range(2, 17) for kind in KINDS]
TYPES = {"fp32": np.float32, "fp16": np.float16, "bf16": ml_dtypes.bfloat16}


@dataclass(frozen=True, eq=False)
class Case:
    """Values, for each the number of its range, and the scale that was made of the ranges."""

    values: NDArray[np.float32]
    owners: NDArray[np.intp]
    ends: NDArray[np.float32]
    scale: QuantParams
    steps_in: str

    def parts(self) -> Iterator[tuple[float, float, float, int]]:
        """Yield for each range its ends, widened to zero, its step and its zero point."""
        lows, highs = np.minimum(self.ends[0], 0), np.maximum(self.ends[1], 0)
        parts = (lows, highs, self.scale.scale, self.scale.zero_point)
        return zip(*(part.ravel().tolist() for part in parts), strict=True)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Draw values of any magnitude, and ranges that leave some of them outside."""
    shape = tuple(draw(st.lists(st.integers(1, 7), min_size=1, max_size=3)))
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    block = PerBlock(axis, draw(st.integers(1, 4)))
    kinds: list[Granularity] = [PerTensor(), PerChannel(axis), block]
    granularity = draw(st.sampled_from(kinds))
    places = list(np.indices(shape))
    if granularity is block:
        places[axis] = places[axis] // block.size
    else:
        places = [places[axis]] if granularity == PerChannel(axis) else []
    sizes = tuple(int(place.max()) + 1 for place in places)
    owners = np.ravel_multi_index(tuple(places), sizes) if places else np.zeros(shape, np.intp)
    random = np.random.default_rng(draw(st.integers(0, 99)))
    steps_in = draw(st.sampled_from(sorted(TYPES)))
    magnitude = 10.0 ** draw(st.integers(-30, 3 if steps_in == "fp16" else 30))
    values = (random.standard_normal(shape) * magnitude).astype(np.float32)
    ends = np.sort(random.standard_normal((2, *sizes)) * magnitude, axis=0).astype(np.float32)
    if one_sided := draw(st.sampled_from([-1, 0, 1])):
        ends = np.sort(np.abs(ends) * np.float32(one_sided), axis=0)
    scale = choose_qparams_for_bounds(
        ends[0], ends[1], draw(st.sampled_from(GRIDS)), granularity, steps_in
    )
    return Case(values, owners, ends, scale, steps_in)


@settings(deadline=None)
@given(cases())
def test_integers_and_values_are_those_of_a_loop_over_scalars(case: Case) -> None:
    grid, parts = case.scale.grid, list(case.parts())
    integers, values = quantize(case.values, case.scale), fake_quantize(case.values, case.scale)
    np.testing.assert_array_equal(values, dequantize(integers, case.scale))
    for index, value in np.ndenumerate(case.values):
        _, _, step, zero = parts[case.owners[index]]
        nearest = round(float(value / np.float32(step))) + zero
        wanted = min(max(nearest, grid.quant_min), grid.quant_max)
        assert integers[index] == wanted
        assert values[index] == np.float32(wanted - zero) * np.float32(step)


@settings(deadline=None)
@given(cases())
def test_a_value_comes_back_within_half_a_step_or_as_the_nearer_end(case: Case) -> None:
    grid, parts = case.scale.grid, list(case.parts())
    values = fake_quantize(case.values, case.scale)
    for index, value in np.ndenumerate(case.values.astype(np.float64)):
        low, high, step, zero = parts[case.owners[index]]
        # Single precision divides values that are many steps long with an error of their own.
        half = step * (0.5 + grid.levels * 2.0**-22)
        if low <= value <= high:
            assert abs(float(values[index]) - value) <= half
        end = (grid.quant_min if value < 0 else grid.quant_max) - zero
        if abs(value) > abs(end) * step:
            assert values[index] == np.float32(end) * np.float32(step)


@settings(deadline=None)
@given(cases())
def test_a_grid_reaches_no_further_than_its_range(case: Case) -> None:
    grid, least = case.scale.grid, MIN_SCALE[case.steps_in]
    coarse = {"fp32": 2.0**-23, "fp16": 2.0**-10, "bf16": 2.0**-7}[case.steps_in]
    for low, high, step, zero in case.parts():
        span = (
            max(-low, high) / grid.symmetric_max
            if grid.symmetric
            else (high - low) / (grid.levels - 1)
        )
        assert step == pytest.approx(max(span, least), rel=coarse, abs=least)
        assert grid.quant_min <= zero <= grid.quant_max
        assert zero == 0 or not grid.symmetric


@settings(deadline=None)
@given(cases())
def test_zero_comes_back_as_zero(case: Case) -> None:
    assert not fake_quantize(np.zeros_like(case.values), case.scale).any()


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_quantizing_what_was_dequantized_gives_the_same_integers(grid: Grid) -> None:
    integers = np.arange(grid.quant_min, grid.quant_max + 1)
    assert len(integers) == grid.levels == 2**grid.bits
    for low, high in ((-0.37, 1.93), (0.0, 7.1), (-3e-4, 0.0), (0.0, 0.0), (-1e30, 3e29)):
        scale = choose_qparams(Range(low, high), grid)
        np.testing.assert_array_equal(quantize(dequantize(integers, scale), scale), integers)


@pytest.mark.parametrize("grid", [Grid(8), Grid(8, False), Grid(8, False, False), Grid(4)], ids=str)
def test_ties_go_to_the_even_integer_before_the_zero_point_is_added(grid: Grid) -> None:
    scale = choose_qparams(
        Range(-3.0, grid.symmetric_max if grid.symmetric else grid.levels - 4.0), grid
    )
    assert scale.scale == 1.0
    assert grid.symmetric or scale.zero_point == grid.quant_min + 3
    ties = np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 3.5], dtype=np.float32)
    assert fake_quantize(ties, scale).tolist() == [-2, -2, 0, 0, 2, 2, 4]


@pytest.mark.parametrize(("steps_in", "most"), [("fp32", 1e30), ("bf16", 1e30), ("fp16", 6e4)])
@pytest.mark.parametrize("share", [0.0, 1e-45, 1e-30, 1.0])
def test_steps_of_every_range_are_above_zero(steps_in: str, most: float, share: float) -> None:
    largest = most * share
    for grid in GRIDS:
        for kept in (Range(-largest, largest), Range(0.0, largest), Range(-largest, 0.0)):
            step = float(choose_qparams(kept, grid, steps_in).scale)
            assert math.isfinite(step)
            assert step >= MIN_SCALE[steps_in] > 0


@settings(deadline=None)
@given(st.floats(0.0, 6e4), st.sampled_from(sorted(TYPES)))
def test_a_step_is_the_least_of_its_type_that_is_not_smaller_than_wanted(
    wanted: float, steps_in: str
) -> None:
    kind = TYPES[steps_in]
    step = round_scale_up(np.array(wanted), steps_in)
    assert step.dtype == np.float32
    assert step == step.astype(kind).astype(np.float32)
    assert float(step) >= wanted
    below = np.nextafter(step.astype(kind), kind(0)).astype(np.float64)
    assert below < max(wanted, MIN_SCALE[steps_in])


@pytest.mark.parametrize(
    ("bits", "storage"),
    [(2, "int4"), (4, "int4"), (5, "int8"), (7, "int8"), (8, "int8"), (9, "int16"), (16, "int16")],
)
def test_integers_are_stored_in_the_narrowest_type_that_holds_them(bits: int, storage: str) -> None:
    for signed, name in ((True, storage), (False, f"u{storage}")):
        grid = Grid(bits, symmetric=False, signed=signed)
        ends = np.array([grid.quant_min, grid.quant_max])
        stored = ends.astype(ir.DataType[name.upper()].numpy())
        assert grid.onnx_dtype == name
        np.testing.assert_array_equal(stored.astype(np.int64), ends)


NET = """
<ir_version: 10, opset_import: ["": 21]>
net (float[5, 7] x) => (int32[5, 7] i, float[5, 7] y) {{
    q = QuantizeLinear {along} (x, step, zero)
    i = Cast <to: int = 6> (q)
    y = DequantizeLinear {along} (q, step, zero)
}}
"""
LAYOUTS: list[tuple[Granularity, str, tuple[int, ...]]] = [
    (PerTensor(), "", ()),
    (PerChannel(0), "<axis: int = 0>", (5,)),
    (PerChannel(-1), "<axis: int = -1>", (7,)),
    (PerBlock(1, 3), "<axis: int = 1, block_size: int = 3>", (5, 3)),
    (PerBlock(-2, 2), "<axis: int = 0, block_size: int = 2>", (3, 7)),
]


@pytest.mark.parametrize("grid", [g for g in GRIDS if g.bits in (4, 8, 16)], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: str(layout[0]))
def test_onnx_runtime_computes_the_same(
    grid: Grid, layout: tuple[Granularity, str, tuple[int, ...]]
) -> None:
    granularity, along, places = layout
    lows, highs = -np.abs(floats(*places)), np.abs(floats(*places, seed=1))
    scale = choose_qparams_for_bounds(lows, highs, grid, granularity)
    halves = dequantize(np.arange(35).reshape(5, 7) - 17, scale) / 2
    zero = scale.zero_point.astype(ir.DataType[grid.onnx_dtype.upper()].numpy())
    run = open_cpu(from_text(NET.format(along=along), step=scale.scale, zero=zero))
    for values in (floats(5, 7, seed=2), floats(5, 7, seed=3) * 9, halves, np.zeros_like(halves)):
        answers = run({"x": values})
        np.testing.assert_array_equal(answers["i"], quantize(values, scale))
        np.testing.assert_array_equal(answers["y"], fake_quantize(values, scale))


@pytest.mark.parametrize(
    ("low", "high"), [(1.0, 0.0), (math.nan, 1.0), (0.0, math.nan), (0.0, math.inf)]
)
def test_a_range_that_does_not_run_upward_is_refused(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="a range runs upward"):
        Range(low, high)


def test_a_range_may_be_a_single_value() -> None:
    assert Range(-2.0, -2.0).max_abs == 2.0


@pytest.mark.parametrize("bits", [0, 1, 17])
def test_a_grid_without_a_sensible_number_of_bits_is_refused(bits: int) -> None:
    with pytest.raises(ValueError, match="2 to 16 bits"):
        Grid(bits=bits)


def test_grids_blocks_and_steps_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="both sides"):
        Grid(symmetric=True, signed=False)
    with pytest.raises(ValueError, match="at least one value"):
        PerBlock(0, 0)
    for step in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="above zero"):
            QuantParams(np.array(step, np.float32), np.array(0, np.int32), Grid())


def test_eight_bits_have_256_levels_and_127_on_either_side() -> None:
    assert (Grid(8).levels, Grid(8).symmetric_max) == (256, 127)
