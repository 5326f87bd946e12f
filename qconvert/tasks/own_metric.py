"""A metric of the user's own: a function of predictions and truths that returns named numbers."""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from qconvert.core import user_code
from qconvert.core.errors import UsageError
from qconvert.images.truth import TrueBoxes, TrueMask
from qconvert.tasks.bootstrap import half_width, resample_counts
from qconvert.tasks.task import Task, TaskScores

PURPOSE = (
    "function(predictions, truths) returns a dict of numbers from 0 to 1, more is better, the most "
    "important first"
)
RESAMPLES, MIN_RESAMPLES, MAX_SECONDS = 100, 20, 20.0

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
        return _require_numbers(
            source, user_code.call_function(source, function, predictions, truths)
        )

    def compare(reference: Any, prediction: Any, truth: Any) -> OwnRow:
        row = task.compare(reference, prediction, None) if task is not None else None
        return OwnRow(reference, prediction, truth, row)

    name = task.name if task is not None else "any"
    return Task(
        name,
        "",
        {},
        compare,
        partial(summarize, compute, task),
        text=f"scored by {source}",
        truth=task.truth if task is not None else (TrueBoxes, TrueMask, int),
    )


def _require_numbers(source: str, values: object) -> dict[str, float]:
    if not isinstance(values, Mapping) or not values:
        kind = "an empty dict" if isinstance(values, Mapping) else type(values).__name__
        raise UsageError(f"`{source}` returned {kind}, not a dict of numbers", hint=PURPOSE)
    numbers = {}
    for name, value in values.items():
        is_number = isinstance(value, int | float | np.number | np.bool_)
        if not is_number or not math.isfinite(value):
            shown = value if is_number else type(value).__name__
            raise UsageError(
                f"`{source}` returned {shown} as `{name}`, not a finite number", hint=PURPOSE
            )
        numbers[str(name)] = float(value)
    return numbers


def summarize(compute: Metric, task: Task | None, rows: Sequence[OwnRow]) -> TaskScores:
    """Return the numbers of the function, and the change of its first one with its interval.

    The interval is that of a bootstrap over images, as for mAP.
    """
    scores = TaskScores(0, {}, None)
    if task is not None:
        scores = task.summarize([row.row for row in rows])
    old, new = _both(compute, rows)
    primary = next(iter(old))
    if primary not in new:
        raise UsageError(
            f"the metric returned `{primary}` for FP32 and {_quoted(new)} for an engine",
            hint=PURPOSE,
        )
    beyond = [name for name, value in new.items() if not 0 <= value <= 1]
    notes = [f"{_quoted(beyond)} is not from 0 to 1, as tables of percents expect"] * bool(beyond)
    changes, started = [], time.perf_counter()
    for weights in resample_counts(len(rows), RESAMPLES, seed=0):
        drawn = [rows[index] for index in np.repeat(np.arange(len(rows)), weights).tolist()]
        before, after = _both(compute, drawn)
        # On a draw that does not show what the metric is of, there may be none.
        if primary in before and primary in after:
            changes.append(after[primary] - before[primary])
        # A metric may take seconds, and is called twice for each of them.
        if time.perf_counter() - started > MAX_SECONDS and len(changes) >= MIN_RESAMPLES:
            notes.append(f"the interval is from {len(changes)} resamples, as the metric is slow")
            break
    return replace(
        scores,
        labelled=sum(row.truth is not None for row in rows),
        metrics={primary: new[primary], **new},
        change=new[primary] - old[primary],
        half_width=half_width(changes, len(rows)),
        notes=(*scores.notes, *notes),
    )


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _both(
    compute: Metric, rows: Sequence[OwnRow]
) -> tuple[Mapping[str, float], Mapping[str, float]]:
    truths = [row.truth for row in rows]
    before = compute([row.before for row in rows], truths)
    if all(row.after is row.before for row in rows):
        return before, before
    return before, compute([row.after for row in rows], truths)
