"""Latency statistics against their definitions, and notes on doubtful samples."""

import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qconvert.measure.latency import Latency, speedup, summarize_latency, timing_notes

times = st.lists(st.floats(0.01, 1e4), min_size=1, max_size=60)


def quiet(count: int = 100, middle: float = 10.0) -> list[float]:
    random = np.random.default_rng(0)
    samples: list[float] = random.normal(middle, 0.01 * middle, count).tolist()
    return samples


@given(times, st.integers(1, 64))
def test_statistics_follow_their_definitions(samples: list[float], batch: int) -> None:
    stats = summarize_latency(Latency(batch, "host", tuple(samples)))
    ordered = sorted(samples)
    assert stats.samples == len(samples)
    assert stats.median_ms == pytest.approx(statistics.median(samples))
    assert stats.mean_ms == pytest.approx(statistics.fmean(samples))
    assert stats.min_ms == ordered[0]
    assert stats.images_per_second == pytest.approx(1000 * batch / statistics.median(samples))
    for share, percentile in ((0.9, stats.p90_ms), (0.95, stats.p95_ms), (0.99, stats.p99_ms)):
        position = (len(samples) - 1) * share
        low, high = ordered[math.floor(position)], ordered[math.ceil(position)]
        assert percentile == pytest.approx(low + (high - low) * (position % 1))


@given(times)
def test_percentiles_are_ordered(samples: list[float]) -> None:
    stats = summarize_latency(Latency(1, "host", tuple(samples)))
    assert stats.min_ms <= stats.median_ms <= stats.p90_ms <= stats.p95_ms <= stats.p99_ms
    assert stats.min_ms <= stats.mean_ms <= max(samples)


def test_spread_is_the_standard_deviation_of_normal_samples_despite_outliers() -> None:
    samples = np.random.default_rng(1).normal(50, 2, 20_000).tolist()
    for outliers, tolerance in ((0, 0.03), (100, 0.05)):
        stats = summarize_latency(Latency(1, "host", (*samples, *[1e6] * outliers)))
        assert stats.spread_ms == pytest.approx(2, rel=tolerance)


def test_no_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="no samples"):
        summarize_latency(Latency(1, "host", ()))


def test_samples_ten_deviations_from_the_median_are_outliers() -> None:
    # The median absolute deviation of 9, 10, 11 in equal numbers is 1.
    usual = (9.0, 10.0, 11.0) * 20
    for sample, count in ((19.9, 0), (20.1, 1), (-0.1, 1)):
        assert summarize_latency(Latency(1, "host", (*usual, sample))).outliers == count


def test_equal_samples_have_no_outliers_and_no_notes() -> None:
    samples = (5.0,) * 20
    stats = summarize_latency(Latency(1, "host", samples))
    assert (stats.spread_ms, stats.outliers) == (0.0, 0)
    assert timing_notes(samples) == ()


def test_quiet_samples_have_no_notes() -> None:
    assert timing_notes(quiet()) == ()
    assert timing_notes(quiet(10)) == ()


def test_slow_first_samples_are_noted() -> None:
    (note,) = timing_notes([20.0] * 12 + quiet(108))
    assert note.startswith("the first 12 of 120 samples took 2.0x as long")
    assert "warm-up" in note


def test_slow_last_samples_are_noted() -> None:
    notes = timing_notes(quiet(90) + [15.0] * 10)
    assert any("the last 10 of 100 samples took 1.5x" in note for note in notes)


def test_many_outliers_are_noted_and_one_is_not() -> None:
    samples = quiet()
    assert timing_notes([*samples[:50], 40.0, *samples[50:]]) == ()
    samples[5:95:9] = [40.0] * 10
    (note,) = timing_notes(samples)
    assert "10 of 100 samples are outliers" in note


def test_wide_spread_is_noted_with_a_remedy() -> None:
    samples = np.random.default_rng(0).normal(10, 2, 200).tolist()
    for on_gpu in (False, True):
        (note,) = timing_notes(samples, on_gpu=on_gpu)
        assert note.startswith("unstable: the spread is 19% of the median")
        assert ("nvidia-smi -lgc" in note) == on_gpu


def test_speedup_is_paired_within_rounds() -> None:
    load = np.random.default_rng(0).uniform(1, 5, 99)
    assert speedup((load * 3).tolist(), load.tolist()) == pytest.approx(3)


def test_speedup_pairs_engines_with_more_samples_per_round() -> None:
    load = np.repeat([1.0, 2.0, 8.0], 6)
    assert speedup((load[::2] * 4).tolist(), load.tolist()) == pytest.approx(4)
    assert speedup((load[::3] * 4).tolist(), load[::2].tolist()) == pytest.approx(4)
    assert speedup([8.0, 8.0], [2.0, 2.0, 2.0]) == pytest.approx(4)
