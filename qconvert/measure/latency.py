"""How long engines take, in turns, so that what drifts hits all of them alike."""

import contextlib
import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

# A call this short is lost in what the clock and Python cost: several make a sample.
SHORT_SECONDS = 0.0002

# Up to here one call that is not timed opens a turn: it pays for bringing the engine's weights
# back into the caches that another engine has filled. In longer calls that does not show.
UNTIMED_CALL_SECONDS = 0.02

# Engines slower than this take turns only as long as this, and three times at least.
SLOW_SECONDS = 1.0
SLOW_TOTAL_SECONDS = 10.0
MIN_ROUNDS = 3

# More turns than this would not see drift better; and so many samples settle any percentile.
MAX_ROUNDS = 100
MAX_SAMPLES = 10_000


@dataclass(frozen=True)
class TimingEffort:
    """How long engines are timed: each for at least so many seconds and samples.

    Warm-up ends when it has become no faster, or after `warm_up_seconds` for each engine.
    """

    seconds: float = 3.0
    rounds: int = 10
    warm_up_seconds: float = 3.0

    def __post_init__(self) -> None:
        if not (self.seconds > 0 and self.rounds >= MIN_ROUNDS and self.warm_up_seconds >= 0):
            raise ValueError(f"timing takes time and at least {MIN_ROUNDS} rounds, got {self}")


TIMING_EFFORTS = {
    "quick": TimingEffort(seconds=1.0, warm_up_seconds=1.0),
    "default": TimingEffort(),
    "thorough": TimingEffort(seconds=10.0, rounds=30, warm_up_seconds=10.0),
}


@dataclass(frozen=True)
class RoundSchedule:
    """How an engine uses its turn: samples a turn, calls a sample, a call before that or none."""

    samples: int
    calls: int
    untimed_first: bool


def count_rounds(slowest: float, settings: TimingEffort) -> int:
    """Return how many turns each engine takes when the slowest needs so many seconds a call."""
    if slowest > SLOW_SECONDS:
        return min(settings.rounds, max(MIN_ROUNDS, int(SLOW_TOTAL_SECONDS / slowest)))
    wanted = math.ceil(settings.seconds / slowest) if slowest > 0 else MAX_ROUNDS
    return max(settings.rounds, min(MAX_ROUNDS, wanted))


