"""Timing in turns, on a clock that only moves when a call lets it."""

import gc
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qconvert.measure.latency import (
    MAX_ROUNDS,
    MAX_SAMPLES,
    TIMING_EFFORTS,
    TimingEffort,
    count_rounds,
    interleave,
    round_order,
    schedule_round,
)
from qconvert.measure.stats import speedup

BRIEF = TimingEffort(seconds=0.5, rounds=10, warm_up_seconds=1.0)


@dataclass
class Time:
    """A clock, and calls that take what they are told; `log` has who was called when."""

    now: float = 0.0
    log: list[str] = field(default_factory=list)

    def clock(self) -> float:
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
    time = Time()
    found = interleave({"a": time.steady("a", 0.025)}, BRIEF, time.clock)
    assert set(found["a"]) == {25.0}


def test_first_slow_calls_are_no_samples() -> None:
    time = Time()
    slow_start = time.call("a", lambda nth: 5.0 if nth == 1 else 0.5 if nth < 6 else 0.03)
    # 0.5 s a call would end the warm-up after two that are not faster; these are still cooling.
    found = interleave({"a": slow_start}, TimingEffort(0.5, 10, 10.0), time.clock)
    assert 5000.0 not in found["a"]


def test_warm_up_goes_on_while_it_gets_faster() -> None:
    time = Time()
    faster = time.call("a", lambda nth: max(0.15, 2.0 * 0.8**nth))
    found = interleave({"a": faster}, TimingEffort(0.5, 10, 60.0), time.clock)
    assert found["a"] == (150.0,) * 10


def test_one_turn_that_is_no_faster_does_not_end_the_warm_up() -> None:
    time = Time()
    steps = time.call("a", lambda nth: 0.6 if nth < 4 else 0.15)
    found = interleave({"a": steps}, TimingEffort(6.0, 3, 60.0), time.clock)
    # As planned for the fast calls: for the slow ones 10 to 20 rounds would do.
    assert len(found["a"]) >= 40


def test_warm_up_that_never_settles_ends_at_its_cap() -> None:
    time = Time()
    faster = time.call("a", lambda nth: 0.9 * 0.9**nth)
    found = interleave({"a": faster}, TimingEffort(0.5, 10, 1.0), time.clock)
    assert found["a"][0] > found["a"][-1]


def test_engines_take_turns_and_the_order_changes() -> None:
    time = Time()
    interleave({name: time.steady(name, 0.2) for name in "abc"}, BRIEF, time.clock)
    timed = "".join(time.log)[-30:]
    rounds = [timed[at : at + 3] for at in range(0, 30, 3)]
    assert all(sorted(each) == ["a", "b", "c"] for each in rounds)
    assert len(set(rounds)) == 6


@given(st.integers(2, 6))
def test_over_all_orders_everyone_is_first_as_often_and_follows_everyone(count: int) -> None:
    names = [str(number) for number in range(count)]
    rounds = [round_order(names, done) for done in range(2 * count)]
    assert set(Counter(each[0] for each in rounds).values()) == {2}
    line = [name for each in rounds for name in each]
    follows = Counter(itertools.pairwise(line))
    for one in names:
        before = {other: follows[other, one] for other in names if other != one}
        # Some half of the time behind the same one at most; of two there is only the other one.
        assert count == 2 or max(before.values()) <= count
        assert len([each for each in before.values() if each]) >= min(2, count - 1)


def test_all_engines_are_timed_for_as_long_over_the_same_minutes() -> None:
    time = Time()
    calls = {"fast": time.steady("fast", 0.0005), "slow": time.steady("slow", 0.03)}
    found = interleave(calls, TimingEffort(seconds=3.0), time.clock)
    for name, each in found.items():
        assert sum(each) == pytest.approx(3000, rel=0.05), name
    halves = len(time.log) // 2
    assert "slow" in time.log[:halves]
    assert time.log[-5000:].count("slow") > 10


@given(st.floats(2e-5, 0.9), st.floats(0.1, 5), st.integers(3, 40))
def test_an_engine_gets_its_seconds_and_its_rounds(
    call: float, seconds: float, rounds: int
) -> None:
    settings = TimingEffort(seconds, rounds)
    count = count_rounds(call, settings)
    each = schedule_round(call, count, settings)
    samples = count * each.samples
    assert samples >= rounds
    # Rounds may be doubled, and never need to be more than that.
    enough = 2 * samples * each.calls * call >= 0.99 * seconds
    assert enough or samples > 0.9 * MAX_SAMPLES


