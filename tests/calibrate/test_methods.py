"""Ranges agree with those computed from all values in float64 by definition of each method."""

from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray

from qconvert.calibrate.methods import METHODS, _kl_divergences, find_method
from qconvert.calibrate.summary import Summary
from qconvert.core.errors import UsageError
from qconvert.core.scales import Grid, Range
from tests.calibrate.activations import SHAPES, summary_of
from tests.models import floats

IMAGES, PLACES = 160, 16_384
SYMMETRIC, SHIFTED = Grid(8, symmetric=True), Grid(8, symmetric=False)
EVERY = [*METHODS, "percentile:99.9", "percentile:99.99", "percentile:99.999"]

Values = NDArray[np.float64]


@cache
def case(shape: str) -> tuple[Values, Summary, Summary]:
    """Return all values in rising order, their exact summary, and the sampled one."""
    values = SHAPES[shape](np.random.default_rng(0), (IMAGES, PLACES))
    summaries = [summary_of(values, exact=exact) for exact in (True, False)]
    return np.sort(values.astype(np.float64).ravel()), summaries[0], summaries[1]


def squared_error(values: Values, value_range: Range, grid: Grid) -> float:
    """Quantize every value and sum the squared errors."""
    if grid.symmetric:
        step, zero, lowest, highest = value_range.max_abs / 127, 0.0, -128, 127
    else:
        step = (max(value_range.high, 0) - min(value_range.low, 0)) / 255
        zero, lowest, highest = np.rint(-min(value_range.low, 0) / step), 0, 255
    integers = np.clip(np.rint(values / step) + zero, lowest, highest)
    return float(np.square((integers - zero) * step - values).sum())


def divergences(values: Values, groups: int) -> tuple[Values, Values]:
    """Return thresholds and their KL divergence, straight from the definition."""
    magnitudes = np.abs(values)
    bins, edges = np.histogram(magnitudes, 2048, (0, magnitudes.max()))
    bins[0] = bins[1]
    cuts = np.arange(groups, 2049)
    return edges[cuts], np.array(
        [divergence(bins.astype(np.float64), cut, groups) for cut in cuts.tolist()]
    )


def divergence(bins: Values, cut: int, groups: int) -> float:
    clipped = bins[:cut].copy()
    edges = cut * np.arange(groups) // groups
    filled = np.add.reduceat(clipped > 0, edges, dtype=np.float64)
    spread = np.add.reduceat(clipped, edges) / np.maximum(filled, 1)
    merged = np.repeat(spread, np.diff(np.append(edges, cut))) * (clipped > 0)
    clipped[-1] += bins[cut:].sum()
    p, q = clipped / clipped.sum(), merged / merged.sum()
    if (q[p > 0] == 0).any():
        return np.inf
    return float((p[p > 0] * np.log(p[p > 0] / q[p > 0])).sum())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("percent", [99.9, 99.99, 99.999])
def test_percentile_matches_numpy_on_all_values(shape: str, percent: float) -> None:
    values, exact, sampled = case(shape)
    method = find_method(f"percentile:{percent}")
    threshold = np.quantile(np.abs(values), percent / 100)
    assert method(exact, SYMMETRIC).max_abs == pytest.approx(threshold, rel=0.01)
    assert method(sampled, SYMMETRIC).max_abs == pytest.approx(threshold, rel=0.04)


