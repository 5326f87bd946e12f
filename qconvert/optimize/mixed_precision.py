"""From blocks by what they bring to the least of them that keeps a budget.

Sets grow in the order of gain for cost, in steps that become larger; between the last that was not
enough and the first that was, the smallest is found by halving, and what it can do without is
taken out again.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from qconvert.core.tensors import Tensors
from qconvert.measure.mixed_result import (
    BlockGain,
    LossMeasure,
    MixedResult,
    PredictionLoss,
    SearchStep,
)
from qconvert.optimize.blocks import Block
from qconvert.optimize.sensitivity import BatchSource, SearchModel, run_single_blocks
from qconvert.optimize.trials import (
    ReferenceOutputs,
    TrialRecord,
    Trials,
    choose_metric,
    measure_loss,
    record_trial,
)

# What leaving the integers costs beside the multiplications, as a share of all of them.
CONVERSION_COST = 0.005
MAX_REMOVALS = 8

BlockSet = tuple[Block, ...]


@dataclass(frozen=True)
class SetEvaluator:
    """How a set is tried: `look` on the images of the search, `confirm` on all for evaluation.

    Outputs `furthest` from those of FP32 are those of INT8: what is further off kept a budget by
    luck.
    """

    evaluate: Callable[[BlockSet], SearchStep]
    confirm: Callable[[BlockSet], PredictionLoss]
    max_output_error: float = math.inf


@dataclass(frozen=True)
class BudgetResult:
    """The sets that were tried, by their share of compute, and the one to take if there is one."""

    steps: tuple[SearchStep, ...]
    chosen: SearchStep | None


def rank_blocks(blocks: Sequence[Block], gains: Sequence[BlockGain]) -> list[Block]:
    """Return the blocks, those first that bring most for what they cost."""
    worth = {each.block: each.gain / (each.share + CONVERSION_COST) for each in gains}
    return sorted(blocks, key=lambda block: -worth[block.name])


def find_smallest_set(order: Sequence[Block], probes: SetEvaluator, budget: float) -> BudgetResult:
    """Return the smallest set that keeps the budget on both sets of images, so far as one sees.

    All blocks together keep any, and are no mix.
    """
    steps: dict[frozenset[str], SearchStep] = {}

    def keeps(blocks: Sequence[Block]) -> bool:
        key = frozenset(block.name for block in blocks)
        if key not in steps:
            step = probes.evaluate(tuple(blocks))
            if step.search.pp <= budget and step.distance <= probes.max_output_error:
                step = replace(step, confirmed=probes.confirm(tuple(blocks)))
            steps[key] = step
        confirmed = steps[key].confirmed
        return confirmed is not None and confirmed.pp <= budget

    best = _remove_unneeded(_first_within_budget(order, keeps), keeps)
    mix = 0 < len(best) < len(order)
    chosen = steps[frozenset(block.name for block in best)] if mix else None
    return BudgetResult(tuple(sorted(steps.values(), key=lambda step: step.share)), chosen)


def set_sizes(count: int) -> list[int]:
    """Return the sizes of the sets that are tried on the way up: 1, 2, 3, 4, 6, 8, 12, ..., all."""
    found: list[int] = []
    size = 1
    while size < count:
        found.append(size)
        size += 1 if size < 4 else 2 ** (size.bit_length() - 2)
    return [*found, count] if count else []


def _first_within_budget(
    order: Sequence[Block], keeps: Callable[[Sequence[Block]], bool]
) -> Sequence[Block]:
    """Return the first of the growing sets that keeps the budget, empty where none does."""
    low = 0
    for size in set_sizes(len(order)):
        if keeps(order[:size]):
            return order[: _bisect_size(order, keeps, low, size)]
        low = size
    return ()


def _bisect_size(
    order: Sequence[Block], keeps: Callable[[Sequence[Block]], bool], low: int, high: int
) -> int:
    """Return the least size that keeps the budget above one that does not."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if keeps(order[:middle]) else (middle, high)
    return high


