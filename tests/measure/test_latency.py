"""Interleaved timing, on a clock that only moves during calls."""

import gc
import itertools
import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qconvert.measure.latency import (
    MAX_ROUNDS,
    MAX_SAMPLES,
    Latency,
    TimingEffort,
    count_rounds,
    interleave,
    round_order,
    schedule_round,
    speedup,
    speedup_interval,
    summarize_latency,
    timing_notes,
)

BRIEF = TimingEffort(seconds=0.5, rounds=10, warm_up_seconds=1.0)


@dataclass
class FakeClock:
    """A clock, and calls of given durations; `log` lists the calls by name."""

    now: float = 0.0
    log: list[str] = field(default_factory=list)

    def read(self) -> float:
        return self.now

    def call(self, name: str, seconds: Callable[[int], float]) -> Callable[[], object]:
        def call() -> None:
            self.log.append(name)
            self.now += seconds(self.log.count(name))

        return call

    def steady(self, name: str, seconds: float) -> Callable[[], object]:
        def call() -> None:
            self.log.append(name)
            self.now += seconds

        return call


def test_samples_are_milliseconds_of_one_call() -> None:
    clock = FakeClock()
    samples = interleave({"a": clock.steady("a", 0.025)}, BRIEF, clock.read)
    assert set(samples["a"]) == {25.0}


def test_slow_first_calls_are_not_samples() -> None:
    clock = FakeClock()
    slow_start = clock.call("a", lambda nth: 5.0 if nth == 1 else 0.5 if nth < 6 else 0.03)
    # 0.5 s a call would end the warm-up after two that are not faster; these are still cooling.
    samples = interleave({"a": slow_start}, TimingEffort(0.5, 10, 10.0), clock.read)
    assert 5000.0 not in samples["a"]


def test_warm_up_goes_on_while_calls_get_faster() -> None:
    clock = FakeClock()
    faster = clock.call("a", lambda nth: max(0.15, 2.0 * 0.8**nth))
    samples = interleave({"a": faster}, TimingEffort(0.5, 10, 60.0), clock.read)
    assert samples["a"] == (150.0,) * 10


def test_single_slice_without_speedup_does_not_end_warm_up() -> None:
    clock = FakeClock()
    steps = clock.call("a", lambda nth: 0.6 if nth < 4 else 0.15)
    samples = interleave({"a": steps}, TimingEffort(6.0, 3, 60.0), clock.read)
    # The fast calls need this many rounds; for the slow ones 10 to 20 would be enough.
    assert len(samples["a"]) >= 40


def test_warm_up_that_never_settles_ends_at_its_limit() -> None:
    clock = FakeClock()
    faster = clock.call("a", lambda nth: 0.9 * 0.9**nth)
    samples = interleave({"a": faster}, TimingEffort(0.5, 10, 1.0), clock.read)
    assert samples["a"][0] > samples["a"][-1]


def test_engines_take_turns_in_changing_order() -> None:
    clock = FakeClock()
    interleave({name: clock.steady(name, 0.2) for name in "abc"}, BRIEF, clock.read)
    timed = "".join(clock.log)[-30:]
    rounds = [timed[start : start + 3] for start in range(0, 30, 3)]
    assert all(sorted(order) == ["a", "b", "c"] for order in rounds)
    assert len(set(rounds)) == 6


@given(st.integers(2, 6))
def test_engine_order_is_balanced_over_rounds(count: int) -> None:
    names = [str(number) for number in range(count)]
    rounds = [round_order(names, done) for done in range(2 * count)]
    assert set(Counter(order[0] for order in rounds).values()) == {2}
    line = [name for order in rounds for name in order]
    follows = Counter(itertools.pairwise(line))
    for name in names:
        before = {other: follows[other, name] for other in names if other != name}
        # At most half of the time after the same engine, except with two engines.
        assert count == 2 or max(before.values()) <= count
        assert len([times for times in before.values() if times]) >= min(2, count - 1)


