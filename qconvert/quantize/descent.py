"""Integers of a layer chosen by what comes out: each weight rounded down or up, one after another.

The squared error of an output over the rows is a quadratic form of its weights, so that all the
search needs are sums of products. Where a Relu or Clip follows, rows on which neither the wanted
nor the actual answer lies between its limits do not count, since rounding changes nothing there:
then each output has sums of its own.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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
    for group in range(len(task.rows)):
        for outputs, sums in _all_sums(task, group):
            steps = task.steps[group, outputs]
            found = _rounded(sums, task.weights[group, outputs], steps, task.largest)
            best.integers[group, outputs] = found
            for answer in (near, best):
                if answer.biases is not None:
                    held = answer.integers[group, outputs] * steps[:, np.newaxis]
                    answer.biases[group, outputs] = sums.bias(held)
    return near, best


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


def _all_sums(task: Task, group: int) -> Iterator[tuple[NDArray[np.intp], _Sums]]:
    """Yield outputs and their sums, those without enough rows left out."""
    outputs = np.arange(task.weights.shape[1])
    rows, centred = task.rows[group], task.biases is not None
    if not task.is_cut:
        yield outputs, _sum(rows, task.wanted[group], centred=centred)
        return
    at_once = max(1, MOST_SUMS // task.weights.shape[2] ** 2)
    for first in range(0, len(outputs), at_once):
        counting = [
            (output, np.flatnonzero(_counts(task, group, output)))
            for output in outputs[first : first + at_once]
        ]
        found = [(output, where) for output, where in counting if len(where) >= FEWEST_ROWS]
        if found:
            each = [_sum_cut(task, group, output, where) for output, where in found]
            yield np.array([output for output, _ in found]), _stacked(each)


def _counts(task: Task, group: int, output: int) -> NDArray[np.bool_]:
    """Return the rows on which the wanted or the actual answer is between the limits."""
    wanted = task.wanted[group, output]
    actual = task.rows[group] @ task.weights[group, output]
    actual += 0.0 if task.biases is None else task.biases[group, output]
    inside: NDArray[np.bool_] = (wanted > task.low) & (wanted < task.high)
    inside |= (actual > task.low) & (actual < task.high)
    return inside


def _sum_cut(task: Task, group: int, output: int, where: NDArray[np.intp]) -> _Sums:
    kept = np.clip(task.wanted[group, output][where], task.low, task.high)
    return _sum(task.rows[group][where], kept[np.newaxis], centred=task.biases is not None)


def _sum(rows: Floats, answers: Floats, *, centred: bool) -> _Sums:
    mean_rows, mean_answers = rows.mean(axis=0), answers.mean(axis=1)
    if centred:
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
        slope = self.slope[:, block].copy()
        changes = np.zeros_like(slope)
        shared = self.squares.ndim == 2
        low, high = (limit[:, block] for limit in self.limits)
        integers, squares = self.integers[:, block], self.squares[..., block, block]
        for place in range(slope.shape[1]):
            line = squares[place] if shared else squares[:, place]
            best = integers[:, place] - slope[:, place] / (line[..., place] * self.steps)
            best = np.clip(np.rint(best), low[:, place], high[:, place])
            change = (best - integers[:, place]) * self.steps
            integers[:, place] = best
            changes[:, place] = change
            slope += change[:, np.newaxis] * line
        return changes