def _remove_unneeded(
    found: Sequence[Block], keeps: Callable[[Sequence[Block]], bool]
) -> Sequence[Block]:
    """Take out what costs most and is not needed."""
    for block in sorted(found, key=lambda block: -block.share)[:MAX_REMOVALS]:
        fewer = [each for each in found if each is not block]
        if fewer and keeps(fewer):
            found = fewer
    return found


MAX_TIMED_SETS = 6

# What is said while it works: a sentence, and how much of how much is done.
SearchProgress = Callable[[str, int, int], None]
# Milliseconds of INT8 with these sets lifted, and under None of the float engine.
SetTimer = Callable[[Sequence[BlockSet]], Mapping[tuple[str, ...] | None, float]]


@dataclass(frozen=True)
class SearchImages:
    """Images with what FP32 answers; `name` tells them from others in the list of trials."""

    name: str
    batches: BatchSource
    reference: ReferenceOutputs


@dataclass(frozen=True)
class SearchGoal:
    """What is asked for; `by` is None where the images decide, `rest` is what is lifted to."""

    budget: float
    by: LossMeasure | None
    rest: str
    max_latency: float | None = None


@dataclass(frozen=True)
class SearchSpace:
    """All that a search needs; `clock` is None where the backend does not run, and says why."""

    model: SearchModel
    blocks: tuple[Block, ...]
    search_images: SearchImages
    evaluation_images: SearchImages
    trials: Trials
    timer: SetTimer | None = None
    untimed: str = ""


def search_mixed_precision(
    quest: SearchSpace, goal: SearchGoal, say: SearchProgress
) -> MixedResult:
    """Return what came of the search; only trials that are not known are run."""
    by = goal.by or choose_metric(quest.evaluation_images.reference, goal.budget)
    say("INT8 as it is", 0, 0)
    int8 = replace(_evaluate_set(quest, (), by), confirmed=_evaluation_loss(quest, (), by))
    times = quest.timer([()]) if quest.timer is not None else {}
    int8 = replace(int8, ms=times.get(()))
    mix = MixedResult("int8", "", goal.budget, by, goal.rest, int8, max_latency=goal.max_latency)
    mix = replace(mix, float_ms=times.get(None), untimed=quest.untimed)
    if why := _early_result(mix):
        return why
    gains = _measure_gains(quest, say)
    tried = 0

    def look(blocks: BlockSet) -> SearchStep:
        nonlocal tried
        tried += 1
        say(f"{len(blocks)} blocks lifted, set {tried}", 0, 0)
        return _evaluate_set(quest, blocks, by)

    probes = SetEvaluator(look, lambda blocks: _evaluation_loss(quest, blocks, by), int8.distance)
    found = find_smallest_set(rank_blocks(quest.blocks, gains), probes, goal.budget)
    return _conclude(_time_sets(quest, replace(mix, gains=gains), found, say))


def _early_result(mix: MixedResult) -> MixedResult | None:
    """Return the end of a search that needs no trial."""
    ms, other, confirmed = mix.int8.ms, mix.float_ms, mix.int8.confirmed
    assert confirmed is not None
    if ms is not None and other is not None and other <= ms:
        why = f"{mix.rest} takes {other:.2f} ms and INT8 {ms:.2f}: there is nothing to gain"
        return replace(mix, outcome="float", why=why)
    if ms is not None and mix.max_latency is not None and ms > mix.max_latency:
        why = f"INT8 alone takes {ms:.2f} ms, and what is lifted is slower"
        return replace(mix, outcome="none", why=why)
    if confirmed.pp <= mix.budget:
        return replace(mix, outcome="int8", why="plain INT8 keeps the budget: nothing is lifted")
    return None


def _conclude(mix: MixedResult) -> MixedResult:
    chosen = mix.chosen
    if chosen is None:
        why = f"no mix loses as little as {mix.budget:g} points: ship {mix.rest}, or allow more"
        return replace(mix, outcome="none", why=why)
    if chosen.ms is not None and mix.max_latency is not None and chosen.ms > mix.max_latency:
        why = (
            f"the least that keeps the budget takes {chosen.ms:.2f} ms, "
            f"more than the {mix.max_latency:g} asked for"
        )
        return replace(mix, outcome="none", why=why)
    if chosen.ms is not None and mix.float_ms is not None and mix.float_ms <= chosen.ms:
        why = (
            f"the least that keeps the budget takes {chosen.ms:.2f} ms, "
            f"and {mix.rest} alone {mix.float_ms:.2f}"
        )
        return replace(mix, outcome="float", why=why)
    count = len(chosen.lifted)
    blocks = f"{count} blocks" if count > 1 else "one block"
    why = f"{blocks} lifted to {mix.rest}, {100 * chosen.share:.1f} % of the compute"
    return replace(mix, outcome="mixed", why=why)


