"""Search for mixed precision: the least of a network to keep in float within an accuracy budget.

INT8 runs as it is, then with each block alone in float, which ranks the blocks by what they gain
for what they cost (a sensitivity analysis as in HAWQ, Dong et al. 2019, but measured on outputs).
Then sets grow in this order, in steps that become larger; between the last that missed the budget
and the first that kept it the smallest is found by bisection, and unnecessary blocks are
removed again. Every trial is a line in a file, from which an interrupted search resumes.

Where the operators can be timed, as on the CPU, blocks that run faster in float are kept in float
before, and are part of every set.
"""

import json
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir

from qconvert.backends.ort import open_cpu
from qconvert.backends.ort_profile import OperatorTime
from qconvert.core import onnx_io
from qconvert.core.atomic import write_text
from qconvert.core.config import SearchConfig
from qconvert.core.progress import Progress, ProgressCallback
from qconvert.core.tensors import RunModel, Tensors
from qconvert.graph.patterns import has_subgraph
from qconvert.measure.mixed_result import (
    BlockGain,
    BlockTime,
    LossMeasure,
    MixedResult,
    PredictionLoss,
    SearchStep,
)
from qconvert.optimize.block_times import measure_costs
from qconvert.optimize.blocks import Block
from qconvert.optimize.faster_blocks import BlockSet, SetTimer, SetTimes, find_faster_set, names_of
from qconvert.optimize.mixed_outcome import conclude, early_result
from qconvert.optimize.partial_execution import PartialExecution
from qconvert.optimize.trial_records import (
    SearchImages,
    TrialRecord,
    choose_metric,
    measure_loss,
    record_trial,
)
from qconvert.quantize.apply_plan import apply_plan
from qconvert.quantize.cross_layer import equalize
from qconvert.quantize.placement import restore_float
from qconvert.quantize.plan import Plan, RoundedWeights
from qconvert.quantize.scheme import Scheme

# What leaving INT8 costs beside the multiplications, as a share of all of them.
CONVERSION_COST = 0.005
# Bytes of batches and of tensors between trials to hold in memory.
MAX_CACHED_BYTES = 512 * 2**20

# The operators of the engines `int8` and `float`, with their times.
Profiles = Mapping[str, Sequence[OperatorTime]]
Profiler = Callable[[], Profiles]


@dataclass(frozen=True)
class SearchModel:
    """A float model, the plan that quantizes it with its learned weights, and the plan's scheme."""

    model: ir.Model
    plan: Plan
    scheme: Scheme
    weights: RoundedWeights = field(default_factory=dict)

    def restore_float(self, blocks: Collection[Block], reason: str = "") -> Plan:
        """Return the plan with these blocks in float, by default to stay within the budget."""
        if not blocks:
            return self.plan
        budget_reason = f"kept in {self.plan.rest} to stay within the accuracy budget"
        nodes = {node for block in blocks for node in block.nodes}
        return restore_float(self.model, self.plan, self.scheme, nodes, reason or budget_reason)

    def keep_faster(self, blocks: Collection[Block]) -> "SearchModel":
        """Return the model with a plan that has these blocks in float for their speed."""
        reason = f"kept in {self.plan.rest}, in which it runs faster"
        return replace(self, plan=self.restore_float(blocks, reason))

    def open(self, plan: Plan) -> RunModel:
        """Open the whole model, quantized by a plan."""
        return self._open(self.model, plan)

    def open_segment(self, segment: ir.Model, plan: Plan) -> RunModel:
        """Open a segment of the equalized model, quantized by the plan of the whole."""
        names = {node.name for node in segment.graph}
        layers = {name: layer for name, layer in plan.layers.items() if name in names}
        own = replace(plan, model=onnx_io.fingerprint(segment), layers=layers, equalized={})
        return self._open(segment, own)

    def _open(self, model: ir.Model, plan: Plan) -> RunModel:
        """Open a model with every tensor as the whole has it: a segment lacks what is around it."""
        quantized = apply_plan(model, plan, self.weights, keep_values=True)
        return open_cpu(quantized, keep_qdq=not plan.integer_bias)


@dataclass(frozen=True)
class Trials:
    """The trials of one model, a line each in a file whose first line identifies the model."""

    path: Path
    records: dict[str, TrialRecord]

    def put(self, key: str, record: TrialRecord) -> None:
        """Append a trial to the file at once."""
        # A resumed search must see the same numbers, to the last digit.
        self.records[key] = json.loads(json.dumps(record))
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"trial": key, **record}) + "\n")


def open_trials(path: Path, subject: str) -> Trials:
    """Return the trials of a model in a file; those of another model are dropped.

    A line cut short by a kill or a full disk, and what follows it, is dropped too.
    """
    header = json.dumps({"subject": subject})
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    first, *lines = text.splitlines() or [""]
    records: dict[str, TrialRecord] = {}
    with suppress(ValueError):
        for line in lines if first == header else ():
            record = json.loads(line)
            records[record.pop("trial")] = record
    trials = (json.dumps({"trial": key, **record}) for key, record in records.items())
    write_text(path, "".join(f"{line}\n" for line in (header, *trials)))
    return Trials(path, records)


