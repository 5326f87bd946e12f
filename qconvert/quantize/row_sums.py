"""Sums of products over the rows of a layer: all that is needed of them to choose its integers.

Behind a Relu or Clip rows on which neither the wanted nor the actual answer lies between its limits
do not count, since rounding changes nothing there. Then each output has sums of its own, unless
these are too much work.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qconvert.quantize.task import Task
from qconvert.scales import Floats

# Fewer rows say too little about an output.
FEWEST_ROWS = 32
# Numbers in the sums that are held at a time.
MOST_SUMS = 30_000_000
# Multiplications for the sums of one layer, above which its outputs have them in common.
MOST_WORK = 1_200_000_000_000

# The groups and the outputs of them, one by one.
Which = tuple[NDArray[np.intp], NDArray[np.intp]]


@dataclass(frozen=True, eq=False)
class Sums:
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


def pieces(task: Task, threads: int) -> Iterator[Which]:
    """Yield outputs whose integers are found together."""
    groups, outputs, size = task.weights.shape
    if shares(task):
        yield from ((np.full(outputs, group), np.arange(outputs)) for group in range(groups))
        return
    every = np.indices((groups, outputs)).reshape(2, -1)
    fitting = max(1, MOST_SUMS // (threads * size**2))
    at_once = min(fitting, -(-every.shape[1] // threads))
    for first in range(0, every.shape[1], at_once):
        some = every[:, first : first + at_once]
        yield some[0], some[1]


def shares(task: Task) -> bool:
    """Whether all outputs of a group have the same sums of rows."""
    groups, outputs, size = task.weights.shape
    if outputs == 1:
        return False
    work = groups * outputs * size**2 * task.rows.shape[1]
    return not task.activation.cuts or work > MOST_WORK


def sums_of(task: Task, which: Which) -> tuple[Which, Sums] | None:
    """Return outputs and their sums, those without enough rows left out."""
    if shares(task):
        group = which[0][0]
        return which, _sum(task, task.rows[group], task.wanted[group])
    each = [_sum_apart(task, group, output) for group, output in zip(*which, strict=True)]
    found = [sums for sums in each if sums is not None]
    if not found:
        return None
    there = np.array([sums is not None for sums in each])
    return (which[0][there], which[1][there]), _stacked(found)


def _sum_apart(task: Task, group: int, output: int) -> Sums | None:
    """Return the sums of one output over the rows that count for it, if there are enough."""
    rows, wanted, activation = task.rows[group], task.wanted[group, output], task.activation
    if activation.cuts:
        counts = activation.keeps(wanted)
        actual = rows @ task.weights[group, output]
        actual += 0.0 if task.biases is None else task.biases[group, output]
        counts |= activation.keeps(actual)
        rows, wanted = rows[counts], activation.answers(wanted[counts])
    return _sum(task, rows, wanted[np.newaxis]) if len(rows) >= FEWEST_ROWS else None


def _sum(task: Task, rows: Floats, answers: Floats) -> Sums:
    mean_rows, mean_answers = rows.mean(axis=0), answers.mean(axis=1)
    if task.biases is not None:
        rows, answers = rows - mean_rows, answers - mean_answers[:, np.newaxis]
    return Sums(rows.T @ rows, answers @ rows, mean_rows, mean_answers)


def _stacked(each: Sequence[Sums]) -> Sums:
    return Sums(
        np.stack([sums.squares for sums in each]),
        np.concatenate([sums.products for sums in each]),
        np.stack([sums.mean_rows for sums in each]),
        np.concatenate([sums.mean_answers for sums in each]),
    )
