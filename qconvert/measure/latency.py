"""Time engines in rounds, so that drift of the machine hits all of them alike."""

import contextlib
import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

TimedCall = Callable[[], object]
MonotonicClock = Callable[[], float]

# What timing reports while it works: a text, and the share done, None where unknown.
TimingProgress = Callable[[str, float | None], None]

# A call this short is lost in the cost of the clock and of Python: several make a sample.
SHORT_SECONDS = 0.0002

# Up to this length an untimed call opens each round: it brings the engine's weights back into the
# caches that another engine has filled. In longer calls that does not show.
UNTIMED_CALL_SECONDS = 0.02

# Slower engines are timed for only `SLOW_TOTAL_SECONDS`, and in at least `MIN_ROUNDS` rounds.
SLOW_SECONDS = 1.0
SLOW_TOTAL_SECONDS = 10.0
MIN_ROUNDS = 3

# More rounds would not show drift better, and so many samples settle any percentile.
MAX_ROUNDS = 100
MAX_SAMPLES = 10_000

# Warm-up runs in slices; `STEADY_SLICES` in a row that are not faster by this share end it.
WARM_UP_SLICE_SECONDS = 0.1
WARM_UP_GAIN = 0.03
STEADY_SLICES = 2


@dataclass(frozen=True)
class Latency:
    """Every sample of one engine at one batch size, in milliseconds per run.

    `where` is `host` for the whole call with its copies, `device` for inputs that lie on the
    device already. `notes` say what makes the samples doubtful.
    """

    batch: int
    where: Literal["host", "device"]
    samples_ms: tuple[float, ...]
    notes: tuple[str, ...] = ()


EngineLatencies = dict[str, tuple[Latency, ...]]


@dataclass(frozen=True)
class TimingEffort:
    """The least seconds and rounds of timing per engine, and the most seconds of warm-up."""

    seconds: float = 3.0
    rounds: int = 10
    warm_up_seconds: float = 3.0

    def __post_init__(self) -> None:
        if not (self.seconds > 0 and self.rounds >= MIN_ROUNDS and self.warm_up_seconds >= 0):
            raise ValueError(f"timing needs time and at least {MIN_ROUNDS} rounds, got {self}")


def interleave(
    calls: Mapping[str, TimedCall],
    effort: TimingEffort,
    clock: MonotonicClock = time.perf_counter,
    progress: TimingProgress = lambda text, share: None,
) -> dict[str, tuple[float, ...]]:
    """Time all calls in turns and return every sample by name, in milliseconds of one call.

    All take part in the same rounds, and fast calls give more samples per round, so that all are
    timed for as long and over the same minutes. `stats.speedup` pairs the samples by rounds.
    """
    if not calls:
        return {}
    with _garbage_collection_off():
        seconds = _warm_up(calls, effort, clock, progress)
        rounds = count_rounds(max(seconds.values()), effort)
        schedules = {name: schedule_round(seconds[name], rounds, effort) for name in calls}
        samples: dict[str, list[float]] = {name: [] for name in calls}
        deadline = clock() + effort.seconds * len(calls)
        done = 0
        # Calls that are faster than in the warm-up need more rounds: at most twice as many.
        while done < rounds or (done < 2 * rounds and clock() < deadline):
            progress(f"round {done + 1}", min(1.0, done / rounds))
            for name in round_order(list(calls), done):
                samples[name] += _time_round(calls[name], schedules[name], clock)
            done += 1
    return {name: tuple(times) for name, times in samples.items()}


@dataclass(frozen=True)
class RoundSchedule:
    """How an engine uses a round: its samples, calls per sample, and whether a call goes before."""

    samples: int
    calls: int
    untimed_first: bool


def count_rounds(slowest: float, effort: TimingEffort) -> int:
    """Return the number of rounds when the slowest engine needs that many seconds per call."""
    if slowest > SLOW_SECONDS:
        return min(effort.rounds, max(MIN_ROUNDS, int(SLOW_TOTAL_SECONDS / slowest)))
    rounds = math.ceil(effort.seconds / slowest) if slowest > 0 else MAX_ROUNDS
    return max(effort.rounds, min(MAX_ROUNDS, rounds))


def schedule_round(seconds: float, rounds: int, effort: TimingEffort) -> RoundSchedule:
    """Return how an engine that needs that many seconds per call uses its rounds.

    Samples are rounded down: more rounds make up for it, more samples could double the time.
    """
    if seconds > SLOW_SECONDS:
        return RoundSchedule(1, 1, untimed_first=False)
    calls = 1
    if seconds < SHORT_SECONDS:
        # A clock too coarse to see the call at all measures zero.
        calls = math.ceil(SHORT_SECONDS / max(seconds, SHORT_SECONDS / 1000))
    # A hair below a whole number counts as that number.
    samples = int(effort.seconds / (max(seconds, SHORT_SECONDS) * rounds) + 1e-6)
    least = math.ceil(effort.rounds / rounds)
    most = max(least, MAX_SAMPLES // rounds)
    return RoundSchedule(
        min(most, max(least, samples)), calls, untimed_first=seconds <= UNTIMED_CALL_SECONDS
    )


def round_order(names: list[str], done: int) -> list[str]:
    """Return the order of a round; over all rounds everyone comes first and follows everyone."""
    first = done % len(names)
    order = names[first:] + names[:first]
    return order[::-1] if done // len(names) % 2 else order


@dataclass
class _WarmUp:
    """The warm-up of one engine so far; `best` is the seconds of a call."""

    spent: float = 0.0
    best: float = math.inf
    steady: int = 0

    def run_slice(self, call: TimedCall, seconds: float, clock: MonotonicClock) -> None:
        """Call for that many seconds, at least once."""
        started, calls, spent = clock(), 0, 0.0
        while calls == 0 or spent < seconds:
            call()
            calls, spent = calls + 1, clock() - started
        faster = spent / calls < self.best * (1 - WARM_UP_GAIN)
        self.steady = 0 if faster else self.steady + 1
        self.best = min(self.best, spent / calls)
        self.spent += spent


def _warm_up(
    calls: Mapping[str, TimedCall],
    effort: TimingEffort,
    clock: MonotonicClock,
    progress: TimingProgress,
) -> dict[str, float]:
    """Run every engine until it gets no faster; return the seconds of a call."""
    progress("warm-up", None)
    for call in calls.values():
        # The first call allocates and compiles.
        call()
    states = {name: _WarmUp() for name in calls}
    cold, slice_seconds = list(calls), min(WARM_UP_SLICE_SECONDS, effort.seconds)
    while cold:
        for name in cold:
            states[name].run_slice(calls[name], slice_seconds, clock)
        cold = [
            name
            for name in cold
            if states[name].spent < effort.warm_up_seconds and states[name].steady < STEADY_SLICES
        ]
    return {name: state.best for name, state in states.items()}


def _time_round(call: TimedCall, schedule: RoundSchedule, clock: MonotonicClock) -> list[float]:
    if schedule.untimed_first:
        call()
    samples = []
    for _ in range(schedule.samples):
        started = clock()
        for _ in range(schedule.calls):
            call()
        # Whole nanoseconds: no clock is finer, and reports hold thousands of samples.
        samples.append(round((clock() - started) / schedule.calls * 1000, 6))
    return samples


@contextlib.contextmanager
def _garbage_collection_off() -> Iterator[None]:
    """Keep Python from collecting garbage inside a sample."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