@dataclass(frozen=True)
class SearchSpace:
    """A model with its blocks, what its sets are tried on, and the goal.

    `rest` is the precision in float. `timer` is None where the backend does not run, and `untimed`
    says why; `profiler` is None where operators are not timed. Blocks in `faster` are in float in
    every trial, and the model's plan has them so.
    """

    model: SearchModel
    blocks: tuple[Block, ...]
    search_images: SearchImages
    evaluation_images: SearchImages
    trials: Trials
    goal: SearchConfig
    rest: str
    timer: SetTimer | None = None
    untimed: str = ""
    profiler: Profiler | None = None
    faster: BlockSet = ()

    def trial_key(self, images: SearchImages, blocks: BlockSet) -> str:
        """Return the name of the trial of a set, and of the faster blocks, on these images."""
        names = sorted(block.name for block in (*self.faster, *blocks))
        return f"{images.name}: " + (", ".join(names) or "nothing")

    def run_trial(self, images: SearchImages, blocks: BlockSet) -> TrialRecord:
        """Return the trial of a set on these images, from the file if it ran before."""
        key = self.trial_key(images, blocks)
        if key not in self.trials.records:
            run = self.model.open(self.model.restore_float(blocks))
            self.trials.put(key, record_trial(images, [run(batch) for batch in images.batches]))
        return self.trials.records[key]

    def evaluate(self, blocks: BlockSet, by: LossMeasure) -> SearchStep:
        """Try a set on the search images."""
        record = self.run_trial(self.search_images, blocks)
        # Search images are few and have no labels: counting would not tell one set from another.
        same = self.search_images is self.evaluation_images
        return SearchStep(
            lifted=names_of((*self.faster, *blocks)),
            share=sum(block.share for block in (*self.faster, *blocks)),
            distance=float(np.mean(record["far"])),
            search=measure_loss(record, by if same else self.search_images.unlabelled_measure),
        )

    def confirm(self, blocks: BlockSet, by: LossMeasure) -> PredictionLoss:
        """Return what a set loses on the evaluation images."""
        return measure_loss(self.run_trial(self.evaluation_images, blocks), by)


def search_mixed_precision(space: SearchSpace, progress: ProgressCallback) -> MixedResult:
    """Search a space for the smallest set that keeps the budget; earlier trials are reused."""
    budget, rest = space.goal.budget, space.rest
    by = choose_metric(space.evaluation_images, budget, space.goal.by)
    progress(Progress("search", "everything in INT8"))
    int8 = replace(space.evaluate((), by), confirmed=space.confirm((), by))
    result = MixedResult("int8", "", budget, by, rest, int8, untimed=space.untimed)
    result = replace(result, max_latency=space.goal.max_latency, by_latency=space.goal.by_latency)
    if space.timer is not None:
        result = _with_times(result, times := space.timer([()]))
        space, result = _keep_faster_blocks(space, result, times, progress)
    if early := early_result(result):
        return early
    result = replace(result, gains=_measure_gains(space, progress))
    steps: dict[frozenset[Block], SearchStep] = {}

    def keeps_budget(blocks: BlockSet) -> bool:
        key = frozenset(blocks)
        if key not in steps:
            text = f"{len(blocks)} blocks in {rest}, set {len(steps) + 1}"
            progress(Progress("search", text))
            step = space.evaluate(blocks, by)
            # Boxes that agree are not points of mAP: without truth nothing says what those lose.
            may_keep = step.search.pp <= budget or (step.search.by, by) == ("agreement", "metric")
            # A set whose outputs are further from FP32 than those of INT8 keeps a budget by luck.
            if may_keep and step.distance <= int8.distance:
                step = replace(step, confirmed=space.confirm(blocks, by))
            steps[key] = step
        confirmed = steps[key].confirmed
        return confirmed is not None and confirmed.pp <= budget

    ranked = rank_blocks(space.blocks, result.gains)
    smallest = find_smallest_set(ranked, keeps_budget)
    # All blocks in float keep any budget, but are not a mix.
    chosen = steps[frozenset(smallest)] if 0 < len(smallest) < len(ranked) else None
    by_share = tuple(sorted(steps.values(), key=lambda step: step.share))
    result = replace(result, steps=by_share, chosen=chosen)
    return conclude(_time_sets(space, result, progress))


def rank_blocks(blocks: Sequence[Block], gains: Sequence[BlockGain]) -> list[Block]:
    """Return the blocks by gain for cost, the best first."""
    worth = {row.block: row.gain / (row.share + CONVERSION_COST) for row in gains}
    return sorted(blocks, key=lambda block: -worth[block.name])