def test_engines_share_timing_period_and_total_time() -> None:
    clock = FakeClock()
    calls = {"fast": clock.steady("fast", 0.0005), "slow": clock.steady("slow", 0.03)}
    samples = interleave(calls, TimingEffort(seconds=3.0), clock.read)
    for name, times in samples.items():
        assert sum(times) == pytest.approx(3000, rel=0.05), name
    halves = len(clock.log) // 2
    assert "slow" in clock.log[:halves]
    assert clock.log[-5000:].count("slow") > 10


@given(st.floats(2e-5, 0.9), st.floats(0.1, 5), st.integers(3, 40))
def test_engine_gets_its_seconds_and_its_rounds(call: float, seconds: float, rounds: int) -> None:
    effort = TimingEffort(seconds, rounds)
    count = count_rounds(call, effort)
    schedule = schedule_round(call, count, effort)
    samples = count * schedule.samples
    assert samples >= rounds
    # Rounds are doubled at most.
    enough = 2 * samples * schedule.calls * call >= 0.99 * seconds
    assert enough or samples > 0.9 * MAX_SAMPLES


def test_short_calls_are_timed_several_per_sample() -> None:
    clock = FakeClock()
    samples = interleave({"a": clock.steady("a", 0.00001)}, TimingEffort(0.05), clock.read)
    assert schedule_round(0.00001, 10, BRIEF).calls == 20
    assert samples["a"] == pytest.approx([0.01] * len(samples["a"]))


def test_call_of_zero_seconds_does_not_loop_forever() -> None:
    assert schedule_round(0.0, 10, BRIEF).calls == 1000
    assert count_rounds(0.0, BRIEF) == MAX_ROUNDS


@pytest.mark.parametrize(("seconds", "rounds"), [(0.9, 10), (2.0, 5), (30.0, 3)])
def test_slow_engine_takes_fewer_rounds(seconds: float, rounds: int) -> None:
    clock = FakeClock()
    calls = {"slow": clock.steady("slow", seconds), "fast": clock.steady("fast", 0.05)}
    samples = interleave(calls, TimingEffort(seconds=1.0), clock.read)
    assert len(samples["slow"]) == rounds
    assert len(samples["fast"]) >= 10


def test_time_that_does_not_divide_evenly_is_not_doubled() -> None:
    clock = FakeClock()
    samples = interleave({"a": clock.steady("a", 0.029)}, TimingEffort(seconds=3.0), clock.read)
    assert sum(samples["a"]) == pytest.approx(3000, abs=30)


def test_rounds_are_added_when_calls_get_faster_after_warm_up() -> None:
    clock = FakeClock()
    # Slow during the warm-up, five times as fast in the measured rounds.
    cooling = clock.call("a", lambda nth: 0.5 if nth <= 4 else 0.1)
    samples = interleave({"a": cooling}, TimingEffort(seconds=5.0), clock.read)
    assert len(samples["a"]) == 20


def test_speedup_is_not_affected_by_common_drift() -> None:
    clock = FakeClock()

    def drifting(factor: float) -> Callable[[], object]:
        def call() -> None:
            # The machine slows down by half over ten seconds.
            clock.now += factor * 0.01 * (1 + clock.now / 20)

        return call

    samples = interleave({"a": drifting(2.0), "b": drifting(1.0)}, TimingEffort(2.0), clock.read)
    assert max(samples["b"]) / min(samples["b"]) > 1.15
    assert speedup(samples["a"], samples["b"]) == pytest.approx(2.0, rel=0.01)


def test_cold_caches_after_another_engine_are_not_timed() -> None:
    clock = FakeClock()
    last = ""

    def cold(name: str) -> Callable[[], object]:
        def call() -> None:
            nonlocal last
            clock.now += 0.002 if last == name else 0.003
            last = name

        return call

    samples = interleave({"a": cold("a"), "b": cold("b")}, BRIEF, clock.read)
    assert set(samples["a"]) == set(samples["b"]) == {2.0}


