"""Search for mixed precision: the least of a network to keep in float within an accuracy budget.

INT8 runs as it is, then with each block alone in float, which ranks the blocks by what they gain
for what they cost (a sensitivity analysis as in HAWQ, Dong et al. 2019, but measured on outputs).
Then sets grow in this order, in steps that become larger; between the last that missed the budget
and the first that kept it the smallest is found by bisection, and blocks it can do without are
taken out again.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from qconvert.core.progress import Progress, ProgressCallback
from qconvert.core.tensors import Tensors
from qconvert.measure.mixed_result import (
    BlockGain,
    LossMeasure,
    MixedResult,
    PredictionLoss,
    SearchStep,
)
from qconvert.optimize.blocks import Block
from qconvert.optimize.sensitivity import SearchModel, run_single_blocks
from qconvert.optimize.trials import (
    ReferenceOutputs,
    TrialRecord,
    Trials,
    choose_metric,
    measure_loss,
    record_trial,
)

# What leaving INT8 costs beside the multiplications, as a share of all of them.
CONVERSION_COST = 0.005
MAX_REMOVALS = 8
MAX_TIMED_SETS = 6

BlockSet = tuple[Block, ...]
# Milliseconds of INT8 with each of these sets in float, and under None those of the float engine.
SetTimer = Callable[[Sequence[BlockSet]], Mapping[tuple[str, ...] | None, float]]


@dataclass(frozen=True)
class SearchImages:
    """Batches with their FP32 outputs; `name` tells them from others in the list of trials."""

    name: str
    batches: Iterable[Tensors]
    reference: ReferenceOutputs


@dataclass(frozen=True)
class SearchGoal:
    """What to reach; `by` is None where the images decide, `rest` is the precision in float."""

    budget: float
    by: LossMeasure | None
    rest: str
    max_latency: float | None = None


@dataclass(frozen=True)
class SearchSpace:
    """A model with its blocks, and what its sets are tried on.

    `timer` is None where the backend does not run, and `untimed` says why.
    """

    model: SearchModel
    blocks: tuple[Block, ...]
    search_images: SearchImages
    evaluation_images: SearchImages
    trials: Trials
    timer: SetTimer | None = None
    untimed: str = ""

    def run_trial(self, images: SearchImages, blocks: BlockSet) -> TrialRecord:
        """Return the trial of a set on these images, from the file if it ran before."""

        def run() -> TrialRecord:
            run_model = self.model.open(self.model.restore_float(blocks))
            return record_trial(images.reference, [run_model(batch) for batch in images.batches])

        return self.trials.get_or_run(_trial_key(images, blocks), run)

    def evaluate(self, blocks: BlockSet, by: LossMeasure) -> SearchStep:
        """Try a set on the search images."""
        record = self.run_trial(self.search_images, blocks)
        # Search images are few and have no labels: counting would not tell one set from another.
        same = self.search_images is self.evaluation_images
        return SearchStep(
            lifted=tuple(block.name for block in blocks),
            share=sum(block.share for block in blocks),
            distance=float(np.mean(record["far"])),
            search=measure_loss(record, by if same else "certainty"),
        )

    def confirm(self, blocks: BlockSet, by: LossMeasure) -> PredictionLoss:
        """Return what a set loses on the evaluation images."""
        return measure_loss(self.run_trial(self.evaluation_images, blocks), by)


def search_mixed_precision(
    space: SearchSpace, goal: SearchGoal, progress: ProgressCallback
) -> MixedResult:
    """Search a space for the smallest set that reaches the goal; trials in the file are reused."""
    by = goal.by or choose_metric(space.evaluation_images.reference, goal.budget)
    progress(Progress("search", "everything in INT8"))
    int8 = replace(space.evaluate((), by), confirmed=space.confirm((), by))
    times = space.timer([()]) if space.timer is not None else {}
    result = MixedResult(
        "int8",
        "",
        goal.budget,
        by,
        goal.rest,
        replace(int8, ms=times.get(())),
        max_latency=goal.max_latency,
        float_ms=times.get(None),
        untimed=space.untimed,
    )
    if early := _early_result(result):
        return early
    result = replace(result, gains=_measure_gains(space, progress))
    steps: dict[frozenset[str], SearchStep] = {}

    def keeps_budget(blocks: Sequence[Block]) -> bool:
        names = frozenset(block.name for block in blocks)
        if names not in steps:
            text = f"{len(blocks)} blocks in {goal.rest}, set {len(steps) + 1}"
            progress(Progress("search", text))
            step = space.evaluate(tuple(blocks), by)
            # A set whose outputs are further from FP32 than those of INT8 keeps a budget by luck.
            if step.search.pp <= goal.budget and step.distance <= int8.distance:
                step = replace(step, confirmed=space.confirm(tuple(blocks), by))
            steps[names] = step
        confirmed = steps[names].confirmed
        return confirmed is not None and confirmed.pp <= goal.budget

    ranked = rank_blocks(space.blocks, result.gains)
    smallest = find_smallest_set(ranked, keeps_budget)
    # All blocks together keep any budget, and are no mix.
    mixed = 0 < len(smallest) < len(ranked)
    result = replace(
        result,
        steps=tuple(sorted(steps.values(), key=lambda step: step.share)),
        chosen=steps[frozenset(block.name for block in smallest)] if mixed else None,
    )
    return _conclude(_time_sets(space, result, progress))


def rank_blocks(blocks: Sequence[Block], gains: Sequence[BlockGain]) -> list[Block]:
    """Return the blocks by gain for cost, the best first."""
    worth = {row.block: row.gain / (row.share + CONVERSION_COST) for row in gains}
    return sorted(blocks, key=lambda block: -worth[block.name])


def find_smallest_set(
    ranked: Sequence[Block], keeps_budget: Callable[[Sequence[Block]], bool]
) -> Sequence[Block]:
    """Return the smallest set that keeps the budget, as far as the search sees; empty if none."""
    low = 0
    for high in set_sizes(len(ranked)):
        if keeps_budget(ranked[:high]):
            break
        low = high
    else:
        return ()
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if keeps_budget(ranked[:middle]) else (middle, high)
    smallest = ranked[:high]
    for block in sorted(smallest, key=lambda block: -block.share)[:MAX_REMOVALS]:
        fewer = [other for other in smallest if other is not block]
        if fewer and keeps_budget(fewer):
            smallest = fewer
    return smallest


def set_sizes(count: int) -> list[int]:
    """Return the sizes of the growing sets: 1, 2, 3, 4, 6, 8, 12, ..., all."""
    sizes: list[int] = []
    size = 1
    while size < count:
        sizes.append(size)
        size += 1 if size < 4 else 2 ** (size.bit_length() - 2)
    return [*sizes, count] if count else []


def _measure_gains(space: SearchSpace, progress: ProgressCallback) -> tuple[BlockGain, ...]:
    """Return how much closer to FP32 the outputs come with each block alone in float."""
    images, total = space.search_images, len(space.blocks)
    int8_errors = np.asarray(space.run_trial(images, ())["far"])
    missing = [
        block for block in space.blocks if _trial_key(images, (block,)) not in space.trials.records
    ]
    outputs = run_single_blocks(space.model, missing, images.batches)
    for done, (block, batches) in enumerate(
        zip(missing, outputs, strict=True), total - len(missing) + 1
    ):
        space.trials.put(_trial_key(images, (block,)), record_trial(images.reference, batches))
        progress(Progress("search", block.name, done=done, total=total))
    gains = []
    for block in space.blocks:
        falls = int8_errors - np.asarray(space.run_trial(images, (block,))["far"])
        deviation = float(falls.std(ddof=1)) if falls.size > 1 else 0.0
        half_width = 1.96 * deviation / math.sqrt(falls.size)
        gains.append(
            BlockGain(block.name, len(block.nodes), block.share, float(falls.mean()), half_width)
        )
    return tuple(gains)


def _trial_key(images: SearchImages, blocks: BlockSet) -> str:
    return f"{images.name}: " + (", ".join(sorted(block.name for block in blocks)) or "nothing")


def _time_sets(space: SearchSpace, result: MixedResult, progress: ProgressCallback) -> MixedResult:
    """Time the chosen set and some on the way to it, in turns with INT8 and the float engine."""
    if space.timer is None or not result.steps:
        return result
    progress(Progress("search", "timing"))
    by_name = {block.name: block for block in space.blocks}
    spread = np.linspace(0, len(result.steps) - 1, MAX_TIMED_SETS - 1).astype(int)
    timed = dict.fromkeys([*(result.steps[position] for position in spread), result.chosen])
    sets = [tuple(by_name[name] for name in step.lifted) for step in timed if step is not None]
    times = space.timer([(), *sets])
    return replace(
        result,
        int8=replace(result.int8, ms=times[()]),
        float_ms=times[None],
        steps=tuple(replace(step, ms=times.get(step.lifted)) for step in result.steps),
        chosen=result.chosen and replace(result.chosen, ms=times.get(result.chosen.lifted)),
    )


def _early_result(result: MixedResult) -> MixedResult | None:
    """Return the outcome if INT8 alone decides it."""
    ms, float_ms, confirmed = result.int8.ms, result.float_ms, result.int8.confirmed
    assert confirmed is not None
    if ms is not None and float_ms is not None and float_ms <= ms:
        why = f"{result.rest} takes {float_ms:.2f} ms and INT8 {ms:.2f}: there is nothing to gain"
        return replace(result, outcome="float", why=why)
    if ms is not None and result.max_latency is not None and ms > result.max_latency:
        why = f"INT8 alone takes {ms:.2f} ms, and blocks in {result.rest} are slower"
        return replace(result, outcome="none", why=why)
    if confirmed.pp <= result.budget:
        return replace(result, outcome="int8", why="INT8 keeps the budget: no block needs float")
    return None


def _conclude(result: MixedResult) -> MixedResult:
    """Return the outcome of a finished search."""
    chosen, rest = result.chosen, result.rest
    if chosen is None:
        why = f"no mix loses as little as {result.budget:g} points: ship {rest}, or allow more"
        return replace(result, outcome="none", why=why)
    if chosen.ms is not None:
        took = f"the smallest mix that keeps the budget takes {chosen.ms:.2f} ms"
        if result.max_latency is not None and chosen.ms > result.max_latency:
            why = f"{took}, more than the maximum of {result.max_latency:g}"
            return replace(result, outcome="none", why=why)
        if result.float_ms is not None and result.float_ms <= chosen.ms:
            why = f"{took}, and {rest} alone {result.float_ms:.2f}"
            return replace(result, outcome="float", why=why)
    count = len(chosen.lifted)
    blocks = f"{count} blocks" if count > 1 else "one block"
    why = f"{blocks} kept in {rest}, {100 * chosen.share:.1f} % of the compute"
    return replace(result, outcome="mixed", why=why)
