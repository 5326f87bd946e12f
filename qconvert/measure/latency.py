"""Time engines in interleaved rounds, so that machine drift affects all equally; summarize samples.

Percentiles interpolate linearly between the two nearest samples (position `(n - 1) * p / 100` in
sorted order, NumPy's default); `trtexec` takes one of the samples.
"""

import gc
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Calls = Mapping[str, Callable[[], object]]
Clock = Callable[[], float]
Where = Literal["host", "device", "graph"]
# Called while timing: a text, and the share done, None where it is unknown.
TimingProgress = Callable[[str, float | None], None]

# Calls this short are dominated by the cost of the clock and of Python: several make a sample.
SHORT_SECONDS = 0.0002

# Slower engines are timed for only ten seconds, and in at least `MIN_ROUNDS` rounds.
SLOW_SECONDS = 1.0
MIN_ROUNDS = 3

# More rounds would not show drift better, and so many samples settle any percentile.
MAX_ROUNDS = 100
MAX_SAMPLES = 10_000

# The spread is the median absolute deviation times this: the standard deviation of normal samples,
# robust to outliers.
NORMAL_SCALE = 1.4826


@dataclass(frozen=True)
class Latency:
    """Every sample of one engine at one batch size, in milliseconds per run.

    `where` is `host` for the whole call with its copies, `device` for the time that a GPU computes,
    `graph` for that time with a CUDA graph. `notes` say what makes the samples doubtful.
    """

    batch: int
    where: Where
    samples_ms: tuple[float, ...]
    notes: tuple[str, ...] = ()
    gpu: "GpuLoad | None" = None


