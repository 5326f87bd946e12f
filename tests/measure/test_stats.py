"""Figures of samples against their definitions, and notes where they deserve no trust."""

import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qconvert.measure.latency import Latency
from qconvert.measure.stats import speedup, speedup_range, spread, summarize_latency, timing_notes

times = st.lists(st.floats(0.01, 1e4), min_size=1, max_size=60)


def quiet(count: int = 100, middle: float = 10.0) -> list[float]:
    random = np.random.default_rng(0)
    return [float(each) for each in random.normal(middle, 0.01 * middle, count)]


@given(times, st.integers(1, 64))
def test_figures_are_those_of_the_textbook(samples: list[float], batch: int) -> None:
    found = summarize_latency(Latency(batch, "host", tuple(samples)))
    ordered = sorted(samples)
    assert found.samples == len(samples)
    assert found.median_ms == pytest.approx(statistics.median(samples))
    assert found.mean_ms == pytest.approx(statistics.fmean(samples))
    assert found.min_ms == ordered[0]
    assert found.images_per_second == pytest.approx(1000 * batch / statistics.median(samples))
    for share, percentile in ((0.9, found.p90_ms), (0.95, found.p95_ms), (0.99, found.p99_ms)):
        place = (len(samples) - 1) * share
        low, high = ordered[math.floor(place)], ordered[math.ceil(place)]
        assert percentile == pytest.approx(low + (high - low) * (place % 1))


@given(times)
def test_figures_stand_in_order(samples: list[float]) -> None:
    found = summarize_latency(Latency(1, "host", tuple(samples)))
    assert found.min_ms <= found.median_ms <= found.p90_ms <= found.p95_ms <= found.p99_ms
    assert found.min_ms <= found.mean_ms <= max(samples)


def test_the_spread_is_the_standard_deviation_of_normal_samples_whatever_a_few_outliers() -> None:
    samples = np.random.default_rng(1).normal(50, 2, 20_000).tolist()
    assert spread(samples) == pytest.approx(2, rel=0.03)
    assert spread([*samples, *[1e6] * 100]) == pytest.approx(2, rel=0.05)


def test_no_samples_have_no_figures() -> None:
    with pytest.raises(ValueError, match="no samples"):
        summarize_latency(Latency(1, "host", ()))


def test_samples_ten_deviations_from_the_median_are_outliers() -> None:
    # The median absolute deviation of 9, 10, 11 in equal numbers is 1.
    usual = (9.0, 10.0, 11.0) * 20
    for far, count in ((19.9, 0), (20.1, 1), (-0.1, 1)):
        assert summarize_latency(Latency(1, "host", (*usual, far))).outliers == count


def test_equal_samples_have_no_outliers_and_no_notes() -> None:
    samples = (5.0,) * 20
    found = summarize_latency(Latency(1, "host", samples))
    assert (found.spread_ms, found.outliers) == (0.0, 0)
    assert timing_notes(samples) == ()


def test_quiet_samples_have_no_notes() -> None:
    assert timing_notes(quiet()) == ()
    assert timing_notes(quiet(10)) == ()


def test_a_slow_start_is_noted() -> None:
    (note,) = timing_notes([20.0] * 12 + quiet(108))
    assert note.startswith("the first 12 of 120 samples took 2.0x as long")
    assert "warm-up" in note


def test_a_machine_that_tires_is_noted() -> None:
    found = timing_notes(quiet(90) + [15.0] * 10)
    assert any("the last 10 of 100 samples took 1.5x" in note for note in found)


def test_many_outliers_are_noted_and_one_is_not() -> None:
    samples = quiet()
    assert timing_notes([*samples[:50], 40.0, *samples[50:]]) == ()
    samples[5:95:9] = [40.0] * 10
    (note,) = timing_notes(samples)
    assert "10 of 100 samples are outliers" in note


def test_a_wide_spread_is_noted_with_what_to_do() -> None:
    samples = np.random.default_rng(0).normal(10, 2, 200).tolist()
    for on_gpu in (False, True):
        (note,) = timing_notes(samples, on_gpu=on_gpu)
        assert note.startswith("unstable: the spread is 19% of the median")
        assert ("nvidia-smi -lgc" in note) == on_gpu


def test_a_speedup_is_paired_and_does_not_see_what_hit_both() -> None:
    load = np.random.default_rng(0).uniform(1, 5, 99)
    assert speedup((load * 3).tolist(), load.tolist()) == pytest.approx(3)
    assert speedup_range((load * 3).tolist(), load.tolist()) == pytest.approx((3, 3))


def test_an_engine_with_more_samples_a_turn_is_paired_by_turns() -> None:
    load = np.repeat([1.0, 2.0, 8.0], 6)
    assert speedup((load[::2] * 4).tolist(), load.tolist()) == pytest.approx(4)
    assert speedup((load[::3] * 4).tolist(), load[::2].tolist()) == pytest.approx(4)
    assert speedup([8.0, 8.0], [2.0, 2.0, 2.0]) == pytest.approx(4)


@given(times, st.floats(0.1, 10))
def test_the_interval_holds_the_speedup(samples: list[float], factor: float) -> None:
    after = [factor * each for each in reversed(samples)]
    low, high = speedup_range(samples, after)
    assert low <= speedup(samples, after) <= high


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    inside = 0
    for _ in range(400):
        ratios = random.lognormal(math.log(2), 0.3, 40)
        low, high = speedup_range(ratios.tolist(), [1.0] * 40)
        inside += low <= 2 <= high
    assert 0.92 <= inside / 400 <= 0.99
