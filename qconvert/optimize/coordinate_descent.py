"""Round the weights of a layer by coordinate descent on its output error (OBQ/GPTQ family).

    |W X - Q s X|^2 = (w - q s) H (w - q s)',  H = X X'

For each output the squared error over the rows is a quadratic form of its weights, so the Gram
matrix H is all that the search needs (Hassibi & Stork 1993; Frantar et al. 2022, "GPTQ"). GPTQ
rounds each weight once and corrects the rest by the inverse of H; here every weight takes the
better of its two neighbouring integers in turn, until none moves, which needs no inverse and stays
within AdaRound's rounding up or down. The bias follows in closed form (bias correction).

Behind a Relu or Clip, rows on which neither the float output nor the target lies between the limits
do not count: rounding changes nothing there. Then each output has a Gram matrix of its own, unless
that is too much work.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from qconvert.core.scales import FloatArray
from qconvert.optimize.layer_problem import LayerProblem

# Fewer rows say too little about an output.
MIN_ROWS = 32
# Numbers in the Gram matrices that are in memory at a time.
MAX_GRAM_ELEMENTS = 30_000_000
# Multiplications for the Gram matrices of one layer, above which its outputs share one.
MAX_GRAM_MACS = 1_200_000_000_000
# Added to the diagonal of H, relative to its mean, which draws weights to where they are.
DAMPING = 0.003
MIN_DAMPING = 1e-12
# How much of the error of a layer's inputs its weights compensate: all of it would fit the training
# images and no others.
COMPENSATION = 0.25
SWEEPS = 2
# So many inputs change before the gradient of all others is updated.
BLOCK_SIZE = 64

# The groups and the outputs in them, pair by pair.
OutputIndices = tuple[NDArray[np.intp], NDArray[np.intp]]


@dataclass(frozen=True, eq=False)
class Solution:
    """Integers, as floats, and the biases that go with them."""

    integers: FloatArray
    biases: FloatArray | None


@dataclass(frozen=True, eq=False)
class Moments:
    """Moments of rows x and targets y around their means: x x', y x', and the means.

    `gram` is one matrix that all outputs share, or one for each of them.
    """

    gram: FloatArray
    cross: FloatArray
    mean_rows: FloatArray
    mean_targets: FloatArray

    def optimal_bias(self, weights: FloatArray) -> FloatArray:
        """Return the bias that gives the outputs the mean of the targets."""
        bias: FloatArray = self.mean_targets - (weights * self.mean_rows).sum(axis=1)
        return bias


def round_weights(problem: LayerProblem) -> tuple[Solution, Solution]:
    """Return the nearest integers with corrected biases, and integers with a lower error yet."""
    nearest, best = (
        Solution(problem.nearest, None if problem.biases is None else problem.biases.copy())
        for _ in range(2)
    )

    def solve(outputs: OutputIndices) -> None:
        solved = compute_moments(problem, outputs)
        if solved is None:
            return
        outputs, moments = solved
        steps, weights = problem.steps[outputs], problem.weights[outputs]
        best.integers[outputs] = _descend(moments, weights, steps, problem.max_integer)
        for solution in (nearest, best):
            if solution.biases is not None:
                rounded = solution.integers[outputs] * steps[:, np.newaxis]
                solution.biases[outputs] = moments.optimal_bias(rounded)

    # Every thread solves outputs of its own; products this small are slower on several threads.
    threads = os.cpu_count() or 1
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(threads) as pool:
        list(pool.map(solve, split_outputs(problem, threads)))
    return nearest, best


def split_outputs(problem: LayerProblem, threads: int) -> Iterator[OutputIndices]:
    """Yield the outputs that are solved together."""
    groups, outputs, size = problem.weights.shape
    if shares_gram(problem):
        yield from ((np.full(outputs, group), np.arange(outputs)) for group in range(groups))
        return
    indices = np.indices((groups, outputs)).reshape(2, -1)
    count = indices.shape[1]
    at_once = min(max(1, MAX_GRAM_ELEMENTS // (threads * size**2)), -(-count // threads))
    for start in range(0, count, at_once):
        yield indices[0, start : start + at_once], indices[1, start : start + at_once]


def shares_gram(problem: LayerProblem) -> bool:
    """Whether all outputs of a group share one Gram matrix."""
    groups, outputs, size = problem.weights.shape
    if outputs == 1:
        return False
    macs = groups * outputs * size**2 * problem.rows.shape[1]
    return not problem.activation.clips or macs > MAX_GRAM_MACS


def compute_moments(
    problem: LayerProblem, outputs: OutputIndices
) -> tuple[OutputIndices, Moments] | None:
    """Return the moments of outputs, without those that have too few rows."""
    if shares_gram(problem):
        group = outputs[0][0]
        return outputs, _moments(problem, problem.rows[group], problem.targets[group])
    by_output = [
        _output_moments(problem, group, output) for group, output in zip(*outputs, strict=True)
    ]
    moments = [entry for entry in by_output if entry is not None]
    if not moments:
        return None
    solvable = np.array([entry is not None for entry in by_output])
    return (outputs[0][solvable], outputs[1][solvable]), Moments(
        np.stack([entry.gram for entry in moments]),
        np.concatenate([entry.cross for entry in moments]),
        np.stack([entry.mean_rows for entry in moments]),
        np.concatenate([entry.mean_targets for entry in moments]),
    )


def _output_moments(problem: LayerProblem, group: int, output: int) -> Moments | None:
    """Return the moments of one output over the rows that count for it, if there are enough."""
    rows, targets = problem.rows[group], problem.targets[group, output]
    activation = problem.activation
    if activation.clips:
        outputs = rows @ problem.weights[group, output]
        outputs += 0.0 if problem.biases is None else problem.biases[group, output]
        counts = activation.passes(targets) | activation.passes(outputs)
        rows, targets = rows[counts], activation.apply(targets[counts])
    return _moments(problem, rows, targets[np.newaxis]) if len(rows) >= MIN_ROWS else None


def _moments(problem: LayerProblem, rows: FloatArray, targets: FloatArray) -> Moments:
    mean_rows, mean_targets = rows.mean(axis=0), targets.mean(axis=1)
    if problem.biases is not None:
        rows, targets = rows - mean_rows, targets - mean_targets[:, np.newaxis]
    return Moments(rows.T @ rows, targets @ rows, mean_rows, mean_targets)


def _descend(
    moments: Moments, weights: FloatArray, steps: FloatArray, max_integer: int
) -> FloatArray:
    """Return integers next to the weights that are a minimum in every single weight."""
    gram = moments.gram.copy()
    diagonal = np.einsum("...ii->...i", gram)
    diagonal += DAMPING * diagonal.mean(axis=-1, keepdims=True) + MIN_DAMPING
    exact = weights / steps[:, np.newaxis]
    integers: FloatArray = np.clip(np.rint(exact), -max_integer, max_integer)
    low, high = (np.clip(side(exact), -max_integer, max_integer) for side in (np.floor, np.ceil))
    # Half the gradient at these integers; at the float weights only the compensation is left.
    rounding_error = integers * steps[:, np.newaxis] - weights
    input_error = moments.cross - _multiply(weights, moments.gram)
    gradient = _multiply(rounding_error, gram) - COMPENSATION * input_error
    descent = _Descent(gram, gradient, integers, (low, high), steps)
    for _ in range(SWEEPS):
        if not descent.sweep():
            break
    return integers


def _multiply(vectors: FloatArray, matrices: FloatArray) -> FloatArray:
    """Multiply each vector with the one matrix, or with its own."""
    shared = matrices.ndim == 2
    product: FloatArray = (
        vectors @ matrices if shared else (vectors[:, np.newaxis] @ matrices)[:, 0]
    )
    return product


@dataclass(frozen=True, eq=False)
class _Descent:
    """The state of a descent: `gradient` is half that of the error at the current integers."""

    gram: FloatArray
    gradient: FloatArray
    integers: FloatArray
    limits: tuple[FloatArray, FloatArray]
    steps: FloatArray

    def sweep(self) -> int:
        """Give every weight its best integer once, and return how many changed."""
        changed = 0
        size = self.integers.shape[1]
        for start in range(0, size, BLOCK_SIZE):
            block = slice(start, min(size, start + BLOCK_SIZE))
            changes = self._change(block)
            changed += int(np.count_nonzero(changes))
            self.gradient[:] += _multiply(changes, self.gram[..., block, :])
        return changed

    def _change(self, block: slice) -> FloatArray:
        """Change the weights of a block one after another, and return by how much."""
        # Inputs come first here: one input of all outputs lies together in memory.
        gradient, integers, low, high = (
            array[:, block].T.copy(order="C")
            for array in (self.gradient, self.integers, *self.limits)
        )
        gram = self.gram[..., block, block]
        gram = np.moveaxis(gram, 0, -1) if gram.ndim > 2 else gram[..., np.newaxis]
        gram = np.ascontiguousarray(gram)
        changes = np.zeros_like(gradient)
        for index in range(len(gradient)):
            best = np.rint(integers[index] - gradient[index] / (gram[index, index] * self.steps))
            np.minimum(np.maximum(best, low[index], out=best), high[index], out=best)
            np.multiply(best - integers[index], self.steps, out=changes[index])
            if changes[index].any():
                integers[index] = best
                gradient[index + 1 :] += gram[index, index + 1 :] * changes[index]
        self.integers[:, block] = integers.T
        return changes.T
