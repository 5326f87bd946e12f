"""Which range method keeps a model nearest to itself: each is tried on images.

The differences are small and the images few, so another method must be better than the default by
more than chance would make it.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from qconvert.backends.ort import open_cpu
from qconvert.feeds import Feeds, Run
from qconvert.measure.nearness import Numbers, distances
from qconvert.pipeline.prepared import Prepared
from qconvert.pipeline.progress import Progress, Tell
from qconvert.pipeline.seen import Seen
from qconvert.quantize.planning import Wishes, make_plan
from qconvert.quantize.rewrite import apply
from qconvert.quantize.scheme import Scheme

AUTO = "auto"
CANDIDATES = (
    "mse", "minmax", "percentile:99.999", "percentile:99.99", "entropy", "moving-average",
)  # fmt: skip


USUAL = CANDIDATES[0]
STANDARD_ERRORS = 2.0
FEWEST = 4  # below, chance cannot be told from a difference


@dataclass(frozen=True)
class Tried:
    """How far the outputs of a model are from FP32 with one method; smaller is better."""

    method: str
    distance: float


@dataclass(frozen=True)
class Choice:
    """The method to take, and what was tried, the nearest first."""

    method: str
    tried: tuple[Tried, ...]


def try_methods(ready: Prepared, scheme: Scheme, seen: Seen, wishes: Wishes, tell: Tell) -> Choice:
    """Quantize once with each method, and choose one."""
    started = time.perf_counter()
    total = len(CANDIDATES) + 1
    tell(Progress("choose", "the float model", done=0, total=total))
    wanted = _answers(open_cpu(ready.model), seen)
    far: dict[str, Numbers] = {}
    for number, method in enumerate(CANDIDATES):
        tell(Progress("choose", method, done=number + 1, total=total))
        tried = replace(wishes, method=method)
        plan = make_plan(ready.model, scheme, seen.choosing.summaries, tried)
        answers = _answers(open_cpu(apply(ready.model, plan)), seen)
        far[method] = distances(wanted, answers)
    choice = chosen(far)
    which = "held out" if seen.held_out else "that were calibrated on"
    text = f"{choice.method}, on {seen.count} images {which}: "
    text += ", ".join(f"{each.method} {each.distance:.4f}" for each in choice.tried)
    tell(Progress("choose", text, time.perf_counter() - started))
    return choice


def chosen(far: Mapping[str, Numbers]) -> Choice:
    """Return the usual method, or the nearest of those that are nearer beyond doubt.

    Compared are the same images, in pairs.
    """
    tried = [Tried(method, float(each.mean())) for method, each in far.items()]
    ranked = tuple(sorted(tried, key=lambda each: each.distance))
    usual = far[USUAL]
    for each in ranked:
        gained = usual - far[each.method]
        if not np.isfinite(usual).all() or each.method == USUAL:
            return Choice(each.method, ranked)
        if gained.size < FEWEST:
            break
        if gained.mean() > STANDARD_ERRORS * gained.std(ddof=1) / np.sqrt(gained.size):
            return Choice(each.method, ranked)
    return Choice(USUAL, ranked)


def _answers(run: Run, seen: Seen) -> list[Feeds]:
    return [run(feeds) for feeds in seen.images()]
