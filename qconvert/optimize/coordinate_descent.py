"""Sums of products over the rows of a layer: all that is needed of them to choose its integers.

Behind a Relu or Clip rows on which neither the wanted nor the actual answer lies between its limits
do not count, since rounding changes nothing there. Then each output has sums of its own, unless
these are too much work.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from qconvert.core.scales import FloatArray
from qconvert.optimize.layer_problem import LayerProblem

# Fewer rows say too little about an output.
MIN_ROWS = 32
# Numbers in the sums that are held at a time.
MAX_GRAM_ELEMENTS = 30_000_000
# Multiplications for the sums of one layer, above which its outputs have them in common.
MAX_GRAM_MACS = 1_200_000_000_000

# The groups and the outputs of them, one by one.
OutputIndices = tuple[NDArray[np.intp], NDArray[np.intp]]


@dataclass(frozen=True, eq=False)
class Moments:
    """Sums over rows x and answers y: x x' and y x' around their means, and the means.

    `squares` is one matrix that all outputs share, or there is one for each of them.
    """

    gram: FloatArray
    cross: FloatArray
    mean_rows: FloatArray
    mean_targets: FloatArray

    def optimal_bias(self, weights: FloatArray) -> FloatArray:
        """Return what must be added, so that the mean answer is the one that is wanted."""
        added: FloatArray = self.mean_targets - (weights * self.mean_rows).sum(axis=1)
        return added


def split_outputs(task: LayerProblem, threads: int) -> Iterator[OutputIndices]:
    """Yield outputs whose integers are found together."""
    groups, outputs, size = task.weights.shape
    if shares_gram(task):
        yield from ((np.full(outputs, group), np.arange(outputs)) for group in range(groups))
        return
    every = np.indices((groups, outputs)).reshape(2, -1)
    fitting = max(1, MAX_GRAM_ELEMENTS // (threads * size**2))
    at_once = min(fitting, -(-every.shape[1] // threads))
    for first in range(0, every.shape[1], at_once):
        some = every[:, first : first + at_once]
        yield some[0], some[1]


def shares_gram(task: LayerProblem) -> bool:
    """Whether all outputs of a group have the same sums of rows."""
    groups, outputs, size = task.weights.shape
    if outputs == 1:
        return False
    work = groups * outputs * size**2 * task.rows.shape[1]
    return not task.activation.clips or work > MAX_GRAM_MACS


def compute_moments(
    task: LayerProblem, which: OutputIndices
) -> tuple[OutputIndices, Moments] | None:
    """Return outputs and their sums, those without enough rows left out."""
    if shares_gram(task):
        group = which[0][0]
        return which, _moments(task, task.rows[group], task.targets[group])
    each = [_output_moments(task, group, output) for group, output in zip(*which, strict=True)]
    found = [sums for sums in each if sums is not None]
    if not found:
        return None
    there = np.array([sums is not None for sums in each])
    return (which[0][there], which[1][there]), _stack_moments(found)


def _output_moments(task: LayerProblem, group: int, output: int) -> Moments | None:
    """Return the sums of one output over the rows that count for it, if there are enough."""
    rows, wanted, activation = task.rows[group], task.targets[group, output], task.activation
    if activation.clips:
        counts = activation.passes(wanted)
        actual = rows @ task.weights[group, output]
        actual += 0.0 if task.biases is None else task.biases[group, output]
        counts |= activation.passes(actual)
        rows, wanted = rows[counts], activation.apply(wanted[counts])
    return _moments(task, rows, wanted[np.newaxis]) if len(rows) >= MIN_ROWS else None


def _moments(task: LayerProblem, rows: FloatArray, answers: FloatArray) -> Moments:
    mean_rows, mean_answers = rows.mean(axis=0), answers.mean(axis=1)
    if task.biases is not None:
        rows, answers = rows - mean_rows, answers - mean_answers[:, np.newaxis]
    return Moments(rows.T @ rows, answers @ rows, mean_rows, mean_answers)


def _stack_moments(each: Sequence[Moments]) -> Moments:
    return Moments(
        np.stack([sums.gram for sums in each]),
        np.concatenate([sums.cross for sums in each]),
        np.stack([sums.mean_rows for sums in each]),
        np.concatenate([sums.mean_targets for sums in each]),
    )


# How strongly weights are drawn to where they were, relative to what the rows say of them.
DAMPING = 0.003
MIN_DAMPING = 1e-12
# How much of the errors that reach a layer its weights make up for: all of it fits the images that
# are learned from and no others.
COMPENSATION = 0.25
SWEEPS = 2
# As many inputs change before all others hear of it.
BLOCK_SIZE = 64


@dataclass(frozen=True, eq=False)
class Solution:
    """Integers, as floats, and the biases that go with them."""

    integers: FloatArray
    biases: FloatArray | None


def round_weights(task: LayerProblem) -> tuple[Solution, Solution]:
    """Return the nearest integers with better biases, and integers with a smaller error yet."""
    near, best = (Solution(task.nearest, _copy(task.biases)) for _ in range(2))

    def settle(which: OutputIndices) -> None:
        found = compute_moments(task, which)
        if found is None:
            return
        which, sums = found
        steps = task.steps[which]
        best.integers[which] = _descend(sums, task.weights[which], steps, task.max_integer)
        for answer in (near, best):
            if answer.biases is not None:
                answer.biases[which] = sums.optimal_bias(
                    answer.integers[which] * steps[:, np.newaxis]
                )

    # Each works on outputs of its own. Products this small are slower on several threads.
    threads = os.cpu_count() or 1
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(threads) as pool:
        list(pool.map(settle, split_outputs(task, threads)))
    return near, best


def _copy(array: FloatArray | None) -> FloatArray | None:
    return None if array is None else array.copy()


def _descend(sums: Moments, weights: FloatArray, steps: FloatArray, largest: int) -> FloatArray:
    """Return integers next to the weights: in turn each takes the better side, until none moves."""
    squares = sums.gram.copy()
    diagonal = np.einsum("...ii->...i", squares)
    hold = DAMPING * diagonal.mean(axis=-1, keepdims=True) + MIN_DAMPING
    diagonal += hold
    exact = weights / steps[:, np.newaxis]
    found: FloatArray = np.clip(np.rint(exact), -largest, largest)
    low, high = (np.clip(side(exact), -largest, largest) for side in (np.floor, np.ceil))
    # Half the gradient where the weights are now: zero at the float weights but for what is to be
    # made up for.
    off = found * steps[:, np.newaxis] - weights
    missing = sums.cross - _multiply(weights, sums.gram)
    search = _Descent(
        squares, _multiply(off, squares) - COMPENSATION * missing, found, (low, high), steps
    )
    for _ in range(SWEEPS):
        if not search.sweep():
            break
    return found


def _multiply(vectors: FloatArray, matrices: FloatArray) -> FloatArray:
    """Multiply each vector with the one matrix, or with its own."""
    if matrices.ndim == 2:
        together: FloatArray = vectors @ matrices
        return together
    each: FloatArray = (vectors[:, np.newaxis] @ matrices)[:, 0]
    return each


@dataclass(frozen=True, eq=False)
class _Descent:
    """Integers on their way down; `slope` is half the gradient of the error where they are now."""

    gram: FloatArray
    gradient: FloatArray
    integers: FloatArray
    limits: tuple[FloatArray, FloatArray]
    steps: FloatArray

    def sweep(self) -> int:
        """Let every input take its best integer once, and return how many changed."""
        moved = 0
        size = self.integers.shape[1]
        for first in range(0, size, BLOCK_SIZE):
            block = slice(first, min(size, first + BLOCK_SIZE))
            changes = self._change(block)
            moved += int(np.count_nonzero(changes))
            self.gradient[:] += _multiply(changes, self.gram[..., block, :])
        return moved

    def _change(self, block: slice) -> FloatArray:
        """Move the inputs of a block, each knowing of those before it; return by how much."""
        # Inputs come first here: what is done for one input of all outputs lies together.
        slope, integers, low, high = (
            array[:, block].T.copy(order="C")
            for array in (self.gradient, self.integers, *self.limits)
        )
        squares = self.gram[..., block, block]
        lines = np.moveaxis(squares, 0, -1) if squares.ndim > 2 else squares[..., np.newaxis]
        lines = np.ascontiguousarray(lines)
        changes = np.zeros_like(slope)
        for place in range(len(slope)):
            best = np.rint(integers[place] - slope[place] / (lines[place, place] * self.steps))
            np.minimum(np.maximum(best, low[place], out=best), high[place], out=best)
            np.multiply(best - integers[place], self.steps, out=changes[place])
            if changes[place].any():
                integers[place] = best
                slope[place + 1 :] += lines[place, place + 1 :] * changes[place]
        self.integers[:, block] = integers.T
        return changes.T