def find_smallest_set(
    ranked: Sequence[Block], keeps_budget: Callable[[BlockSet], bool]
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
    for block in sorted(smallest, key=lambda block: -block.share)[:8]:
        fewer = [other for other in smallest if other is not block]
        if fewer and keeps_budget(fewer):
            smallest = fewer
    return smallest


def set_sizes(count: int) -> list[int]:
    """Return the sizes of the growing sets: 1, 2, 3, 4, 6, 8, 12, ..., all."""
    powers = range(count.bit_length())
    sizes = {1, count, *(factor << power for factor in (2, 3) for power in powers)}
    return sorted(size for size in sizes if 0 < size <= count)


def _measure_gains(space: SearchSpace, progress: ProgressCallback) -> tuple[BlockGain, ...]:
    """Return how much closer to FP32 the outputs come with each block alone in float."""
    images, trials, total = space.search_images, space.trials, len(space.blocks)
    int8_errors = np.asarray(space.run_trial(images, ())["far"])
    missing = [row for row in space.blocks if space.trial_key(images, (row,)) not in trials.records]
    outputs = run_single_blocks(space.model, missing, images.batches)
    numbered = enumerate(zip(missing, outputs, strict=True), total - len(missing) + 1)
    for done, (block, batches) in numbered:
        trials.put(space.trial_key(images, (block,)), record_trial(images, batches))
        progress(Progress("search", block.name, done=done, total=total))
    gains = []
    for block in space.blocks:
        falls = int8_errors - np.asarray(space.run_trial(images, (block,))["far"])
        deviation = float(falls.std(ddof=1)) if falls.size > 1 else 0.0
        half_width = 1.96 * deviation / math.sqrt(falls.size)
        cost = block.name, len(block.nodes), block.share
        gains.append(BlockGain(*cost, float(falls.mean()), half_width))
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
    splittable = not model.model.functions and not any(map(has_subgraph, model.model.graph))
    names = [node.name or "" for node in model.model.graph]
    outputs = [str(value.name) for value in model.model.graph.outputs]
    for block in blocks:
        plan = model.restore_float([block])
        # All nodes before the first that the plan changes have run already.
        changed = [model.plan.layers.get(name) != plan.layers.get(name) for name in names]
        first = changed.index(True)
        if splittable and first > prefix.position:
            prefix.run_to(names[first], max_bytes=max_bytes)
        if 0 < prefix.position <= first:
            run = prefix.open_rest(partial(model.open_segment, plan=plan))
            tensors = ({**live, **run(live)} for live in prefix.live)
            yield [{name: batch[name] for name in outputs} for batch in tensors]
        else:
            run = model.open(plan)
            yield [run(batch) for batch in batches]


def _time_sets(space: SearchSpace, result: MixedResult, progress: ProgressCallback) -> MixedResult:
    """Time the chosen set and five on the way to it, in turns with INT8 and the float engine."""
    if space.timer is None or not result.steps:
        return result
    progress(Progress("search", "timing"))
    by_name = {block.name: block for block in (*space.faster, *space.blocks)}
    spread = np.linspace(0, len(result.steps) - 1, 5).astype(int)
    timed = dict.fromkeys([*(result.steps[position] for position in spread), result.chosen])
    sets = [tuple(by_name[name] for name in step.lifted) for step in timed if step is not None]
    return _with_times(result, space.timer([(), *sets]))


def _with_times(result: MixedResult, times: SetTimes) -> MixedResult:
    """Return the result with the medians of these times."""
    ms = {names: float(np.median(samples)) for names, samples in times.items()}

    def with_time(step: SearchStep) -> SearchStep:
        return replace(step, ms=ms.get(step.lifted, step.ms))

    return replace(
        result,
        int8=with_time(result.int8),
        float_ms=ms[None],
        steps=tuple(map(with_time, result.steps)),
        chosen=result.chosen and with_time(result.chosen),
        faster=result.faster and with_time(result.faster),
    )


def _keep_faster_blocks(
    space: SearchSpace, result: MixedResult, times: SetTimes, progress: ProgressCallback
) -> tuple[SearchSpace, MixedResult]:
    """Keep the blocks in float that run faster so, and evaluate INT8 with them."""
    model, blocks = space.model, space.blocks
    if space.timer is None or space.profiler is None:
        return space, result
    if any(map(has_subgraph, model.model.graph)):  # their nodes run any number of times
        return space, result
    progress(Progress("search", "times of operators"))
    profile = space.profiler()
    # Of operators too the least times count: those that nothing interrupted.
    ratio = min(times[()]) / min(times[None])
    costs = measure_costs(model.model, blocks, profile["int8"], profile["float"], ratio)
    block_times = tuple(
        BlockTime(block.name, costs.int8_ms[block.name], costs.float_ms[block.name])
        for block in blocks
    )
    result = replace(result, times=block_times)
    progress(Progress("search", "sets that may be faster"))
    faster, set_times = find_faster_set(blocks, costs, space.timer)
    if not faster:
        return space, result
    others = tuple(block for block in blocks if block not in faster)
    space = replace(space, model=model.keep_faster(faster), blocks=others, faster=faster)
    step = space.evaluate((), result.by)
    result = replace(result, faster=replace(step, confirmed=space.confirm((), result.by)))
    return space, _with_times(result, set_times)