def _measure_gains(quest: SearchSpace, say: SearchProgress) -> tuple[BlockGain, ...]:
    """Lift each block alone, those whose trial is not known."""
    base = _run_trial(quest, quest.search_images, ())
    todo = [
        each
        for each in quest.blocks
        if _trial_key(quest.search_images, (each,)) not in quest.trials.records
    ]
    answers = run_single_blocks(quest.model, todo, quest.search_images.batches)
    for number, (block, got) in enumerate(zip(todo, answers, strict=True), 1):
        quest.trials.put(
            _trial_key(quest.search_images, (block,)),
            record_trial(quest.search_images.reference, got),
        )
        say(block.name, len(quest.blocks) - len(todo) + number, len(quest.blocks))
    return tuple(
        _compute_gain(base, _run_trial(quest, quest.search_images, (each,)), each)
        for each in quest.blocks
    )


def _compute_gain(base: TrialRecord, lifted: TrialRecord, block: Block) -> BlockGain:
    nearer = np.asarray(base["far"]) - np.asarray(lifted["far"])
    half = 1.96 * float(nearer.std(ddof=1)) / math.sqrt(nearer.size) if nearer.size > 1 else 0.0
    return BlockGain(block.name, len(block.nodes), block.share, float(nearer.mean()), half)


def _evaluate_set(quest: SearchSpace, blocks: BlockSet, by: LossMeasure) -> SearchStep:
    told = _run_trial(quest, quest.search_images, blocks)
    share = sum(block.share for block in blocks)
    distance = float(np.mean(told["far"]))
    # They are few and have no labels: counting would not tell one set from another.
    found = measure_loss(
        told, by if quest.search_images is quest.evaluation_images else "certainty"
    )
    return SearchStep(tuple(block.name for block in blocks), share, distance, found)


def _evaluation_loss(quest: SearchSpace, blocks: BlockSet, by: LossMeasure) -> PredictionLoss:
    return measure_loss(_run_trial(quest, quest.evaluation_images, blocks), by)


def _run_trial(quest: SearchSpace, sample: SearchImages, blocks: BlockSet) -> TrialRecord:
    def make() -> TrialRecord:
        run = quest.model.open_segment(quest.model.restore_float(blocks))
        got: list[Tensors] = [run(feeds) for feeds in sample.batches()]
        return record_trial(sample.reference, got)

    return quest.trials.get_or_run(_trial_key(sample, blocks), make)


def _trial_key(sample: SearchImages, blocks: BlockSet) -> str:
    return f"{sample.name}: " + (", ".join(sorted(block.name for block in blocks)) or "nothing")


def _time_sets(
    quest: SearchSpace, mix: MixedResult, found: BudgetResult, say: SearchProgress
) -> MixedResult:
    """Time the set chosen and some on the way to it, in turns with INT8 and the float engine."""
    mix = replace(mix, steps=found.steps, chosen=found.chosen)
    if quest.timer is None or not found.steps:
        return mix
    say("timing", 0, 0)
    by_name = {block.name: block for block in quest.blocks}
    spread = np.linspace(0, len(found.steps) - 1, MAX_TIMED_SETS - 1).astype(int)
    picked = list(dict.fromkeys([*(found.steps[at] for at in spread), found.chosen]))
    sets = [tuple(by_name[name] for name in step.lifted) for step in picked if step is not None]
    times = quest.timer([(), *sets])
    return replace(
        mix,
        int8=replace(mix.int8, ms=times[()]),
        float_ms=times[None],
        steps=tuple(replace(step, ms=times.get(step.lifted)) for step in found.steps),
        chosen=found.chosen and replace(found.chosen, ms=times.get(found.chosen.lifted)),
    )
