"""What is searched: a model with its INT8 plan, run whole or from somewhere on, blocks lifted."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from typing import TypeVar

import onnx_ir as ir

from qconvert import onnx_io
from qconvert.backends.ort import open_cpu
from qconvert.feeds import Feeds, Run
from qconvert.quantize.learned import Weights
from qconvert.quantize.lifting import lift
from qconvert.quantize.plan import Plan
from qconvert.quantize.rewrite import apply
from qconvert.quantize.scheme import Scheme
from qconvert.search.blocks import Block
from qconvert.search.prefix import between

Images = Callable[[], Iterator[Feeds]]
Batch = TypeVar("Batch", bound=tuple[Feeds, object])
HELD_BYTES = 512 * 2**20


@dataclass(frozen=True)
class Subject:
    """A float model, the plan that quantizes it, and the scheme whose rules the plan follows.

    `weights` are those that were learned with the plan; lifted operators have their own back.
    """

    model: ir.Model
    plan: Plan
    scheme: Scheme
    weights: Weights = field(default_factory=dict)

    def lifted(self, blocks: Collection[Block]) -> Plan:
        """Return the plan with these blocks in float."""
        nodes = {node for block in blocks for node in block.nodes}
        why = f"lifted to {self.plan.rest} to keep the budget of answers"
        return lift(self.model, self.plan, self.scheme, nodes, why) if nodes else self.plan

    def opened(self, plan: Plan, start: int = 0, stop: int | None = None) -> Run:
        """Load the nodes of a plan's model from one number up to another, as the plan says."""
        if start == 0 and stop is None:
            return open_cpu(apply(self.model, plan, self.weights), literal=not plan.integer_bias)
        part = between(self.model, start, len(self.model.graph) if stop is None else stop)
        if part is None:
            return lambda feeds: {}
        names = {node.name for node in part.graph}
        layers = {name: layer for name, layer in plan.layers.items() if name in names}
        own = replace(plan, model=onnx_io.fingerprint(part), layers=layers)
        run = open_cpu(apply(part, own, self.weights), literal=not plan.integer_bias)
        wanted = {str(value.name) for value in part.graph.inputs}
        return lambda feeds: run({name: feeds[name] for name in feeds if name in wanted})


def held(
    batches: Callable[[], Iterator[Batch]], most: int = HELD_BYTES
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
