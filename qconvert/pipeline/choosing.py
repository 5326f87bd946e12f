"""Which range method keeps a model nearest to itself: each is tried on images."""

import time
from dataclasses import dataclass, replace

from qconvert.backends.ort import open_cpu
from qconvert.feeds import Feeds, Run
from qconvert.measure.nearness import distance
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


@dataclass(frozen=True)
class Tried:
    """How far the outputs of a model are from FP32 with one method; smaller is better."""

    method: str
    distance: float


def try_methods(
    ready: Prepared, scheme: Scheme, seen: Seen, wishes: Wishes, tell: Tell
) -> tuple[Tried, ...]:
    """Quantize once with each method, and return them, the nearest first."""
    started = time.perf_counter()
    total = len(CANDIDATES) + 1
    tell(Progress("choose", "the float model", done=0, total=total))
    wanted = _answers(open_cpu(ready.model), seen)
    found = []
    for number, method in enumerate(CANDIDATES):
        tell(Progress("choose", method, done=number + 1, total=total))
        tried = replace(wishes, method=method)
        plan = make_plan(ready.model, scheme, seen.choosing.summaries, tried)
        answers = _answers(open_cpu(apply(ready.model, plan)), seen)
        found.append(Tried(method, distance(wanted, answers)))
    ranked = tuple(sorted(found, key=lambda each: each.distance))
    which = "held out" if seen.held_out else "that were calibrated on"
    text = f"{ranked[0].method}, on {seen.count} images {which}: "
    text += ", ".join(f"{each.method} {each.distance:.4f}" for each in ranked)
    tell(Progress("choose", text, time.perf_counter() - started))
    return ranked


def _answers(run: Run, seen: Seen) -> list[Feeds]:
    return [run(feeds) for feeds in seen.images()]
