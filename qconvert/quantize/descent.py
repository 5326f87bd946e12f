"""Integers of a layer chosen by what comes out: each weight rounded down or up, one after another.

The squared error of an output over the rows is a quadratic form of its weights, so that all the
search needs are sums of products. Where a Relu or Clip follows, rows on which neither the wanted
nor the actual answer lies between its limits do not count, since rounding changes nothing there:
then each output has sums of its own.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from qconvert.scales import Floats

# How strongly weights are drawn to where they were, relative to what the rows say of them.
HOLD = 0.003
LEAST_HOLD = 1e-12
# How much of the errors that reach a layer its weights make up for: all of it fits the images that
# are learned from and no others.
MAKE_UP = 0.25
SWEEPS = 4
# Fewer rows say too little about an output.
FEWEST_ROWS = 32
# As many inputs change before all others hear of it.
BLOCK = 64
# Numbers in the sums that are held at a time.
MOST_SUMS = 30_000_000


@dataclass(frozen=True, eq=False)
class Task:
    """A layer as a product: arrays of [group, row, input], [group, output, input] and so on.

    `wanted` is what should come out before the activation, which keeps what is between `low` and
    `high`. Without `biases` nothing can be added to what comes out.
    """

    rows: Floats
    wanted: Floats
    weights: Floats
    steps: Floats
    biases: Floats | None
    low: float
    high: float
    largest: int

    @property
    def nearest(self) -> Floats:
        """The nearest integers, as floats."""
        near: Floats = np.rint(self.weights / self.steps[..., np.newaxis])
        return np.clip(near, -self.largest, self.largest)

    @property
    def is_cut(self) -> bool:
        """Whether what comes out is limited on any side."""
        return bool(np.isfinite(self.low) or np.isfinite(self.high))

    def error(self, integers: Floats, biases: Floats | None) -> float:
        """Return the squared error of what comes out after the activation, as a share of that."""
        error = power = 0.0
        for group, rows in enumerate(self.rows):
            found = (integers[group] * self.steps[group][:, np.newaxis]) @ rows.T
            found += 0.0 if biases is None else biases[group][:, np.newaxis]
            wanted = np.clip(self.wanted[group], self.low, self.high)
            off = np.clip(found, self.low, self.high) - wanted
            error += float(np.square(off).sum(dtype=np.float64))
            power += float(np.square(wanted).sum(dtype=np.float64))
        return error / (power or 1.0)


@dataclass(frozen=True, eq=False)
class Answer:
    """Integers, as floats, and the biases that go with them."""

    integers: Floats
    biases: Floats | None


def descend(task: Task) -> tuple[Answer, Answer]:
    """Return the nearest integers with better biases, and integers with a smaller error yet."""
    near, best = (Answer(task.nearest, _copy(task.biases)) for _ in range(2))

    def settle(which: Which) -> None:
        found = _sums_of(task, which)
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
        list(pool.map(settle, _pieces(task, threads)))
    return near, best


# The groups and the outputs of them, one by one.
Which = tuple[NDArray[np.intp], NDArray[np.intp]]


def _copy(array: Floats | None) -> Floats | None:
    return None if array is None else array.copy()


@dataclass(frozen=True, eq=False)
class _Sums:
    """Sums over rows x and answers y: x x' and y x' around their means, and the means.

    `squares` is one matrix that all outputs share, or there is one for each of them.
    """

    squares: Floats
    products: Floats
    mean_rows: Floats
    mean_answers: Floats

    def bias(self, weights: Floats) -> Floats:
        """Return what must be added, so that the mean answer is the one that is wanted."""
        added: Floats = self.mean_answers - (weights * self.mean_rows).sum(axis=1)
        return added


def _shares(task: Task) -> bool:
    """Whether all outputs of a group have the same sums of rows."""
    return not task.is_cut and task.weights.shape[1] > 1


def _pieces(task: Task, threads: int) -> Iterator[Which]:
    """Yield outputs whose integers are found together."""
    groups, outputs, size = task.weights.shape
    if _shares(task):
        yield from ((np.full(outputs, group), np.arange(outputs)) for group in range(groups))
        return
    every = np.indices((groups, outputs)).reshape(2, -1)
    fitting = max(1, MOST_SUMS // (threads * size**2))
    at_once = min(fitting, -(-every.shape[1] // threads))
    for first in range(0, every.shape[1], at_once):
        some = every[:, first : first + at_once]
        yield some[0], some[1]


def _sums_of(task: Task, which: Which) -> tuple[Which, _Sums] | None:
    """Return outputs and their sums, those without enough rows left out."""
    if _shares(task):
        group = which[0][0]
        return which, _sum(task, task.rows[group], task.wanted[group])
    each = [_sum_apart(task, group, output) for group, output in zip(*which, strict=True)]
    found = [sums for sums in each if sums is not None]
    if not found:
        return None
    there = np.array([sums is not None for sums in each])
    return (which[0][there], which[1][there]), _stacked(found)


def _sum_apart(task: Task, group: int, output: int) -> _Sums | None:
    """Return the sums of one output over the rows that count for it, if there are enough."""
    rows, wanted = task.rows[group], task.wanted[group, output]
    if task.is_cut:
        counts = _between(wanted, task)
        actual = rows @ task.weights[group, output]
        actual += 0.0 if task.biases is None else task.biases[group, output]
        counts |= _between(actual, task)
        rows, wanted = rows[counts], np.clip(wanted[counts], task.low, task.high)
    return _sum(task, rows, wanted[np.newaxis]) if len(rows) >= FEWEST_ROWS else None


def _between(answers: Floats, task: Task) -> NDArray[np.bool_]:
    inside: NDArray[np.bool_] = (answers > task.low) & (answers < task.high)
    return inside


def _sum(task: Task, rows: Floats, answers: Floats) -> _Sums:
    mean_rows, mean_answers = rows.mean(axis=0), answers.mean(axis=1)
    if task.biases is not None:
        rows, answers = rows - mean_rows, answers - mean_answers[:, np.newaxis]
    return _Sums(rows.T @ rows, answers @ rows, mean_rows, mean_answers)


def _stacked(each: Sequence[_Sums]) -> _Sums:
    return _Sums(
        np.stack([sums.squares for sums in each]),
        np.concatenate([sums.products for sums in each]),
        np.stack([sums.mean_rows for sums in each]),
        np.concatenate([sums.mean_answers for sums in each]),
    )


def _rounded(sums: _Sums, weights: Floats, steps: Floats, largest: int) -> Floats:
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