def schedule_round(seconds: float, rounds: int, settings: TimingEffort) -> RoundSchedule:
    """Return how an engine that takes so long a call uses its turns.

    Samples are rounded down: more rounds make up for it, more samples could double the time.
    """
    if seconds > SLOW_SECONDS:
        return RoundSchedule(1, 1, untimed_first=False)
    calls = 1
    if seconds < SHORT_SECONDS:
        # A clock too coarse to see the call at all says zero.
        calls = math.ceil(SHORT_SECONDS / max(seconds, SHORT_SECONDS / 1000))
    # A hair below a whole number is that number.
    enough = int(settings.seconds / (max(seconds, SHORT_SECONDS) * rounds) + 1e-6)
    least = math.ceil(settings.rounds / rounds)
    most = max(least, MAX_SAMPLES // rounds)
    return RoundSchedule(
        min(most, max(least, enough)), calls, untimed_first=seconds <= UNTIMED_CALL_SECONDS
    )


def round_order(names: list[str], done: int) -> list[str]:
    """Return whose turn it is when in a round: everyone comes first once, and follows everyone."""
    first = done % len(names)
    turned = names[first:] + names[:first]
    return turned[::-1] if done // len(names) % 2 else turned


TimedCall = Callable[[], object]
MonotonicClock = Callable[[], float]

# What timing says while it works: a sentence, and how much is done from 0 to 1 where it knows.
TimingProgress = Callable[[str, float | None], None]

# A turn of warm-up, no longer than engines are timed; two in a row that are not faster by this
# share end it.
WARM_UP_SLICE_SECONDS = 0.1
WARM_UP_GAIN = 0.03
STEADY_SLICES = 2


@dataclass(frozen=True)
class Latency:
    """Every sample of one engine at one batch size, in milliseconds a run.

    `where` is `host` for the whole call with its copies, `device` for inputs that lie on the
    device already. `notes` tell what makes the figures doubtful.
    """

    batch: int
    where: Literal["host", "device"]
    samples_ms: tuple[float, ...]
    notes: tuple[str, ...] = ()


def interleave(
    calls: Mapping[str, TimedCall],
    settings: TimingEffort,
    clock: MonotonicClock = time.perf_counter,
    progress: TimingProgress = lambda text, share: None,
) -> dict[str, tuple[float, ...]]:
    """Time all calls in turns and return the milliseconds of one call, every sample, by name.

    All take the same number of turns, and fast ones more samples a turn, so that all are timed for
    as long and over the same minutes. `stats.speedup` pairs them again by turns.
    """
    if not calls:
        return {}
    with _garbage_collection_off():
        took = _warm_up(calls, settings, clock, progress)
        rounds = count_rounds(max(took.values()), settings)
        paces = {name: schedule_round(each, rounds, settings) for name, each in took.items()}
        samples: dict[str, list[float]] = {name: [] for name in calls}
        until = clock() + settings.seconds * len(calls)
        done = 0
        # Rounding, or a warm-up slower than what followed, promised too few; twice as many do.
        while done < rounds or (done < 2 * rounds and clock() < until):
            progress(f"round {done + 1}", min(1.0, done / rounds))
            for name in round_order(list(calls), done):
                samples[name] += _time_round(calls[name], paces[name], clock)
            done += 1
    return {name: tuple(each) for name, each in samples.items()}


@dataclass(frozen=True)
class _WarmUp:
    """What warm-up has seen of one engine; `best` is the seconds of a call."""

    spent: float = 0.0
    best: float = math.inf
    steady: int = 0

    def after(self, spent: float, count: int) -> "_WarmUp":
        took = spent / count
        faster = took < self.best * (1 - WARM_UP_GAIN)
        steady = 0 if faster else self.steady + 1
        return _WarmUp(self.spent + spent, min(self.best, took), steady)

    def ready(self, most: float) -> bool:
        return self.spent >= most or self.steady >= STEADY_SLICES


def _warm_up(
    calls: Mapping[str, TimedCall],
    settings: TimingEffort,
    clock: MonotonicClock,
    heard: TimingProgress,
) -> dict[str, float]:
    """Run every engine until it does not get faster; return the seconds of a call."""
    heard("warm-up", None)
    for call in calls.values():
        # The first call allocates and compiles; it is no measure of anything.
        call()
    state = {name: _WarmUp() for name in calls}
    cold, slice_seconds = list(calls), min(WARM_UP_SLICE_SECONDS, settings.seconds)
    while cold:
        for name in cold:
            state[name] = state[name].after(*_warm_up_slice(calls[name], slice_seconds, clock))
        cold = [name for name in cold if not state[name].ready(settings.warm_up_seconds)]
    return {name: each.best for name, each in state.items()}


def _warm_up_slice(call: TimedCall, seconds: float, clock: MonotonicClock) -> tuple[float, int]:
    """Call for so long, at least once; return how long that took, and how many calls it was."""
    started, count, now = clock(), 0, 0.0
    while count == 0 or now - started < seconds:
        call()
        count, now = count + 1, clock()
    return now - started, count


def _time_round(call: TimedCall, pace: RoundSchedule, clock: MonotonicClock) -> list[float]:
    if pace.untimed_first:
        call()
    found = []
    for _ in range(pace.samples):
        started = clock()
        for _ in range(pace.calls):
            call()
        # Whole nanoseconds: no clock knows more, and reports hold thousands of these.
        found.append(round((clock() - started) / pace.calls * 1000, 6))
    return found


@contextlib.contextmanager
def _garbage_collection_off() -> Iterator[None]:
    """Keep Python from clearing its garbage inside a sample."""
    was = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


EngineLatencies = dict[str, tuple[Latency, ...]]
