"""The sensitivity of single blocks: the outputs of the INT8 model with one block kept in float.

Only what comes after the first change differs between trials. The INT8 model before it runs once,
and its live tensors are held for the trials that follow, which halves the work.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Generic, TypeVar

import onnx_ir as ir

from qconvert.backends.ort import open_cpu
from qconvert.core import onnx_io
from qconvert.core.tensors import RunModel, Tensors
from qconvert.optimize.blocks import Block
from qconvert.optimize.partial_execution import PartialExecution, can_split
from qconvert.quantize.apply_plan import apply_plan
from qconvert.quantize.placement import restore_float
from qconvert.quantize.plan import Plan
from qconvert.quantize.rounded_weights import RoundedWeights
from qconvert.quantize.scheme import Scheme

MAX_CACHED_BYTES = 512 * 2**20
T = TypeVar("T")


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
        """Open a segment of the model, quantized by the plan of the whole."""
        names = {node.name for node in segment.graph}
        layers = {name: layer for name, layer in plan.layers.items() if name in names}
        own = replace(plan, model=onnx_io.fingerprint(segment), layers=layers)
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


def run_single_blocks(
    model: SearchModel,
    blocks: Sequence[Block],
    batches: Iterable[Tensors],
    max_bytes: int = MAX_CACHED_BYTES,
) -> Iterator[list[Tensors]]:
    """Yield for each block, in the order of the graph, the outputs with it alone in float.

    The tensors held between trials take at most `max_bytes`; beyond, more of the model runs again.
    """
    prefix = PartialExecution(model.model, partial(model.open_segment, plan=model.plan), batches)
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
