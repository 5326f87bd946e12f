"""Integers of a layer chosen by what comes out: each weight rounded down or up, one after another.

The squared error of an output over the rows is a quadratic form of its weights, so that all the
search needs are sums of products.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits

from qconvert.quantize.row_sums import Sums, Which, pieces, sums_of
from qconvert.quantize.task import Task
from qconvert.scales import Floats

# How strongly weights are drawn to where they were, relative to what the rows say of them.
HOLD = 0.003
LEAST_HOLD = 1e-12
# How much of the errors that reach a layer its weights make up for: all of it fits the images that
# are learned from and no others.
MAKE_UP = 0.25
SWEEPS = 2
# As many inputs change before all others hear of it.
BLOCK = 64


@dataclass(frozen=True, eq=False)
class Answer:
    """Integers, as floats, and the biases that go with them."""

    integers: Floats
    biases: Floats | None


def descend(task: Task) -> tuple[Answer, Answer]:
    """Return the nearest integers with better biases, and integers with a smaller error yet."""
    near, best = (Answer(task.nearest, _copy(task.biases)) for _ in range(2))

    def settle(which: Which) -> None:
        found = sums_of(task, which)
        if found is None:
            return
        which, sums = found
        steps = task.steps[which]
        best.integers[which] = _rounded(sums, task.weights[which], steps, task.largest)
        for answer in (near, best):
            if answer.biases is not None:
                answer.biases[which] = sums.bias(answer.integers[which] * steps[:, np.newaxis])

    # Each works on outputs of its own. Products this small are slower on several threads.
    threads = os.cpu_count() or 1
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(threads) as pool:
        list(pool.map(settle, pieces(task, threads)))
    return near, best


def _copy(array: Floats | None) -> Floats | None:
    return None if array is None else array.copy()


def _rounded(sums: Sums, weights: Floats, steps: Floats, largest: int) -> Floats:
    """Return integers next to the weights: in turn each takes the better side, until none moves."""
    squares = sums.squares.copy()
    diagonal = np.einsum("...ii->...i", squares)
    hold = HOLD * diagonal.mean(axis=-1, keepdims=True) + LEAST_HOLD
    diagonal += hold
    exact = weights / steps[:, np.newaxis]
    found: Floats = np.clip(np.rint(exact), -largest, largest)
    low, high = (np.clip(side(exact), -largest, largest) for side in (np.floor, np.ceil))
    # Half the gradient where the weights are now: zero at the float weights but for what is to be
    # made up for.
    off = found * steps[:, np.newaxis] - weights
    missing = sums.products - _times(weights, sums.squares)
    search = _Search(squares, _times(off, squares) - MAKE_UP * missing, found, (low, high), steps)
    for _ in range(SWEEPS):
        if not search.sweep():
            break
    return found


def _times(vectors: Floats, matrices: Floats) -> Floats:
    """Multiply each vector with the one matrix, or with its own."""
    if matrices.ndim == 2:
        together: Floats = vectors @ matrices
        return together
    each: Floats = (vectors[:, np.newaxis] @ matrices)[:, 0]
    return each


@dataclass(frozen=True, eq=False)
class _Search:
    """Integers on their way down; `slope` is half the gradient of the error where they are now."""

    squares: Floats
    slope: Floats
    integers: Floats
    limits: tuple[Floats, Floats]
    steps: Floats

    def sweep(self) -> int:
        """Let every input take its best integer once, and return how many changed."""
        moved = 0
        size = self.integers.shape[1]
        for first in range(0, size, BLOCK):
            block = slice(first, min(size, first + BLOCK))
            changes = self._change(block)
            moved += int(np.count_nonzero(changes))
            self.slope[:] += _times(changes, self.squares[..., block, :])
        return moved

    def _change(self, block: slice) -> Floats:
        """Move the inputs of a block, each knowing of those before it; return by how much."""
        # Inputs come first here: what is done for one input of all outputs lies together.
        slope, integers, low, high = (
            array[:, block].T.copy(order="C") for array in (self.slope, self.integers, *self.limits)
        )
        squares = self.squares[..., block, block]
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