def test_progress_of_warm_up_and_rounds_is_reported() -> None:
    clock, reports = FakeClock(), list[tuple[str, float | None]]()
    calls = {"a": clock.steady("a", 0.2)}
    interleave(calls, BRIEF, clock.read, lambda *report: reports.append(report))
    assert reports[0] == ("warm-up", None)
    assert [share for _, share in reports[1:]] == pytest.approx([n / 10 for n in range(10)])
    assert reports[-1][0] == "round 10"


def test_garbage_collection_is_off_during_timing_only() -> None:
    clock, enabled = FakeClock(), set[bool]()

    def call() -> None:
        enabled.add(gc.isenabled())
        clock.now += 0.2

    interleave({"a": call}, BRIEF, clock.read)
    assert enabled == {False}
    assert gc.isenabled()


def test_garbage_collection_is_restored_after_a_failing_call() -> None:
    def broken() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        interleave({"a": broken}, BRIEF, FakeClock().read)
    assert gc.isenabled()


def test_no_calls_give_no_samples() -> None:
    assert interleave({}, BRIEF) == {}


def test_real_clock_gives_positive_samples() -> None:
    numbers: Iterator[int] = iter(range(10**9))
    samples = interleave({"a": lambda: next(numbers)}, TimingEffort(0.01, 3, 0.01))
    assert len(samples["a"]) >= 3
    assert min(samples["a"]) > 0


def test_timing_with_too_few_rounds_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 3 rounds"):
        TimingEffort(rounds=2)


def notes_on(samples: Sequence[float], *, on_gpu: bool = False) -> tuple[str, ...]:
    return timing_notes(Latency(1, "host", tuple(samples)), on_gpu=on_gpu)


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
    assert notes_on(samples) == ()


def test_quiet_samples_have_no_notes() -> None:
    assert notes_on(quiet()) == ()
    assert notes_on(quiet(10)) == ()


def test_slow_first_samples_are_noted() -> None:
    (note,) = notes_on([20.0] * 12 + quiet(108))
    assert note.startswith("the first 12 of 120 samples took 2.0x as long")
    assert "warm-up" in note


def test_slow_last_samples_are_noted() -> None:
    notes = notes_on(quiet(90) + [15.0] * 10)
    assert any("the last 10 of 100 samples took 1.5x" in note for note in notes)


def test_many_outliers_are_noted_and_one_is_not() -> None:
    samples = quiet()
    assert notes_on([*samples[:50], 40.0, *samples[50:]]) == ()
    samples[5:95:9] = [40.0] * 10
    (note,) = notes_on(samples)
    assert "10 of 100 samples are outliers" in note


def test_wide_spread_is_noted_with_a_remedy() -> None:
    samples = np.random.default_rng(0).normal(10, 2, 200).tolist()
    for on_gpu in (False, True):
        (note,) = notes_on(samples, on_gpu=on_gpu)
        assert note.startswith("unstable: the spread is 19% of the median")
        assert ("nvidia-smi -lgc" in note) == on_gpu


def test_speedup_is_paired_within_rounds() -> None:
    load = np.random.default_rng(0).uniform(1, 5, 99)
    assert speedup((load * 3).tolist(), load.tolist()) == pytest.approx(3)


def test_interval_of_a_speedup_has_the_ranks_around_the_median() -> None:
    before = [float(number) for number in range(1, 101)]
    assert speedup_interval(before, [1.0] * 100) == (41.0, 60.0)
    assert speedup_interval([3.0, 1.0, 2.0], [1.0] * 3) == (1.0, 3.0)
    assert speedup_interval([3.0], [2.0]) == (1.5, 1.5)


def test_speedup_pairs_engines_with_more_samples_per_round() -> None:
    load = np.repeat([1.0, 2.0, 8.0], 6)
    assert speedup((load[::2] * 4).tolist(), load.tolist()) == pytest.approx(4)
    assert speedup((load[::3] * 4).tolist(), load[::2].tolist()) == pytest.approx(4)
    assert speedup([8.0, 8.0], [2.0, 2.0, 2.0]) == pytest.approx(4)
