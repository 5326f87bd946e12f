"""Round the weights of a layer by coordinate descent on its output error (OBQ/GPTQ family).

    minimize |f(s Q x + b) - f(y)|^2 over integers Q and bias b, where y are the float outputs

as in AdaRound (Nagel et al. 2020). For each output the squared error over the rows is a quadratic
form of its weights, so the Gram matrix H is all that the search needs (Hassibi & Stork 1993;
Frantar et al. 2022, "GPTQ"):

    |W X - Q s X|^2 = (w - q s) H (w - q s)',  H = X X'

GPTQ rounds each weight once and corrects the rest by the inverse of H; here every weight takes the
better of its two neighbouring integers in turn, until none moves, which needs no inverse and stays
within AdaRound's rounding up or down. The bias follows in closed form (bias correction).

The activation f decides which errors show. Behind a Relu or Clip, rows on which neither the float
output nor the target lies between the limits do not count: rounding changes nothing there. Then
each output has a Gram matrix of its own, unless that is too much work. Weighting rows by the slope
of a smooth activation was tried and gained nothing, so they count only in the error by which a
solution is accepted.
"""

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from qconvert.core.scales import FloatArray
from qconvert.graph.patterns import find_fused_activation, is_standard, only_reader
from qconvert.quantize.cross_layer import clip_limits
from qconvert.quantize.pairs import PAIR_LIMIT, find_neighbours, limit_pairs

# Fewer rows say too little about an output.
MIN_ROWS = 32
# Numbers in the Gram matrices that are in memory at a time.
MAX_GRAM_ELEMENTS = 30_000_000
# Multiplications for the Gram matrices of one layer, above which its outputs share one.
MAX_GRAM_MACS = 1_200_000_000_000
# Added to the diagonal of H, relative to its mean, which draws weights to where they are.
DAMPING = 0.003
# How much of the error of a layer's inputs its weights compensate: all of it would fit the training
# images and no others.
COMPENSATION = 0.25
SWEEPS = 2
# So many inputs change before the gradient of all others is updated.
BLOCK_SIZE = 64

# Of rows x and targets y around their means: x x' (one for all outputs, or one for each), y x', and
# the means.
Moments = tuple[FloatArray, FloatArray, FloatArray, FloatArray]


@dataclass(frozen=True)
class Activation:
    """A function of a layer's outputs; a Relu or Clip cuts values beyond its limits."""

    apply: Callable[[FloatArray], FloatArray]
    low: float = -math.inf
    high: float = math.inf

    @property
    def clips(self) -> bool:
        """Whether there are limits."""
        return math.isfinite(self.low) or math.isfinite(self.high)

    def passes(self, values: FloatArray) -> NDArray[np.bool_]:
        """Return which values lie between the limits."""
        inside: NDArray[np.bool_] = (values > self.low) & (values < self.high)
        return inside


IDENTITY = Activation(lambda values: values)
SMOOTH: dict[str, Callable[[ir.Node, FloatArray], FloatArray]] = {
    "Sigmoid": lambda node, x: 0.5 * (1 + np.tanh(0.5 * x)),
    "HardSigmoid": lambda node, x: np.clip(
        node.attributes.get_float("alpha", 0.2) * x + node.attributes.get_float("beta", 0.5), 0, 1
    ),
    "HardSwish": lambda node, x: x * np.clip(x / 6 + 0.5, 0, 1),
    # The tanh approximation is close enough to compare errors.
    "Gelu": lambda node, x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
}


@dataclass(frozen=True, eq=False)
class LayerProblem:
    """A layer as a product of matrices, with one for each group.

    `rows` are [group, row, input], `weights` [group, output, input], `targets`, which lie before
    the activation, [group, output, row], `steps` and `biases` [group, output]. `biases` are None
    if nothing can be added to the outputs. Sums of pairs of
    weights are limited if the inputs are in places of so many `pair_channels` (0: in one place).
    """

    rows: FloatArray
    targets: FloatArray
    weights: FloatArray
    steps: FloatArray
    biases: FloatArray | None
    activation: Activation
    max_integer: int
    pair_channels: int | None = None

    @property
    def nearest(self) -> FloatArray:
        """The nearest integers, as floats."""
        return _nearest(self.weights / self.steps[..., np.newaxis], self)

    def relative_error(self, integers: FloatArray, biases: FloatArray | None) -> float:
        """Return the squared error behind the activation, as a share of the targets' power."""
        error = power = 0.0
        for group, rows in enumerate(self.rows):
            outputs = (integers[group] * self.steps[group][:, np.newaxis]) @ rows.T
            outputs += 0.0 if biases is None else biases[group][:, np.newaxis]
            targets = self.activation.apply(self.targets[group])
            errors = self.activation.apply(outputs) - targets
            error += float(np.square(errors).sum(dtype=np.float64))
            power += float(np.square(targets).sum(dtype=np.float64))
        return error / (power or 1.0)