@dataclass(frozen=True)
class GpuLoad:
    """What a GPU does under an engine, with runs on several streams at once.

    `device_bytes` is the memory that loading the engine and its first run took. Power is that of
    the whole GPU; what NVML does not tell is None. `no_graph` says why a run cannot be recorded as
    a CUDA graph.
    """

    streams: int
    images_per_second: float
    device_bytes: int
    clock_mhz: int | None = None
    power_watts: float | None = None
    millijoules_per_image: float | None = None
    throttled: tuple[str, ...] = ()
    no_graph: str = ""


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
    calls: Calls,
    effort: TimingEffort,
    clock: Clock = time.perf_counter,
    progress: TimingProgress = lambda text, share: None,
) -> dict[str, tuple[float, ...]]:
    """Time all calls in turns and return every sample by name, in milliseconds of one call.

    All take part in the same rounds, and fast calls give more samples per round, so that all are
    timed for as long and over the same minutes. `speedup` pairs the samples by rounds.
    """
    if not calls:
        return {}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    collects_garbage = gc.isenabled()
    gc.collect()
    gc.disable()  # no collection inside a sample
    try:
        least_seconds = _warm_up(calls, effort, clock, progress)
        rounds = count_rounds(max(least_seconds.values()), effort)
        schedules = {name: schedule_round(least_seconds[name], rounds, effort) for name in calls}
        deadline = clock() + effort.seconds * len(calls)
        done = 0
        # Calls that are faster than in the warm-up need more rounds: at most twice as many.
        while done < rounds or (done < 2 * rounds and clock() < deadline):
            progress(f"round {done + 1}", min(1.0, done / rounds))
            for name in round_order(list(calls), done):
                call, schedule = calls[name], schedules[name]
                if schedule.untimed_first:
                    call()
                for _ in range(schedule.samples):
                    started = clock()
                    for _ in range(schedule.calls):
                        call()
                    seconds_per_call = (clock() - started) / schedule.calls
                    # Whole nanoseconds: no clock is finer, and reports hold thousands of samples.
                    samples[name].append(round(seconds_per_call * 1000, 6))
            done += 1
    finally:
        if collects_garbage:
            gc.enable()
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
        return min(effort.rounds, max(MIN_ROUNDS, int(10.0 / slowest)))
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
    # A value just below a whole number counts as that number.
    samples = int(effort.seconds / (max(seconds, SHORT_SECONDS) * rounds) + 1e-6)
    least = math.ceil(effort.rounds / rounds)
    most = max(least, MAX_SAMPLES // rounds)
    # An untimed call brings the engine's weights back into the caches that another engine has
    # filled. In calls longer than 20 ms that does not show.
    return RoundSchedule(min(most, max(least, samples)), calls, untimed_first=seconds <= 0.02)


def round_order(names: list[str], done: int) -> list[str]:
    """Return the order of a round; over all rounds everyone comes first and follows everyone."""
    first = done % len(names)
    order = names[first:] + names[:first]
    return order[::-1] if done // len(names) % 2 else order


def _warm_up(
    calls: Calls, effort: TimingEffort, clock: Clock, progress: TimingProgress
) -> dict[str, float]:
    """Run every engine, in slices, until it gets no faster; return the least seconds of a call."""
    progress("warm-up", None)
    for call in calls.values():
        call()  # the first call allocates and compiles
    best, spent = dict.fromkeys(calls, math.inf), dict.fromkeys(calls, 0.0)
    steady = dict.fromkeys(calls, 0)
    cold, slice_seconds = list(calls), min(0.1, effort.seconds)
    while cold:
        for name in cold:
            started, count, elapsed = clock(), 0, 0.0
            while not count or elapsed < slice_seconds:
                calls[name]()
                count, elapsed = count + 1, clock() - started
            faster = elapsed / count < 0.97 * best[name]
            steady[name] = 0 if faster else steady[name] + 1
            best[name] = min(best[name], elapsed / count)
            spent[name] += elapsed
        # Two slices in a row that are not faster end it.
        limit = effort.warm_up_seconds
        cold = [name for name in cold if spent[name] < limit and steady[name] < 2]
    return best


@dataclass(frozen=True)
class LatencyStats:
    """Statistics of one engine at one batch size; `outliers` counts samples far off the median."""

    samples: int
    median_ms: float
    spread_ms: float
    mean_ms: float
    min_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    images_per_second: float
    outliers: int


def summarize_latency(latency: Latency) -> LatencyStats:
    """Return the statistics of a latency; throughput is the batch divided by the median."""
    if not latency.samples_ms:
        raise ValueError("there are no samples")
    samples = np.asarray(latency.samples_ms, np.float64)
    median, deviation = float(np.median(samples)), _median_deviation(samples)
    # Ten deviations are 6.7 standard deviations: latencies have a tail, and 3.5, the usual limit
    # for normal samples, would count it.
    is_outlier = np.abs(samples - median) > 10 * max(deviation, 0.001 * median)
    p90, p95, p99 = np.percentile(samples, (90, 95, 99)).tolist()
    return LatencyStats(
        samples=len(samples),
        median_ms=median,
        spread_ms=NORMAL_SCALE * deviation,
        # Summation can round the mean of equal samples to just outside them.
        mean_ms=float(np.clip(samples.mean(), samples.min(), samples.max())),
        min_ms=float(samples.min()),
        p90_ms=p90,
        p95_ms=p95,
        p99_ms=p99,
        images_per_second=latency.batch * 1000 / median if median else math.inf,
        outliers=int(is_outlier.sum()),
    )


def speedup(before: Sequence[float], after: Sequence[float]) -> float:
    """Return how many times faster `after` is: the median of the ratios within each round."""
    return float(np.median(_speedups(before, after)))


def speedup_interval(before: Sequence[float], after: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % interval of `speedup`: ratios of rounds, by their ranks around the median."""
    ratios = np.sort(_speedups(before, after))
    below = max(0, math.floor((len(ratios) - 1.96 * math.sqrt(len(ratios))) / 2))
    return float(ratios[below]), float(ratios[-1 - below])


def _speedups(before: Sequence[float], after: Sequence[float]) -> NDArray[np.float64]:
    """Return the ratio of both within each round.

    Samples of one round share what happened in that minute. Both took part in the same number of
    rounds, so the greatest common divisor of their sample counts is a multiple of it, and groups of
    that number never span two rounds.
    """
    groups = math.gcd(len(before), len(after))
    slower, faster = (
        np.median(np.reshape(samples, (groups, -1)), axis=1) for samples in (before, after)
    )
    ratios: NDArray[np.float64] = slower / faster
    return ratios


def timing_notes(latency: Latency, *, on_gpu: bool = False) -> tuple[str, ...]:
    """Return what makes samples doubtful, and what to do about it."""
    samples = np.asarray(latency.samples_ms, np.float64)
    # Drift: the first or last tenth of the samples are slower than the others.
    count, edge = len(samples), max(3, len(samples) // 10)
    notes = []
    for position, part, others, cause in (
        (
            "first",
            samples[:edge],
            samples[edge:],
            "the rest: the warm-up was too short, or other work just ended; `qconvert bench` "
            "measures again",
        ),
        (
            "last",
            samples[-edge:],
            samples[:-edge],
            "those before: the machine got slower, by heat or by other work; let it rest, "
            "`qconvert bench` measures again",
        ),
    ):
        if len(others) < 6:
            continue
        median, usual = float(np.median(part)), float(np.median(others))
        beyond_spread = median - usual > 2 * NORMAL_SCALE * _median_deviation(others)
        if beyond_spread and median > 1.1 * usual > 0:
            slower = f"{median / usual:.1f}x as long as"
            notes.append(f"the {position} {edge} of {count} samples took {slower} {cause}")
    if notes:  # drifting samples have a wide spread too; one cause is reported once
        return tuple(notes)
    stats = summarize_latency(latency)
    if stats.outliers > max(1, 0.05 * count):
        notes.append(
            f"{stats.outliers} of {count} samples are outliers: the machine was busy; stop other "
            "programs, `qconvert bench` measures again"
        )
    share = stats.spread_ms / stats.median_ms if stats.median_ms else 0.0
    if share > 0.1:
        clocks = "`cpupower frequency-set -g performance`" + ", `nvidia-smi -lgc`" * on_gpu
        notes.append(
            f"unstable: the spread is {share:.0%} of the median; stop other programs and fix the "
            f"clocks ({clocks})"
        )
    return tuple(notes)


def _median_deviation(samples: NDArray[np.float64]) -> float:
    return float(np.median(np.abs(samples - np.median(samples))))
