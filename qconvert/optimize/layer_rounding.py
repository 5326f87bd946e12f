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

from qconvert.core.scales import FloatArray, QuantParams, fake_quantize
from qconvert.core.tensors import Tensors
from qconvert.graph.names import UniqueNames, tensor_names
from qconvert.graph.patterns import (
    constant_array,
    find_matmul_bias,
    find_matmul_bias_add,
    weight_shape,
)
from qconvert.optimize import im2col
from qconvert.optimize.coordinate_descent import round_weights
from qconvert.optimize.layer_problem import LayerProblem, find_activation
from qconvert.optimize.partial_execution import OpenModel, PartialExecution
from qconvert.quantize import weights
from qconvert.quantize.apply_plan import apply_plan, find_planned_layers
from qconvert.quantize.cross_layer import equalize
from qconvert.quantize.plan import Plan, WeightSlot
from qconvert.quantize.rounded_weights import BIAS_SLOT, RoundedWeight, set_constant, set_weight
from qconvert.quantize.weights import WeightedLayer, find_weighted_layers, weight_scales

# Of so many parts one is not learned from, only judged by.
HOLDOUT_EVERY = 4
WITH_BIAS = im2col.CONVOLUTIONS | {"Gemm"}
# Bytes that the rows of one layer may take.
MAX_ROW_BYTES = 256_000_000


@dataclass(frozen=True)
class RoundedLayer:
    """A layer with what it learned, or None where nothing it tried held on the judges.

    `moved` weights are not the nearest integers; where none are, only the bias was corrected.
    """

    name: str
    weight: RoundedWeight | None
    flipped: int = 0


@dataclass(frozen=True)
class TrainingSet:
    """Images in parts that the model takes as a batch, and how many rows a layer learns from.

    `known` holds layers that were learned before.
    """

    batches: Sequence[Tensors]
    open_model: OpenModel
    rows: int
    seed: int = 0
    finished: Mapping[str, RoundedLayer] = field(default_factory=dict)


def find_learnable(model: ir.Model, plan: Plan) -> list[str]:
    """Return the names of the nodes whose weights can be learned, in the order of the graph."""
    found = find_weighted_layers(find_planned_layers(model.graph, plan), plan)
    return [each.node.name or "" for each in found if _can_learn(each)]


def learn_layers(model: ir.Model, plan: Plan, lesson: TrainingSet) -> Iterator[RoundedLayer]:
    """Yield one layer of the plan after another with what it learned."""
    even = equalize(model, plan.equalized)
    found = list(find_weighted_layers(find_planned_layers(even.graph, plan), plan))
    teacher = PartialExecution(even, lesson.open_model, lesson.batches)
    prefix = _QuantizedPrefix(model, plan, lesson)
    for number, (each, scale) in enumerate(zip(found, weight_scales(found, plan), strict=True)):
        name = each.node.name or ""
        taught = lesson.finished.get(name, RoundedLayer(name, None))
        if _can_learn(each):
            # Known layers are stopped at too: a runtime computes a longer stretch differently.
            made = str(each.node.outputs[0].name)
            teacher.run_to(name, made, beyond=True)
            read = prefix.run_to(name)
            if name not in lesson.finished:
                wanted = [part[made] for part in teacher.live]
                generator = np.random.default_rng([lesson.seed, number])
                places = _sample_positions(each, wanted, lesson.rows, generator)
                taught = _learn_layer(each, scale, _LayerSamples(read, wanted, places))
            yield taught
        prefix.settle(each, scale, taught.weight)


class _QuantizedPrefix:
    """The model with rounded activations, whose layers get their weights on the way."""

    def __init__(self, model: ir.Model, plan: Plan, lesson: TrainingSet) -> None:
        bare = {
            name: replace(layer, weight=None) if layer.weight is not None else layer
            for name, layer in plan.layers.items()
        }
        rounding = replace(plan, layers=bare, integer_bias=False, learned="")
        rounds = apply_plan(model, rounding)
        self._nodes = {node.name: node for node in rounds.graph}
        self._names = UniqueNames(tensor_names(rounds.graph))
        self._run = PartialExecution(rounds, lesson.open_model, lesson.batches)

    def run_to(self, name: str) -> list[FloatArray]:
        """Return what a layer reads of each part."""
        read = str(self._nodes[name].inputs[0].name)  # type: ignore[union-attr]
        self._run.run_to(name, read)
        return [part[read] for part in self._run.live]

    def settle(
        self, product: WeightedLayer, scale: QuantParams, learned: RoundedWeight | None
    ) -> None:
        """Give a layer its weight, learned or rounded to the nearest."""
        node = self._nodes[product.node.name]
        if learned is not None:
            set_weight(node, WeightSlot(product.slot, product.axis), learned, self._names)
        else:
            value = node.inputs[product.slot]
            assert value is not None
            set_constant(
                value, fake_quantize(weights.weight_array(product.weight, product.node), scale)
            )


