"""Weights learned layer by layer, each on what the layers before it really answer in integers.

What a layer should answer is what it answers in float. So a layer also makes up for some of the
errors that reach it, its bias first of all. A layer keeps what was learned only if its error falls
on images that it did not learn from.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from qconvert.feeds import Feeds
from qconvert.graph.names import Names, tensor_names
from qconvert.graph.patterns import constant
from qconvert.quantize import rows, weights
from qconvert.quantize.activation import following
from qconvert.quantize.additions import added, addition
from qconvert.quantize.checks import weight_shape
from qconvert.quantize.descent import descend
from qconvert.quantize.equalize import equalized
from qconvert.quantize.learned import BIAS_SLOT, Learned, give, settle
from qconvert.quantize.plan import Plan, Weight
from qconvert.quantize.rewrite import apply, chosen_layers
from qconvert.quantize.stored_weights import Product, products, scales
from qconvert.quantize.stretches import Open, Stretches
from qconvert.quantize.task import Task
from qconvert.scales import Floats, Scale, rounded

# Of so many parts one is not learned from, only judged by.
JUDGES = 4
WITH_BIAS = rows.CONVOLUTIONS | {"Gemm"}
# Bytes that the rows of one layer may take.
MOST_BYTES = 256_000_000


@dataclass(frozen=True)
class Taught:
    """A layer with what it learned, or None where nothing it tried held on the judges.

    `moved` weights are not the nearest integers; where none are, only the bias was corrected.
    """

    name: str
    learned: Learned | None
    moved: int = 0


@dataclass(frozen=True)
class Lesson:
    """Images in parts that the model takes as a batch, and how many rows a layer learns from.

    `known` holds layers that were learned before.
    """

    parts: Sequence[Feeds]
    open_model: Open
    rows: int
    seed: int = 0
    known: Mapping[str, Taught] = field(default_factory=dict)


def learnable(model: ir.Model, plan: Plan) -> list[str]:
    """Return the names of the nodes whose weights can be learned, in the order of the graph."""
    found = products(chosen_layers(model.graph, plan), plan)
    return [each.node.name or "" for each in found if _can_learn(each)]


def learn(model: ir.Model, plan: Plan, lesson: Lesson) -> Iterator[Taught]:
    """Yield one layer of the plan after another with what it learned."""
    even = equalized(model, plan.equalized)
    found = list(products(chosen_layers(even.graph, plan), plan))
    teacher = Stretches(even, lesson.open_model, lesson.parts)
    prefix = _Prefix(model, plan, lesson)
    for number, (each, scale) in enumerate(zip(found, scales(found, plan), strict=True)):
        name = each.node.name or ""
        taught = lesson.known.get(name, Taught(name, None))
        if _can_learn(each):
            # Known layers are stopped at too: a runtime computes a longer stretch differently.
            made = str(each.node.outputs[0].name)
            teacher.run_to(name, made, beyond=True)
            read = prefix.run_to(name)
            if name not in lesson.known:
                wanted = [part[made] for part in teacher.held]
                generator = np.random.default_rng([lesson.seed, number])
                places = _places(each, wanted, lesson.rows, generator)
                taught = _taught(each, scale, _Looks(read, wanted, places))
            yield taught
        prefix.settle(each, scale, taught.learned)


class _Prefix:
    """The model with rounded activations, whose layers get their weights on the way."""

    def __init__(self, model: ir.Model, plan: Plan, lesson: Lesson) -> None:
        bare = {
            name: replace(layer, weight=None) if layer.weight is not None else layer
            for name, layer in plan.layers.items()
        }
        rounding = replace(plan, layers=bare, integer_bias=False, learned="")
        rounds = apply(model, rounding)
        self._nodes = {node.name: node for node in rounds.graph}
        self._names = Names(tensor_names(rounds.graph))
        self._run = Stretches(rounds, lesson.open_model, lesson.parts)

    def run_to(self, name: str) -> list[Floats]:
        """Return what a layer reads of each part."""
        read = str(self._nodes[name].inputs[0].name)  # type: ignore[union-attr]
        self._run.run_to(name, read)
        return [part[read] for part in self._run.held]

    def settle(self, product: Product, scale: Scale, learned: Learned | None) -> None:
        """Give a layer its weight, learned or rounded to the nearest."""
        node = self._nodes[product.node.name]
        if learned is not None:
            settle(node, Weight(product.slot, product.axis), learned, self._names)
        else:
            value = node.inputs[product.slot]
            assert value is not None
            give(value, rounded(weights.weight_of(product.weight, product.node), scale))


def _can_learn(product: Product) -> bool:
    """Whether a weight is read by its node alone, and what is added to it is constant."""
    bare = len(product.node.inputs) <= BIAS_SLOT or product.node.inputs[BIAS_SLOT] is None
    return len(list(product.weight.uses())) == 1 and (bare or product.bias is not None)


@dataclass(frozen=True, eq=False)
class _Looks:
    """What a layer reads and should answer, part by part, and the places that are looked at."""

    read: Sequence[Floats]
    wanted: Sequence[Floats]
    places: Sequence[rows.Places]

    def between(self, node: ir.Node, parts: Sequence[int]) -> tuple[Floats, Floats]:
        """Return the rows of some parts and what is wanted of them."""
        each = [(self.read[part], self.wanted[part], self.places[part]) for part in parts]
        return (
            np.concatenate([rows.inputs(node, x, y, places) for x, y, places in each], axis=1),
            np.concatenate([rows.answers(node, y, places) for _, y, places in each], axis=2),
        )


def _places(
    product: Product, wanted: Sequence[Floats], most: int, generator: np.random.Generator
) -> list[rows.Places]:
    """Return the places of the output to look at, a line for each image of each part."""
    images = sum(len(part) for part in wanted)
    inputs = math.prod(
        rows.columns(product.node, weights.weight_of(product.weight, product.node)).shape[::2]
    )
    most = min(most, MOST_BYTES // (4 * inputs))
    there = rows.count(product.node, wanted[0])
    each = min(there, max(1, most // images))
    return [
        np.stack([generator.permutation(there)[:each] for _ in range(len(part))]) for part in wanted
    ]


def _taught(product: Product, scale: Scale, looks: _Looks) -> Taught:
    """Learn from most of the parts, and keep what is better on the others."""
    judges = range(JUDGES - 1, len(looks.read), JUDGES) or range(
        len(looks.read) - 1, len(looks.read)
    )
    pupils = [part for part in range(len(looks.read)) if part not in judges]
    lesson, exam = (
        _task(product, scale, looks.between(product.node, parts)) for parts in (pupils, judges)
    )
    name, near = product.node.name or "", lesson.nearest
    error, best = exam.error(near, lesson.biases), None
    for answer in descend(lesson):
        if (after := exam.error(answer.integers, answer.biases)) < error:
            error, best = after, answer
    if best is None:
        return Taught(name, None)
    whole = rows.weight(product.node, best.integers, weight_shape(product.node)).astype(np.int8)
    bias = None if best.biases is None else best.biases.reshape(-1).astype(np.float32)
    return Taught(name, Learned(whole, scale.steps, bias), int((best.integers != near).sum()))


def _task(product: Product, scale: Scale, seen: tuple[Floats, Floats]) -> Task:
    node = product.node
    matrix = rows.columns(node, weights.weight_of(product.weight, node)).astype(np.float32)
    outputs, wanted = matrix.shape[1], seen[1]
    bias = product.bias
    if bias is None and node.op_type in WITH_BIAS:
        bias = np.zeros(outputs * len(matrix), np.float32)
    behind = constant(added(node))
    if behind is not None:
        bias = behind.astype(np.float32)
        wanted = wanted + bias[:, np.newaxis]
    return Task(
        rows=seen[0],
        wanted=wanted,
        weights=matrix,
        steps=rows.channels(node, scale.steps, outputs),
        biases=None if bias is None else rows.channels(node, bias, outputs),
        activation=following(addition(node) or node),
        largest=scale.grid.half,
    )