@dataclass(frozen=True, eq=False)
class Solution:
    """Integers, as floats, and the biases that go with them."""

    integers: FloatArray
    biases: FloatArray | None


def find_activation(node: ir.Node) -> Activation:
    """Return the activation between a node and whatever else reads it; else the identity.

    SiLU and HardSwish in two nodes are a gate that also reads the output, and a Mul behind it.
    """
    if fused := find_fused_activation(node):
        low, high = clip_limits(fused)
        return Activation(lambda values: np.clip(values, low, high), low, high)
    value = node.outputs[0]
    if reader := only_reader(value):
        smooth = is_standard(reader, *SMOOTH)
        return Activation(partial(SMOOTH[reader.op_type], reader)) if smooth else IDENTITY
    readers = [use.node for use in value.uses()]
    gates = [reader for reader in readers if is_standard(reader, "Sigmoid", "HardSigmoid")]
    if len(readers) == 2 and len(gates) == 1 and not value.is_graph_output():
        product = only_reader(gates[0].outputs[0])
        if product in readers and product.op_type == "Mul":
            gate = partial(SMOOTH[gates[0].op_type], gates[0])
            return Activation(lambda values: values * gate(values))
    return IDENTITY


def round_weights(problem: LayerProblem) -> tuple[Solution, Solution]:
    """Return the nearest integers with corrected biases, and integers with a lower error yet."""
    nearest, best = (
        Solution(problem.nearest, None if problem.biases is None else problem.biases.copy())
        for _ in range(2)
    )
    groups, outputs, size = problem.weights.shape
    macs = groups * outputs * size**2 * problem.rows.shape[1]
    shared = outputs > 1 and (not problem.activation.clips or macs > MAX_GRAM_MACS)
    threads, count = os.cpu_count() or 1, groups * outputs
    at_once = min(max(1, MAX_GRAM_ELEMENTS // (threads * size**2)), -(-count // threads))
    at_once = outputs if shared else at_once
    indices = np.indices((groups, outputs)).reshape(2, -1)

    def solve(start: int) -> None:
        part = tuple(indices[:, start : start + at_once])
        if shared:
            group = part[0][0]
            moments = _center(problem, problem.rows[group], problem.targets[group])
        else:
            pairs = ((index, _output_moments(problem, *index)) for index in zip(*part, strict=True))
            solvable = {index: entry for index, entry in pairs if entry is not None}
            if not solvable:
                return
            part = tuple(np.transpose(list(solvable)))
            grams, products, mean_rows, mean_targets = zip(*solvable.values(), strict=True)
            moments = (
                np.stack(grams),
                np.concatenate(products),
                np.stack(mean_rows),
                np.concatenate(mean_targets),
            )
        steps = problem.steps[part]
        best.integers[part] = _descend(moments, problem.weights[part], steps, problem)
        for solution in (nearest, best):
            if solution.biases is not None:
                # The bias that gives the outputs the mean of the targets.
                weights = solution.integers[part] * steps[:, np.newaxis]
                solution.biases[part] = moments[3] - (weights * moments[2]).sum(axis=1)

    # Every thread solves outputs of its own; products this small are slower on several threads.
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(threads) as pool:
        list(pool.map(solve, range(0, count, at_once)))
    return nearest, best


def _output_moments(problem: LayerProblem, group: int, output: int) -> Moments | None:
    """Return the moments of one output over the rows that count for it, if there are enough."""
    rows, targets = problem.rows[group], problem.targets[group, output]
    activation = problem.activation
    if activation.clips:
        outputs = rows @ problem.weights[group, output]
        outputs += 0.0 if problem.biases is None else problem.biases[group, output]
        counts = activation.passes(targets) | activation.passes(outputs)
        rows, targets = rows[counts], activation.apply(targets[counts])
    return _center(problem, rows, targets[np.newaxis]) if len(rows) >= MIN_ROWS else None


def _center(problem: LayerProblem, rows: FloatArray, targets: FloatArray) -> Moments:
    mean_rows, mean_targets = rows.mean(axis=0), targets.mean(axis=1)
    if problem.biases is not None:
        rows, targets = rows - mean_rows, targets - mean_targets[:, np.newaxis]
    return rows.T @ rows, targets @ rows, mean_rows, mean_targets


def _nearest(exact: FloatArray, problem: LayerProblem) -> FloatArray:
    """Return the nearest integers that the problem allows, as floats."""
    nearest = np.clip(np.rint(exact), -problem.max_integer, problem.max_integer)
    if problem.pair_channels is None:
        return nearest
    integers = limit_pairs(nearest.astype(np.int32), exact, problem.pair_channels)
    return integers.astype(np.float32)


def _descend(
    moments: Moments, weights: FloatArray, steps: FloatArray, problem: LayerProblem
) -> FloatArray:
    """Return integers next to the weights that are a minimum in every single weight."""
    gram = moments[0].copy()
    diagonal = np.einsum("...ii->...i", gram)
    diagonal += DAMPING * diagonal.mean(axis=-1, keepdims=True) + 1e-12
    exact = weights / steps[:, np.newaxis]
    integers = _nearest(exact, problem)
    low, high = (
        np.clip(side(exact), -problem.max_integer, problem.max_integer)
        for side in (np.floor, np.ceil)
    )
    # The limit of pairs moves weights away from their neighbouring integers.
    np.minimum(low, integers, out=low)
    np.maximum(high, integers, out=high)
    # Half the gradient at these integers; at the float weights only the compensation is left.
    rounding_error = integers * steps[:, np.newaxis] - weights
    input_error = moments[1] - _multiply(weights, moments[0])
    gradient = _multiply(rounding_error, gram) - COMPENSATION * input_error
    size, channels = weights.shape[1], problem.pair_channels
    neighbours = [[]] * size if channels is None else find_neighbours(size, channels)
    for _ in range(SWEEPS):
        moved = False
        for start in range(0, weights.shape[1], BLOCK_SIZE):
            block = slice(start, start + BLOCK_SIZE)
            # Inputs come first here: one input of all outputs lies together in memory.
            slopes, numbers, least, most = (
                array[:, block].T.copy(order="C") for array in (gradient, integers, low, high)
            )
            own = gram[..., block, block]
            own = np.moveaxis(own, 0, -1) if own.ndim > 2 else own[..., np.newaxis]
            own = np.ascontiguousarray(own)
            changes = np.zeros_like(slopes)
            for index in range(len(slopes)):
                optimum = np.rint(numbers[index] - slopes[index] / (own[index, index] * steps))
                least_here, most_here = least[index], most[index]
                for neighbour in neighbours[start + index]:
                    inside = 0 <= neighbour - start < len(slopes)
                    other = numbers[neighbour - start] if inside else integers[:, neighbour]
                    least_here = np.maximum(least_here, -PAIR_LIMIT - other)
                    most_here = np.minimum(most_here, PAIR_LIMIT - other)
                np.minimum(np.maximum(optimum, least_here, out=optimum), most_here, out=optimum)
                np.multiply(optimum - numbers[index], steps, out=changes[index])
                if changes[index].any():
                    numbers[index] = optimum
                    slopes[index + 1 :] += own[index, index + 1 :] * changes[index]
            integers[:, block] = numbers.T
            gradient += _multiply(changes.T, gram[..., block, :])
            moved = moved or bool(changes.any())
        if not moved:
            break
    return integers


def _multiply(vectors: FloatArray, matrices: FloatArray) -> FloatArray:
    """Multiply each vector with the one matrix, or with its own."""
    if matrices.ndim == 2:
        return vectors @ matrices
    return (vectors[:, np.newaxis] @ matrices)[:, 0]
