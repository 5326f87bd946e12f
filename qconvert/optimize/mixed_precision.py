"""Search for mixed precision: the least of a network to keep in float within an accuracy budget.

INT8 runs as it is, then with each block alone in float, which ranks the blocks by what they gain
for what they cost (a sensitivity analysis as in HAWQ, Dong et al. 2019, but measured on outputs).
Then sets grow in this order, in steps that become larger; between the last that missed the budget
and the first that kept it the smallest is found by bisection, and blocks it can do without are
taken out again.
"""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Generic, TypeVar

import numpy as np
import onnx_ir as ir

from qconvert.backends.ort import open_cpu
from qconvert.core import onnx_io
from qconvert.core.progress import Progress, ProgressCallback
from qconvert.core.tensors import RunModel, Tensors
from qconvert.measure.mixed_result import (
    BlockGain,
    LossMeasure,
    MixedResult,
    PredictionLoss,
    SearchStep,
)
from qconvert.optimize.blocks import Block
from qconvert.optimize.partial_execution import PartialExecution, can_split
from qconvert.optimize.trials import (
    ReferenceOutputs,
    TrialRecord,
    Trials,
    choose_metric,
    measure_loss,
    record_trial,
)
from qconvert.quantize.apply_plan import apply_plan
from qconvert.quantize.cross_layer import equalize
from qconvert.quantize.placement import restore_float
from qconvert.quantize.plan import Plan
from qconvert.quantize.rounded_weights import RoundedWeights
from qconvert.quantize.scheme import Scheme

# What leaving INT8 costs beside the multiplications, as a share of all of them.
CONVERSION_COST = 0.005
MAX_REMOVALS = 8
MAX_TIMED_SETS = 6
# Bytes of batches and of tensors between trials to hold in memory.
MAX_CACHED_BYTES = 512 * 2**20

T = TypeVar("T")
BlockSet = tuple[Block, ...]
# Milliseconds of INT8 with each of these sets in float, and under None those of the float engine.
SetTimer = Callable[[Sequence[BlockSet]], Mapping[tuple[str, ...] | None, float]]


@dataclass(frozen=True)
class SearchModel:
    """A float model, the plan that quantizes it, and the scheme whose rules the plan follows.

    `weights` were learned with the plan; blocks in float have their own back.
    """

    model: ir.Model
    plan: Plan
    scheme: Scheme
    weights: RoundedWeights = field(default_factory=dict)

    def restore_float(self, blocks: Collection[Block]) -> Plan:
        """Return the plan with these blocks in float."""
        nodes = {node for block in blocks for node in block.nodes}
        reason = f"kept in {self.plan.rest} to stay within the accuracy budget"
        if not nodes:
            return self.plan
        return restore_float(self.model, self.plan, self.scheme, nodes, reason)

    def open(self, plan: Plan) -> RunModel:
        """Open the whole model, quantized by a plan."""
        return open_cpu(apply_plan(self.model, plan, self.weights), keep_qdq=not plan.integer_bias)

    def open_segment(self, segment: ir.Model, plan: Plan) -> RunModel:
        """Open a segment of the equalized model, quantized by the plan of the whole."""
        names = {node.name for node in segment.graph}
        layers = {name: layer for name, layer in plan.layers.items() if name in names}
        own = replace(plan, model=onnx_io.fingerprint(segment), layers=layers, equalized={})
        return open_cpu(apply_plan(segment, own, self.weights), keep_qdq=not plan.integer_bias)


@dataclass(frozen=True)
class Rereadable(Generic[T]):
    """Batches too large to hold, read again every time."""

    read: Callable[[], Iterator[T]]

    def __iter__(self) -> Iterator[T]:
        return self.read()


def cache_batches(
    read: Callable[[], Iterator[tuple[Tensors, T]]], max_bytes: int = MAX_CACHED_BYTES
) -> Iterable[tuple[Tensors, T]]:
    """Return the batches in memory, or what reads them every time if they are too large."""
    batches, held_bytes = [], 0
    for batch in read():
        held_bytes += sum(array.nbytes for array in batch[0].values())
        if held_bytes > max_bytes:
            return Rereadable(read)
        batches.append(batch)
    return batches


@dataclass(frozen=True)
class SearchImages:
    """Batches with their FP32 outputs; `name` tells them from others in the list of trials."""

    name: str
    batches: Iterable[Tensors]
    reference: ReferenceOutputs


