"""Weights with a scale for each group of inputs, rounded to nearest and by GPTQ."""

import numpy as np
import pytest
from numpy.typing import NDArray

from qconvert.core.scales import Grid
from qconvert.quantize.grouped_rounding import RoundingProblem, round_gptq
from qconvert.quantize.grouped_weights import GroupedWeight, WeightFormat, choose_scales
from tests.models import floats

SYMMETRIC, ASYMMETRIC = Grid(4), Grid(4, symmetric=False, signed=False)
GRIDS = [SYMMETRIC, ASYMMETRIC, Grid(8), Grid(8, symmetric=False, signed=False)]


def error(weight: GroupedWeight, exact: NDArray[np.float32]) -> float:
    return float(np.square(weight.dequantize() - exact).sum())


def correlated(rows: int, inputs: int, seed: int) -> NDArray[np.float32]:
    """Return inputs of a layer that vary together, and by different amounts."""
    mixing = floats(inputs, inputs, seed=1) / np.float32(np.sqrt(inputs))
    spread = np.linspace(0.1, 2.0, inputs, dtype=np.float32)
    return floats(rows, inputs, seed=seed) @ (mixing + np.diag(spread))


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("group", [32, 64, None])
def test_minmax_is_the_formula(grid: Grid, group: int | None) -> None:
    weight = floats(5, 96)
    rounded = choose_scales(weight, WeightFormat(grid, group), "minmax")
    size = group or 96
    parts = [weight[:, start : start + size] for start in range(0, 96, size)]
    lows, highs = (np.stack([end(part, 1) for part in parts], 1) for end in (np.min, np.max))
    if grid.symmetric:
        scales = np.maximum(-lows, highs) / grid.symmetric_max
    else:
        scales = (highs - lows) / (grid.levels - 1)
    np.testing.assert_allclose(rounded.scales, scales, rtol=1e-6)
    assert rounded.integers.min() >= grid.quant_min
    assert rounded.integers.max() <= grid.quant_max
    # No weight lies more than half a step from its value; the zero point may round by another half.
    steps = np.repeat(scales, size, axis=1)[:, :96]
    assert (np.abs(rounded.dequantize() - weight) <= 1.01 * steps).all()


@pytest.mark.parametrize("grid", GRIDS)
def test_mse_is_no_worse_than_minmax_and_smaller_groups_are_better(grid: Grid) -> None:
    weight = floats(16, 128) ** 3
    by_method = {
        method: error(choose_scales(weight, WeightFormat(grid, 64), method), weight)
        for method in ("minmax", "mse")
    }
    assert by_method["mse"] <= by_method["minmax"]
    small = choose_scales(weight, WeightFormat(grid, 32), "mse")
    assert error(small, weight) < by_method["mse"]


def test_importance_moves_the_error_to_inputs_that_matter_less() -> None:
    weight = floats(32, 64) ** 3
    importance = np.where(np.arange(64) < 8, 100.0, 1.0)
    plain, weighed = (
        choose_scales(weight, WeightFormat(SYMMETRIC, None), "mse", weights).dequantize() - weight
        for weights in (None, importance)
    )
    weighted = [float((np.square(row) * importance).sum()) for row in (plain, weighed)]
    assert weighted[1] < weighted[0]


def test_group_that_the_inputs_do_not_fill_has_its_own_scale() -> None:
    weight = np.concatenate([floats(3, 32), 100 * floats(3, 8, seed=1)], axis=1)
    rounded = choose_scales(weight, WeightFormat(SYMMETRIC, 32), "minmax")
    assert rounded.scales.shape == (3, 2)
    assert (rounded.scales[:, 1] > 10 * rounded.scales[:, 0]).all()
    assert rounded.dequantize().shape == weight.shape


def test_scale_of_a_channel_is_repeated_for_smaller_groups() -> None:
    weight = floats(4, 80)
    rounded = choose_scales(weight, WeightFormat(ASYMMETRIC, None), "mse")
    split = rounded.with_group(32)
    assert split.scales.shape == (4, 3)
    np.testing.assert_array_equal(split.dequantize(), rounded.dequantize())


def test_scales_of_another_number_are_refused() -> None:
    rounded = choose_scales(floats(4, 64), WeightFormat(SYMMETRIC, 32), "minmax")
    with pytest.raises(ValueError, match="64 inputs in groups of 16"):
        GroupedWeight(rounded.integers, rounded.scales, rounded.zero_points, SYMMETRIC, 16)


def test_zeros_and_tiny_weights_have_finite_scales() -> None:
    weight = np.zeros((2, 64), np.float32)
    weight[1] = 1e-42
    for method in ("minmax", "mse"):
        rounded = choose_scales(weight, WeightFormat(ASYMMETRIC, 32), method)
        np.testing.assert_allclose(rounded.dequantize(), weight, atol=1e-30)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("group", [32, None])
def test_gptq_lowers_the_error_of_other_outputs(grid: Grid, group: int | None) -> None:
    weight, kind = floats(24, 96) / np.float32(10), WeightFormat(grid, group)
    rows = correlated(600, 96, seed=2)
    gram = (rows.T @ rows).astype(np.float64)
    nearest = choose_scales(weight, kind, "mse")
    learned = round_gptq(RoundingProblem(weight, gram), kind, "mse")
    others = correlated(400, 96, seed=3)
    before, after = (
        float(np.square(others @ (rounded.dequantize() - weight).T).sum())
        for rounded in (nearest, learned)
    )
    assert after < 0.8 * before
    assert learned.integers.min() >= grid.quant_min
    assert learned.integers.max() <= grid.quant_max


def test_gptq_takes_inputs_that_are_never_active() -> None:
    rows = correlated(64, 64, seed=2)
    rows[:, 10:50] = 0
    weight, kind = floats(8, 64), WeightFormat(ASYMMETRIC, 32)
    gram = (rows.T @ rows).astype(np.float64)
    learned = round_gptq(RoundingProblem(weight, gram), kind, "mse")
    assert np.isfinite(learned.dequantize()).all()
    nothing = round_gptq(RoundingProblem(weight, np.zeros((64, 64))), kind, "mse")
    assert np.abs(nothing.dequantize() - weight).max() < 0.5


def test_correction_is_made_up_for() -> None:
    weight, kind = floats(16, 64) / np.float32(8), WeightFormat(Grid(8), 32)
    rows, noise = correlated(800, 64, seed=2), 0.1 * floats(800, 64, seed=5)
    gram = ((rows + noise).T @ (rows + noise)).astype(np.float64)
    missing = (weight @ rows.T @ (rows + noise)).astype(np.float64) - weight @ gram
    errors = []
    for correction in (None, missing):
        values = round_gptq(RoundingProblem(weight, gram, correction), kind, "mse").dequantize()
        errors.append(float(np.square((rows + noise) @ values.T - rows @ weight.T).sum()))
    assert errors[1] < 0.9 * errors[0]
