"""How long engines take, in turns, so that what drifts hits all of them alike."""

import contextlib
import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from qconvert.measure.turns import Effort, Pace, order, pace, turns

Call = Callable[[], object]
Clock = Callable[[], float]

# What timing says while it works: a sentence, and how much is done from 0 to 1 where it knows.
Heard = Callable[[str, float | None], None]

# A turn of warm-up, no longer than engines are timed; two in a row that are not faster by this
# share end it.
SLICE_SECONDS = 0.1
FASTER = 0.03
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
    calls: Mapping[str, Call],
    settings: Effort,
    clock: Clock = time.perf_counter,
    heard: Heard = lambda text, share: None,
) -> dict[str, tuple[float, ...]]:
    """Time all calls in turns and return the milliseconds of one call, every sample, by name.

    All take the same number of turns, and fast ones more samples a turn, so that all are timed for
    as long and over the same minutes. `stats.speedup` pairs them again by turns.
    """
    if not calls:
        return {}
    with _no_collection():
        took = _warm_up(calls, settings, clock, heard)
        rounds = turns(max(took.values()), settings)
        paces = {name: pace(each, rounds, settings) for name, each in took.items()}
        samples: dict[str, list[float]] = {name: [] for name in calls}
        until = clock() + settings.seconds * len(calls)
        done = 0
        # Rounding, or a warm-up slower than what followed, promised too few; twice as many do.
        while done < rounds or (done < 2 * rounds and clock() < until):
            heard(f"round {done + 1}", min(1.0, done / rounds))
            for name in order(list(calls), done):
                samples[name] += _turn(calls[name], paces[name], clock)
            done += 1
    return {name: tuple(each) for name, each in samples.items()}


@dataclass(frozen=True)
class _Warmth:
    """What warm-up has seen of one engine; `best` is the seconds of a call."""

    spent: float = 0.0
    best: float = math.inf
    steady: int = 0

    def after(self, spent: float, count: int) -> "_Warmth":
        took = spent / count
        faster = took < self.best * (1 - FASTER)
        steady = 0 if faster else self.steady + 1
        return _Warmth(self.spent + spent, min(self.best, took), steady)

    def ready(self, most: float) -> bool:
        return self.spent >= most or self.steady >= STEADY_SLICES


def _warm_up(
    calls: Mapping[str, Call], settings: Effort, clock: Clock, heard: Heard
) -> dict[str, float]:
    """Run every engine until it does not get faster; return the seconds of a call."""
    heard("warm-up", None)
    for call in calls.values():
        # The first call allocates and compiles; it is no measure of anything.
        call()
    state = {name: _Warmth() for name in calls}
    cold, slice_seconds = list(calls), min(SLICE_SECONDS, settings.seconds)
    while cold:
        for name in cold:
            state[name] = state[name].after(*_slice(calls[name], slice_seconds, clock))
        cold = [name for name in cold if not state[name].ready(settings.warm_up_seconds)]
    return {name: each.best for name, each in state.items()}


def _slice(call: Call, seconds: float, clock: Clock) -> tuple[float, int]:
    """Call for so long, at least once; return how long that took, and how many calls it was."""
    started, count, now = clock(), 0, 0.0
    while count == 0 or now - started < seconds:
        call()
        count, now = count + 1, clock()
    return now - started, count


def _turn(call: Call, pace: Pace, clock: Clock) -> list[float]:
    if pace.opening:
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
def _no_collection() -> Iterator[None]:
    """Keep Python from clearing its garbage inside a sample."""
    was = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