@dataclass(frozen=True)
class SearchSpace:
    """A model with its blocks, what its sets are tried on, and the goal.

    `by` is None where the images decide how to count the budget; `rest` is the precision in float.
    `timer` is None where the backend does not run, and `untimed` says why.
    """

    model: SearchModel
    blocks: tuple[Block, ...]
    search_images: SearchImages
    evaluation_images: SearchImages
    trials: Trials
    budget: float
    by: LossMeasure | None
    rest: str
    max_latency: float | None = None
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


def search_mixed_precision(space: SearchSpace, progress: ProgressCallback) -> MixedResult:
    """Search a space for the smallest set that keeps the budget; earlier trials are reused."""
    budget, rest = space.budget, space.rest
    by = space.by or choose_metric(space.evaluation_images.reference, budget)
    progress(Progress("search", "everything in INT8"))
    int8 = replace(space.evaluate((), by), confirmed=space.confirm((), by))
    times = space.timer([()]) if space.timer is not None else {}
    int8 = replace(int8, ms=times.get(()))
    result = MixedResult("int8", "", budget, by, rest, int8, max_latency=space.max_latency)
    result = replace(result, float_ms=times.get(None), untimed=space.untimed)
    if early := _early_result(result):
        return early
    result = replace(result, gains=_measure_gains(space, progress))
    steps: dict[frozenset[str], SearchStep] = {}

    def keeps_budget(blocks: Sequence[Block]) -> bool:
        names = frozenset(block.name for block in blocks)
        if names not in steps:
            text = f"{len(blocks)} blocks in {rest}, set {len(steps) + 1}"
            progress(Progress("search", text))
            step = space.evaluate(tuple(blocks), by)
            # A set whose outputs are further from FP32 than those of INT8 keeps a budget by luck.
            if step.search.pp <= budget and step.distance <= int8.distance:
                step = replace(step, confirmed=space.confirm(tuple(blocks), by))
            steps[names] = step
        confirmed = steps[names].confirmed
        return confirmed is not None and confirmed.pp <= budget

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


def run_single_blocks(
    model: SearchModel,
    blocks: Sequence[Block],
    batches: Iterable[Tensors],
    max_bytes: int = MAX_CACHED_BYTES,
) -> Iterator[list[Tensors]]:
    """Yield for each block, in the order of the graph, the outputs with it alone in float.

    The tensors held between trials take at most `max_bytes`; beyond, more of the model runs again.
    """
    equalized = equalize(model.model, model.plan.equalized)
    prefix = PartialExecution(equalized, partial(model.open_segment, plan=model.plan), batches)
    splittable = can_split(model.model)
    outputs = [str(value.name) for value in model.model.graph.outputs]
    for block in blocks:
        plan = model.restore_float([block])
        first = find_first_change(model, plan)
        if splittable and first > prefix.position:
            prefix.run_to(model.model.graph[first].name or "", max_bytes=max_bytes)
        if 0 < prefix.position <= first:
            run = prefix.open_rest(partial(model.open_segment, plan=plan))
            tensors = ({**live, **run(live)} for live in prefix.live)
            yield [{name: batch[name] for name in outputs} for batch in tensors]
        else:
            run = model.open(plan)
            yield [run(batch) for batch in batches]


def find_first_change(model: SearchModel, plan: Plan) -> int:
    """Return the position of the first node for which a plan differs from that of the model."""
    before = model.plan.layers
    changes = (
        position
        for position, node in enumerate(model.model.graph)
        if before.get(node.name or "") != plan.layers.get(node.name or "")
    )
    return next(changes, len(model.model.graph) - 1)


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
    ms, took = chosen.ms, f"the smallest mix that keeps the budget takes {chosen.ms or 0:.2f} ms"
    if ms is not None and result.max_latency is not None and ms > result.max_latency:
        why = f"{took}, more than the maximum of {result.max_latency:g}"
        return replace(result, outcome="none", why=why)
    if ms is not None and result.float_ms is not None and result.float_ms <= ms:
        why = f"{took}, and {rest} alone {result.float_ms:.2f}"
        return replace(result, outcome="float", why=why)
    blocks = f"{len(chosen.lifted)} blocks" if len(chosen.lifted) > 1 else "one block"
    why = f"{blocks} kept in {rest}, {100 * chosen.share:.1f} % of the compute"
    return replace(result, outcome="mixed", why=why)
