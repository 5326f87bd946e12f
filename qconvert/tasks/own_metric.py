"""A metric of the user's own: a function of predictions and truths that returns named numbers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from qconvert.core import user_code
from qconvert.core.errors import UsageError
from qconvert.tasks.bootstrap import half_width, resample_counts
from qconvert.tasks.task import Task, TaskScores

PURPOSE = "function(predictions, truths) returns a dict of numbers, the most important first"
RESAMPLES = 100

Metric = Callable[[Sequence[Any], Sequence[Any]], Mapping[str, float]]


@dataclass(frozen=True, eq=False)
class OwnRow:
    """One image: both predictions, its truth, and what the task itself compares of them."""

    before: Any
    after: Any
    truth: Any
    row: Any


def own_task(source: str, task: Task | None) -> Task:
    """Return a task that is scored by `package.module:function`, besides its own agreement."""
    function = user_code.import_function(source, PURPOSE)

    def compute(predictions: Sequence[Any], truths: Sequence[Any]) -> dict[str, float]:
        values = user_code.call_function(source, function, predictions, truths)
        if not isinstance(values, Mapping) or not values:
            raise UsageError(
                f"`{source}` returned {type(values).__name__}, not a dict of numbers", hint=PURPOSE
            )
        try:
            return {str(name): float(value) for name, value in values.items()}
        except (TypeError, ValueError):
            raise UsageError(
                f"`{source}` returned values that are no numbers", hint=PURPOSE
            ) from None

    def compare(reference: Any, prediction: Any, truth: Any) -> OwnRow:
        row = task.compare(reference, prediction, None) if task is not None else None
        return OwnRow(reference, prediction, truth, row)

    name = task.name if task is not None else "any"
    return Task(
        name, "", {}, compare, partial(summarize, compute, task), text=f"scored by {source}"
    )


def summarize(compute: Metric, task: Task | None, rows: Sequence[OwnRow]) -> TaskScores:
    """Return the numbers of the function, and the change of its first one with its interval.

    The interval is that of a bootstrap over images, as for mAP.
    """
    scores = TaskScores(0, {}, None)
    if task is not None:
        scores = task.summarize([row.row for row in rows])
    old, new = _both(compute, rows)
    primary = next(iter(new))
    changes = []
    for weights in resample_counts(len(rows), RESAMPLES, seed=0):
        drawn = [rows[index] for index in np.repeat(np.arange(len(rows)), weights).tolist()]
        before, after = _both(compute, drawn)
        changes.append(after[primary] - before[primary])
    return replace(
        scores,
        labelled=sum(row.truth is not None for row in rows),
        metrics=new,
        change=new[primary] - old[primary],
        half_width=half_width(changes, len(rows)),
    )


def _both(
    compute: Metric, rows: Sequence[OwnRow]
) -> tuple[Mapping[str, float], Mapping[str, float]]:
    truths = [row.truth for row in rows]
    before = compute([row.before for row in rows], truths)
    if all(row.after is row.before for row in rows):
        return before, before
    return before, compute([row.after for row in rows], truths)
