"""Which range method keeps a model nearest to itself: each is tried on images.

The differences are small and the images few, so another method must be better than the default by
more than chance would make it.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

from qconvert.pipeline.progress import Progress
from qconvert.pipeline.ranging import ranged
from qconvert.pipeline.study import Far, Study, nearer
from qconvert.quantize.planning import Wishes
from qconvert.quantize.ranges import ANSWERS, USUAL

CANDIDATES = (
    USUAL, "minmax", "percentile:99.999", "percentile:99.99", "entropy", "moving-average", ANSWERS,
)  # fmt: skip


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

    def text(self) -> str:
        """Say it in one sentence."""
        return ", ".join(f"{each.method} {each.distance:.4g}" for each in self.tried)


def try_methods(study: Study, work: float) -> tuple[Wishes, tuple[Tried, ...]]:
    """Quantize once with each method, and return the wishes with the nearest, and all tried."""
    started = time.perf_counter()
    total = len(CANDIDATES) + 1
    study.tell(Progress("choose", "the float model", done=0, total=total))
    wanted = study.wanted()
    far: dict[str, Far] = {}
    wishes: dict[str, Wishes] = {}
    for number, method in enumerate(CANDIDATES):
        study.tell(Progress("choose", method, done=number + 1, total=total))
        tried = replace(study.wishes, method=method)
        if method == ANSWERS:
            tried = ranged(replace(study, wishes=replace(study.wishes, method=USUAL)), work)
            if not tried.apart:
                continue
        wishes[method], far[method] = tried, study.far(tried, wanted)
    choice = chosen(far)
    text = f"ranges by {choice.method}, {study.on(far[USUAL])}: {choice.text()}"
    study.tell(Progress("choose", text, time.perf_counter() - started))
    return wishes[choice.method], choice.tried


def chosen(far: Mapping[str, Far]) -> Choice:
    """Return the usual method, or the nearest of those that are nearer beyond doubt.

    Compared are the same images, in pairs.
    """
    tried = [Tried(method, float(each.images.mean())) for method, each in far.items()]
    ranked = tuple(sorted(tried, key=lambda each: each.distance))
    better = (each.method for each in ranked if nearer(far[USUAL], far[each.method]))
    return Choice(next(better, USUAL), ranked)
