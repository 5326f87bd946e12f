"""One block lifted at a time: what the whole network then answers.

All that a block does not change is run once: the network before it is run in INT8 up to where the
first change is, and what is there is kept for the trials after it. That halves the work.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import onnx_ir as ir

from qconvert.backends.ort import open_cpu
from qconvert.core import onnx_io
from qconvert.core.tensors import RunModel, Tensors
from qconvert.optimize.blocks import Block
from qconvert.optimize.partial_execution import can_split, extract_segment, live_tensors
from qconvert.quantize.apply_plan import apply_plan
from qconvert.quantize.placement import restore_float
from qconvert.quantize.plan import Plan
from qconvert.quantize.rounded_weights import RoundedWeights
from qconvert.quantize.scheme import Scheme

BatchSource = Callable[[], Iterator[Tensors]]
Batch = TypeVar("Batch", bound=tuple[Tensors, object])
MAX_CACHED_BYTES = 512 * 2**20


@dataclass(frozen=True)
class SearchModel:
    """A float model, the plan that quantizes it, and the scheme whose rules the plan follows.

    `weights` are those that were learned with the plan; lifted operators have their own back.
    """

    model: ir.Model
    plan: Plan
    scheme: Scheme
    weights: RoundedWeights = field(default_factory=dict)

    def restore_float(self, blocks: Collection[Block]) -> Plan:
        """Return the plan with these blocks in float."""
        nodes = {node for block in blocks for node in block.nodes}
        why = f"lifted to {self.plan.rest} to keep the budget of answers"
        return restore_float(self.model, self.plan, self.scheme, nodes, why) if nodes else self.plan

    def open_segment(self, plan: Plan, start: int = 0, stop: int | None = None) -> RunModel:
        """Load the nodes of a plan's model from one number up to another, as the plan says."""
        if start == 0 and stop is None:
            return open_cpu(
                apply_plan(self.model, plan, self.weights), keep_qdq=not plan.integer_bias
            )
        part = extract_segment(self.model, start, len(self.model.graph) if stop is None else stop)
        if part is None:
            return lambda feeds: {}
        names = {node.name for node in part.graph}
        layers = {name: layer for name, layer in plan.layers.items() if name in names}
        own = replace(plan, model=onnx_io.fingerprint(part), layers=layers)
        run = open_cpu(apply_plan(part, own, self.weights), keep_qdq=not plan.integer_bias)
        wanted = {str(value.name) for value in part.graph.inputs}
        return lambda feeds: run({name: feeds[name] for name in feeds if name in wanted})


def cache_batches(
    batches: Callable[[], Iterator[Batch]], most: int = MAX_CACHED_BYTES
) -> Callable[[], Iterator[Batch]]:
    """Return the same batches from memory; where they are too many they are read each time."""
    kept: list[Batch] = []
    size = 0
    for batch in batches():
        size += sum(array.nbytes for array in batch[0].values())
        if size > most:
            return batches
        kept.append(batch)
    return lambda: iter(kept)


@dataclass(frozen=True)
class CachedPrefix:
    """All images as they are before node number `at`, with everything before it in INT8."""

    at: int
    batches: BatchSource


def run_single_blocks(
    subject: SearchModel, blocks: Sequence[Block], images: BatchSource, most: int = MAX_CACHED_BYTES
) -> Iterator[list[Tensors]]:
    """Yield for each block, in the order of the graph, the answers with it alone lifted.

    What is kept between trials takes at most so many bytes; where it would not fit, more is run.
    """
    prefix = CachedPrefix(0, images)
    cut = can_split(subject.model)
    for block in blocks:
        plan = subject.restore_float([block])
        first = find_first_change(subject, plan)
        if cut and first > prefix.at:
            prefix = _advance_prefix(subject, prefix, first, most)
        start = prefix if prefix.at <= first else CachedPrefix(0, images)
        yield _run_from(subject, plan, start)


def find_first_change(subject: SearchModel, plan: Plan) -> int:
    """Return the number of the first node for which a plan says something else."""
    before = subject.plan.layers
    for number, node in enumerate(subject.model.graph):
        name = node.name or ""
        if before.get(name) != plan.layers.get(name):
            return number
    return len(subject.model.graph)


def _run_from(subject: SearchModel, plan: Plan, prefix: CachedPrefix) -> list[Tensors]:
    run = subject.open_segment(plan, prefix.at)
    names = [str(value.name) for value in subject.model.graph.outputs]
    found = []
    for feeds in prefix.batches():
        made = {**feeds, **run(feeds)}
        found.append({name: made[name] for name in names})
    return found


def _advance_prefix(subject: SearchModel, prefix: CachedPrefix, to: int, most: int) -> CachedPrefix:
    """Run on to another node; where its tensors are too large, stay."""
    run = subject.open_segment(subject.plan, prefix.at, to)
    names = [str(value.name) for value in live_tensors(subject.model.graph, to)]
    kept: list[Tensors] = []
    size = 0
    for feeds in prefix.batches():
        made = {**feeds, **run(feeds)}
        kept.append({name: made[name] for name in names})
        size += sum(array.nbytes for array in kept[-1].values())
        if size > most:
            return prefix
    return CachedPrefix(to, lambda: iter(kept))
