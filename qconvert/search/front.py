"""From blocks by what they bring to the least of them that keeps a budget.

Sets grow in the order of gain for cost, in steps that become larger; between the last that was not
enough and the first that was, the smallest is found by halving, and what it can do without is
taken out again.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from qconvert.measure.mix import Gain, Loss, Step
from qconvert.search.blocks import Block

# What leaving the integers costs beside the multiplications, as a share of all of them.
LEAVING = 0.005
TRIES = 8

Set = tuple[Block, ...]


@dataclass(frozen=True)
class Probes:
    """How a set is tried: `look` on the images of the search, `confirm` on all for evaluation.

    Outputs `furthest` from those of FP32 are those of INT8: what is further off kept a budget by
    luck.
    """

    look: Callable[[Set], Step]
    confirm: Callable[[Set], Loss]
    furthest: float = math.inf


@dataclass(frozen=True)
class Climb:
    """The sets that were tried, by their share of compute, and the one to take if there is one."""

    steps: tuple[Step, ...]
    chosen: Step | None


def ranked(blocks: Sequence[Block], gains: Sequence[Gain]) -> list[Block]:
    """Return the blocks, those first that bring most for what they cost."""
    worth = {each.block: each.gain / (each.share + LEAVING) for each in gains}
    return sorted(blocks, key=lambda block: -worth[block.name])


def climb(order: Sequence[Block], probes: Probes, budget: float) -> Climb:
    """Return the smallest set that keeps the budget on both sets of images, so far as one sees.

    All blocks together keep any, and are no mix.
    """
    steps: dict[frozenset[str], Step] = {}

    def keeps(blocks: Sequence[Block]) -> bool:
        key = frozenset(block.name for block in blocks)
        if key not in steps:
            step = probes.look(tuple(blocks))
            if step.search.pp <= budget and step.distance <= probes.furthest:
                step = replace(step, confirmed=probes.confirm(tuple(blocks)))
            steps[key] = step
        confirmed = steps[key].confirmed
        return confirmed is not None and confirmed.pp <= budget

    best = _without_excess(_first(order, keeps), keeps)
    mix = 0 < len(best) < len(order)
    chosen = steps[frozenset(block.name for block in best)] if mix else None
    return Climb(tuple(sorted(steps.values(), key=lambda step: step.share)), chosen)


def rungs(count: int) -> list[int]:
    """Return the sizes of the sets that are tried on the way up: 1, 2, 3, 4, 6, 8, 12, ..., all."""
    found: list[int] = []
    size = 1
    while size < count:
        found.append(size)
        size += 1 if size < 4 else 2 ** (size.bit_length() - 2)
    return [*found, count] if count else []


def _first(order: Sequence[Block], keeps: Callable[[Sequence[Block]], bool]) -> Sequence[Block]:
    """Return the first of the growing sets that keeps the budget, empty where none does."""
    low = 0
    for size in rungs(len(order)):
        if keeps(order[:size]):
            return order[: _halved(order, keeps, low, size)]
        low = size
    return ()


def _halved(
    order: Sequence[Block], keeps: Callable[[Sequence[Block]], bool], low: int, high: int
) -> int:
    """Return the least size that keeps the budget above one that does not."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if keeps(order[:middle]) else (middle, high)
    return high


def _without_excess(
    found: Sequence[Block], keeps: Callable[[Sequence[Block]], bool]
) -> Sequence[Block]:
    """Take out what costs most and is not needed."""
    for block in sorted(found, key=lambda block: -block.share)[:TRIES]:
        fewer = [each for each in found if each is not block]
        if fewer and keeps(fewer):
            found = fewer
    return found
