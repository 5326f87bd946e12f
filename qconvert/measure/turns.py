"""How the time for measuring is shared out: turns, samples a turn, calls a sample."""

import math
from dataclasses import dataclass

# A call this short is lost in what the clock and Python cost: several make a sample.
SHORT_SECONDS = 0.0002

# Up to here one call that is not timed opens a turn: it pays for bringing the engine's weights
# back into the caches that another engine has filled. In longer calls that does not show.
OPENING_SECONDS = 0.02

# Engines slower than this take turns only as long as this, and three times at least.
SLOW_SECONDS = 1.0
SLOW_TOTAL_SECONDS = 10.0
LEAST_ROUNDS = 3

# More turns than this would not see drift better; and so many samples settle any percentile.
MOST_ROUNDS = 100
MOST_SAMPLES = 10_000


@dataclass(frozen=True)
class Effort:
    """How long engines are timed: each for at least so many seconds and samples.

    Warm-up ends when it has become no faster, or after `warm_up_seconds` for each engine.
    """

    seconds: float = 3.0
    rounds: int = 10
    warm_up_seconds: float = 3.0

    def __post_init__(self) -> None:
        if not (self.seconds > 0 and self.rounds >= LEAST_ROUNDS and self.warm_up_seconds >= 0):
            raise ValueError(f"timing takes time and at least {LEAST_ROUNDS} rounds, got {self}")


EFFORTS = {
    "quick": Effort(seconds=1.0, warm_up_seconds=1.0),
    "default": Effort(),
    "thorough": Effort(seconds=10.0, rounds=30, warm_up_seconds=10.0),
}


@dataclass(frozen=True)
class Pace:
    """How an engine uses its turn: samples a turn, calls a sample, a call before that or none."""

    samples: int
    calls: int
    opening: bool


def turns(slowest: float, settings: Effort) -> int:
    """Return how many turns each engine takes when the slowest needs so many seconds a call."""
    if slowest > SLOW_SECONDS:
        return min(settings.rounds, max(LEAST_ROUNDS, int(SLOW_TOTAL_SECONDS / slowest)))
    wanted = math.ceil(settings.seconds / slowest) if slowest > 0 else MOST_ROUNDS
    return max(settings.rounds, min(MOST_ROUNDS, wanted))


def pace(seconds: float, rounds: int, settings: Effort) -> Pace:
    """Return how an engine that takes so long a call uses its turns.

    Samples are rounded down: more rounds make up for it, more samples could double the time.
    """
    if seconds > SLOW_SECONDS:
        return Pace(1, 1, opening=False)
    calls = 1
    if seconds < SHORT_SECONDS:
        # A clock too coarse to see the call at all says zero.
        calls = math.ceil(SHORT_SECONDS / max(seconds, SHORT_SECONDS / 1000))
    # A hair below a whole number is that number.
    enough = int(settings.seconds / (max(seconds, SHORT_SECONDS) * rounds) + 1e-6)
    least = math.ceil(settings.rounds / rounds)
    most = max(least, MOST_SAMPLES // rounds)
    return Pace(min(most, max(least, enough)), calls, opening=seconds <= OPENING_SECONDS)


def order(names: list[str], done: int) -> list[str]:
    """Return whose turn it is when in a round: everyone comes first once, and follows everyone."""
    first = done % len(names)
    turned = names[first:] + names[:first]
    return turned[::-1] if done // len(names) % 2 else turned