def test_a_call_too_short_for_the_clock_is_timed_many_at_a_time() -> None:
    time = Time()
    found = interleave({"a": time.steady("a", 0.00001)}, TimingEffort(0.05), time.clock)
    assert schedule_round(0.00001, 10, BRIEF).calls == 20
    assert found["a"] == pytest.approx([0.01] * len(found["a"]))


def test_a_call_that_the_clock_cannot_see_is_no_endless_loop() -> None:
    assert schedule_round(0.0, 10, BRIEF).calls == 1000
    assert count_rounds(0.0, BRIEF) == MAX_ROUNDS


@pytest.mark.parametrize(("seconds", "rounds"), [(0.9, 10), (2.0, 5), (30.0, 3)])
def test_a_slow_engine_takes_fewer_rounds(seconds: float, rounds: int) -> None:
    time = Time()
    calls = {"slow": time.steady("slow", seconds), "fast": time.steady("fast", 0.05)}
    found = interleave(calls, TimingEffort(seconds=1.0), time.clock)
    assert len(found["slow"]) == rounds
    assert len(found["fast"]) >= 10


def test_time_that_does_not_divide_evenly_is_not_doubled() -> None:
    time = Time()
    found = interleave({"a": time.steady("a", 0.029)}, TimingEffort(seconds=3.0), time.clock)
    assert sum(found["a"]) == pytest.approx(3000, abs=30)


def test_too_few_rounds_are_made_up_for() -> None:
    time = Time()
    # Slow while it warms up, five times as fast once it counts.
    calls = 0

    def cooling() -> None:
        nonlocal calls
        calls += 1
        time.now += 0.5 if calls <= 4 else 0.1

    found = interleave({"a": cooling}, TimingEffort(seconds=5.0), time.clock)
    assert len(found["a"]) == 20


def test_drift_that_hits_all_alike_does_not_change_a_ratio() -> None:
    time = Time()

    def twice(name: str, factor: float) -> Callable[[], object]:
        def call() -> None:
            # The machine gets slower by half over ten seconds.
            time.now += factor * 0.01 * (1 + time.now / 20)

        return call

    found = interleave({"a": twice("a", 2.0), "b": twice("b", 1.0)}, TimingEffort(2.0), time.clock)
    assert max(found["b"]) / min(found["b"]) > 1.15
    assert speedup(found["a"], found["b"]) == pytest.approx(2.0, rel=0.01)


def test_what_a_neighbour_leaves_in_the_caches_is_not_timed() -> None:
    time = Time()
    last = ""

    def cold(name: str) -> Callable[[], object]:
        def call() -> None:
            nonlocal last
            time.now += 0.002 if last == name else 0.003
            last = name

        return call

    found = interleave({"a": cold("a"), "b": cold("b")}, BRIEF, time.clock)
    assert set(found["a"]) == set(found["b"]) == {2.0}


def test_one_hears_how_far_it_is() -> None:
    time, heard = Time(), list[tuple[str, float | None]]()
    interleave(
        {"a": time.steady("a", 0.2)},
        BRIEF,
        time.clock,
        lambda text, share: heard.append((text, share)),
    )
    assert heard[0] == ("warm-up", None)
    assert [share for _, share in heard[1:]] == pytest.approx([n / 10 for n in range(10)])
    assert heard[-1][0] == "round 10"


def test_garbage_is_left_alone_while_it_counts_and_cleared_afterwards() -> None:
    time, seen = Time(), set[bool]()

    def call() -> None:
        seen.add(gc.isenabled())
        time.now += 0.2

    interleave({"a": call}, BRIEF, time.clock)
    assert seen == {False}
    assert gc.isenabled()


def test_an_engine_that_fails_leaves_everything_as_it_was() -> None:
    def broken() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        interleave({"a": broken}, BRIEF, Time().clock)
    assert gc.isenabled()


def test_nothing_to_time_is_no_samples() -> None:
    assert interleave({}, BRIEF) == {}


def test_the_real_clock_and_a_real_call_give_positive_samples() -> None:
    numbers: Iterator[int] = iter(range(10**9))
    found = interleave({"a": lambda: next(numbers)}, TimingEffort(0.01, 3, 0.01))
    assert len(found["a"]) >= 3
    assert min(found["a"]) > 0


def test_efforts_differ_in_time_and_nonsense_is_refused() -> None:
    quick, usual, thorough = (TIMING_EFFORTS[name] for name in ("quick", "default", "thorough"))
    assert quick.seconds < usual.seconds < thorough.seconds
    with pytest.raises(ValueError, match="at least 3 rounds"):
        TimingEffort(rounds=2)