def _can_learn(product: WeightedLayer) -> bool:
    """Whether a weight is read by its node alone, and what is added to it is constant."""
    bare = len(product.node.inputs) <= BIAS_SLOT or product.node.inputs[BIAS_SLOT] is None
    return len(list(product.weight.uses())) == 1 and (bare or product.bias is not None)


@dataclass(frozen=True, eq=False)
class _LayerSamples:
    """What a layer reads and should answer, part by part, and the places that are looked at."""

    read: Sequence[FloatArray]
    wanted: Sequence[FloatArray]
    places: Sequence[im2col.Positions]

    def between(self, node: ir.Node, parts: Sequence[int]) -> tuple[FloatArray, FloatArray]:
        """Return the rows of some parts and what is wanted of them."""
        each = [(self.read[part], self.wanted[part], self.places[part]) for part in parts]
        return (
            np.concatenate(
                [im2col.gather_inputs(node, x, y, places) for x, y, places in each], axis=1
            ),
            np.concatenate(
                [im2col.gather_outputs(node, y, places) for _, y, places in each], axis=2
            ),
        )


def _sample_positions(
    product: WeightedLayer, wanted: Sequence[FloatArray], most: int, generator: np.random.Generator
) -> list[im2col.Positions]:
    """Return the places of the output to look at, a line for each image of each part."""
    images = sum(len(part) for part in wanted)
    inputs = math.prod(
        im2col.weight_matrix(
            product.node, weights.weight_array(product.weight, product.node)
        ).shape[::2]
    )
    most = min(most, MAX_ROW_BYTES // (4 * inputs))
    there = im2col.count_rows(product.node, wanted[0])
    each = min(there, max(1, most // images))
    return [
        np.stack([generator.permutation(there)[:each] for _ in range(len(part))]) for part in wanted
    ]


def _learn_layer(product: WeightedLayer, scale: QuantParams, looks: _LayerSamples) -> RoundedLayer:
    """Learn from most of the parts, and keep what is better on the others."""
    judges = range(HOLDOUT_EVERY - 1, len(looks.read), HOLDOUT_EVERY) or range(
        len(looks.read) - 1, len(looks.read)
    )
    pupils = [part for part in range(len(looks.read)) if part not in judges]
    lesson, exam = (
        _make_problem(product, scale, looks.between(product.node, parts))
        for parts in (pupils, judges)
    )
    name, near = product.node.name or "", lesson.nearest
    error, best = exam.relative_error(near, lesson.biases), None
    for answer in round_weights(lesson):
        if (after := exam.relative_error(answer.integers, answer.biases)) < error:
            error, best = after, answer
    if best is None:
        return RoundedLayer(name, None)
    whole = im2col.restore_weight(product.node, best.integers, weight_shape(product.node)).astype(
        np.int8
    )
    bias = None if best.biases is None else best.biases.reshape(-1).astype(np.float32)
    return RoundedLayer(
        name, RoundedWeight(whole, scale.scale, bias), int((best.integers != near).sum())
    )


def _make_problem(
    product: WeightedLayer, scale: QuantParams, seen: tuple[FloatArray, FloatArray]
) -> LayerProblem:
    node = product.node
    matrix = im2col.weight_matrix(node, weights.weight_array(product.weight, node)).astype(
        np.float32
    )
    outputs, wanted = matrix.shape[1], seen[1]
    bias = product.bias
    if bias is None and node.op_type in WITH_BIAS:
        bias = np.zeros(outputs * len(matrix), np.float32)
    behind = constant_array(find_matmul_bias(node))
    if behind is not None:
        bias = behind.astype(np.float32)
        wanted = wanted + bias[:, np.newaxis]
    return LayerProblem(
        rows=seen[0],
        targets=wanted,
        weights=matrix,
        steps=im2col.per_output(node, scale.scale, outputs),
        biases=None if bias is None else im2col.per_output(node, bias, outputs),
        activation=find_activation(find_matmul_bias_add(node) or node),
        max_integer=scale.grid.symmetric_max,
    )
