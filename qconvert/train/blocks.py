"""The blocks of a network that are trained one after another, each against its FP32 outputs.

A block ends where a single tensor holds everything that is read later, so it runs by itself: on the
outputs of the quantized blocks before it, towards those of the float network (block-wise
reconstruction, as in BRECQ, Li et al. 2021). Its gradient is far less noisy than that of the whole
network, and costs a fraction of it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from qconvert.core.errors import QConvertError
from qconvert.quantize.plan import LayerPlan, Plan
from qconvert.train.trainable_graph import Step, TrainableGraph

# A block has at least so many trained layers: they make good what the others of it cannot.
MIN_LAYERS = 3


@dataclass(frozen=True)
class Block:
    """The steps from some tensors to others, by the quantized graph and by the float one."""

    steps: tuple[Step, ...]
    float_steps: tuple[Step, ...]
    targets: tuple[str, ...]


def float_plan(plan: Plan) -> Plan:
    """Return the plan of the same graph with nothing quantized."""
    layers = {name: LayerPlan(layer.op, left="float") for name, layer in plan.layers.items()}
    return replace(plan, layers=layers, tensors={}, learned="")


def find_blocks(
    module: TrainableGraph, float_module: TrainableGraph, feeds: Mapping[str, Tensor]
) -> list[Block]:
    """Return the blocks of a module, in order; the last one gives the outputs.

    Between blocks, as in some `feeds`, a tensor has a row for each image.
    """
    ends = {tensor: position for position, tensor in _single_tensors(float_module)}
    count = len(next(iter(feeds.values())))
    with torch.no_grad():
        values = float_module.run(feeds, frozenset(ends))
    for name in float_module.outputs:
        if not values[name].dim() or len(values[name]) != count:
            raise QConvertError(
                f"the output `{name}` has no row for each image, as training needs",
                hint="quantize it without training: `--effort thorough`",
            )
    ends = {
        name: end for name, end in ends.items() if values[name].dim() and len(values[name]) == count
    }
    body, floats = _body(module), _body(float_module)
    blocks: list[Block] = []
    start, float_start = 0, 0
    for position, tensor in _single_tensors(module):
        names = [name for step in body[start:position] for name in step.inputs]
        layers = sum(name.endswith("/weight") for name in names)
        if layers >= MIN_LAYERS and tensor in ends and position < len(body):
            own = _with_parameters(module, body[start:position])
            others = _with_parameters(float_module, floats[float_start : ends[tensor]])
            blocks.append(Block(own, others, (tensor,)))
            start, float_start = position, ends[tensor]
    own = _with_parameters(module, body[start:])
    others = _with_parameters(float_module, floats[float_start:])
    return [*blocks, Block(own, others, tuple(module.outputs))]


def run_steps(
    module: TrainableGraph, steps: Sequence[Step], values: Mapping[str, Tensor], block: Block
) -> dict[str, Tensor]:
    """Return the targets of a block."""
    held = module.run(values, frozenset(block.targets), steps)
    return {name: held[name] for name in block.targets}


def run_many(
    module: TrainableGraph,
    steps: Sequence[Step],
    values: Mapping[str, Tensor],
    block: Block,
    batch: int,
) -> dict[str, Tensor]:
    """Return the targets of a block on many images, `batch` at a time, without gradients."""
    count = len(next(iter(values.values())))
    parts = []
    with torch.no_grad():
        for start in range(0, count, batch):
            part = {name: value[start : start + batch] for name, value in values.items()}
            parts.append(run_steps(module, steps, part, block))
    return {name: torch.cat([part[name] for part in parts]) for name in block.targets}


def _body(module: TrainableGraph) -> list[Step]:
    return [step for step in module.steps if step.inputs]


def _with_parameters(module: TrainableGraph, steps: Sequence[Step]) -> tuple[Step, ...]:
    """Return some steps, and before them those that make the parameters they read."""
    read = {name for step in steps for name in step.inputs}
    own = [step for step in module.steps if not step.inputs and step.outputs[0] in read]
    return (*own, *steps)


def _single_tensors(module: TrainableGraph) -> Iterator[tuple[int, str]]:
    """Yield the places in the steps behind which one tensor is all that is still read."""
    body = _body(module)
    reads = {name: index for index, step in enumerate(body) for name in step.inputs}
    live = set(module.inputs)
    for index, step in enumerate(body):
        live.update(step.outputs)
        live = {name for name in live if name in module.outputs or reads.get(name, -1) > index}
        if len(live) == 1:
            yield index + 1, next(iter(live))