@pytest.mark.parametrize("shape", ["normal", "laplace", "student t4"])
def test_asymmetric_percentile_clips_both_tails_equally(shape: str) -> None:
    values, exact, _ = case(shape)
    limits = find_method("percentile:99.9")(exact, SHIFTED)
    assert limits.low == pytest.approx(np.quantile(values, 0.0005), rel=0.01)
    assert limits.high == pytest.approx(np.quantile(values, 0.9995), rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_symmetric_mse_range_matches_brute_force(shape: str) -> None:
    values, exact, sampled = case(shape)
    thresholds = np.abs(values).max() * np.geomspace(1, 1 / 40, 50)
    tried = [squared_error(values, Range(-t, t), SYMMETRIC) for t in thresholds]
    for summary, share in ((exact, 0.01), (sampled, 0.04)):
        error = squared_error(values, find_method("mse")(summary, SYMMETRIC), SYMMETRIC)
        assert error <= min(tried) * (1 + share)


@pytest.mark.parametrize("shape", SHAPES)
def test_asymmetric_mse_range_matches_brute_force(shape: str) -> None:
    values, exact, sampled = case(shape)
    sample = values[:: len(values) // 200_000]  # all pairs of all values take minutes
    sample = np.concatenate([sample, values[-50:], values[:50]])
    lows, highs = min(values[0], 0.0), values[-1]
    factors = np.geomspace(1, 1 / 16, 16)
    pairs = [Range(lows * a, highs * b) for b in factors for a in (factors if lows else [1])]
    best = min(pairs, key=lambda pair: squared_error(sample, pair, SHIFTED))
    tried = squared_error(values, best, SHIFTED)
    for summary, share in ((exact, 0.01), (sampled, 0.04)):
        error = squared_error(values, find_method("mse")(summary, SHIFTED), SHIFTED)
        assert error <= tried * (1 + share)


def good_thresholds(values: Values, groups: int) -> Values:
    """Return the thresholds whose divergence is within 1 % of the least; its curve is ragged."""
    thresholds, tried = divergences(values, groups)
    good: Values = thresholds[tried <= tried.min() * 1.01]
    return good


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_entropy_range_has_the_least_divergence(shape: str) -> None:
    # With fewer values, counting noise in 2,048 bins dominates the divergence.
    values = SHAPES[shape](np.random.default_rng(0), (256, 32_768))
    groups = {SYMMETRIC: 128} | ({SHIFTED: 256} if values.min() >= 0 else {})
    for grid, count in groups.items():
        good = good_thresholds(values.astype(np.float64).ravel(), count)
        for exact, share in ((True, 0.03), (False, 0.04)):
            threshold = find_method("entropy")(summary_of(values, exact=exact), grid).max_abs
            assert np.abs(threshold / good - 1).min() <= share


def test_entropy_of_bins_that_rounding_made_negative_is_a_number() -> None:
    bins = np.full(2048, 8.0)
    bins[:16] = 0.0
    bins[15] = -4e-9
    divergences = _kl_divergences(bins, np.arange(16, 2049), 16)
    assert not np.isnan(divergences).any()
    assert divergences[0] == np.inf


def test_entropy_range_of_rectified_values_does_not_collapse() -> None:
    _, exact, _ = case("rectified normal")
    assert find_method("entropy")(exact, SYMMETRIC).high > 4


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("grid", [SYMMETRIC, SHIFTED])
def test_ranges_never_exceed_the_extremes(shape: str, name: str, grid: Grid) -> None:
    values, *summaries = case(shape)
    for summary in summaries:
        limits = find_method(name)(summary, grid)
        assert values[0] <= limits.low <= limits.high <= values[-1]


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("grid", [SYMMETRIC, SHIFTED])
@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("constant", [0.0, 3.7, -2.5])
def test_constant_tensor_keeps_its_value_as_range(
    name: str, grid: Grid, exact: bool, constant: float
) -> None:
    values = np.full((9, 100), constant, dtype=np.float32)
    limits = find_method(name)(summary_of(values, exact=exact), grid)
    assert limits.max_abs == pytest.approx(abs(constant))


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("grid", [SYMMETRIC, SHIFTED])
def test_range_of_two_values_contains_both(name: str, grid: Grid) -> None:
    values = np.where(floats(40, 1000) > 0.5, 1.5, 0).astype(np.float32)
    assert find_method(name)(summary_of(values), grid) == Range(0.0, 1.5)


@pytest.mark.parametrize("name", EVERY)
def test_tensor_with_one_value_per_image_has_a_range(name: str) -> None:
    assert find_method(name)(summary_of(floats(40, 1)), SYMMETRIC).max_abs > 0


def test_minmax_range_is_exact_for_a_sparse_sample() -> None:
    values = floats(3, 100_000)
    limits = find_method("minmax")(summary_of(values, exact=False), SYMMETRIC)
    assert (limits.low, limits.high) == (values.min(), values.max())


def test_moving_average_weighs_a_new_image_by_one_percent() -> None:
    values = floats(30, 50)
    low, high = float(values[0].min()), float(values[0].max())
    for image in values[1:].astype(np.float64):
        low, high = low + 0.01 * (image.min() - low), high + 0.01 * (image.max() - high)
    limits = find_method("moving-average")(summary_of(values), SYMMETRIC)
    assert [limits.low, limits.high] == pytest.approx([low, high])


def test_unknown_range_method_is_refused_with_the_list() -> None:
    with pytest.raises(UsageError, match="no range method `kl`") as raised:
        find_method("kl")
    assert "minmax, moving-average, entropy, mse, and percentile:99.99" in str(raised.value.hint)


@pytest.mark.parametrize("name", ["percentile:", "percentile:x", "percentile:0", "percentile:101"])
def test_percentile_out_of_range_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="is not a percentile above 50"):
        find_method(name)
