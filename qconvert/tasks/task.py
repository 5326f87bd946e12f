"""What a network is for, as data: how its predictions compare with those of FP32 and with the truth."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qconvert.core.config import Task as TaskName
from qconvert.core.tensors import Tensors


@dataclass(frozen=True)
class ClassShift:
    """A class whose score changed: recall, AP or IoU in percent, of FP32 and of the engine.

    `images` counts the images that show the class.
    """

    label: int
    before: float
    after: float
    images: int


@dataclass(frozen=True)
class TaskScores:
    """What the comparisons of all images come to.

    `metrics` are from 0 to 1, those that are defined, `change` is that of the first metric of the
    task, or of `primary` where that is named, against FP32 over the same images, with `half_width`
    of its 95 % interval, both from 0 to 1 and None without truth. `agreement` is the share of
    predictions that are FP32's, `by_image` that of each image, None where an image has none.
    `curve` is the precision at 101 recalls.
    """

    labelled: int
    metrics: Mapping[str, float]
    agreement: float | None
    change: float | None = None
    half_width: float | None = None
    by_image: tuple[float | None, ...] = ()
    shifts: tuple[ClassShift, ...] = ()
    curve: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()
    primary: str = ""


@dataclass(frozen=True)
class Task:
    """One kind of network.

    `metrics` has the title of each metric, in the order of the tables; gates and searches judge by
    `primary`. `compare` takes the predictions of FP32 and of an engine for one image, and its truth
    or None; `summarize` takes what it returned for all images. `truth` are the types of truth that
    count, int for the label of an image. `read` returns the predictions for so many images; without
    it a decoder does.
    """

    name: TaskName
    primary: str
    metrics: Mapping[str, str]
    compare: Callable[[Any, Any, Any], Any]
    summarize: Callable[[Sequence[Any]], TaskScores]
    text: str = field(default="", kw_only=True)
    truth: tuple[type, ...] = field(default=(int,), kw_only=True)
    read: Callable[[Tensors, int], list[Any]] | None = field(default=None, kw_only=True)


def defined(metrics: Mapping[str, float | None]) -> dict[str, float]:
    """Return the metrics that are not None."""
    return {name: value for name, value in metrics.items() if value is not None}


def class_shifts(
    before: Sequence[float | None], after: Sequence[float | None], images: Sequence[int]
) -> tuple[ClassShift, ...]:
    """Return the classes whose scores (0 to 1) differ, the largest change first, at most 10."""
    pairs = enumerate(zip(before, after, images, strict=False))
    shifts = [
        ClassShift(label, 100 * old, 100 * new, count)
        for label, (old, new, count) in pairs
        if old is not None and new is not None and old != new
    ]
    shifts.sort(key=lambda shift: (-abs(shift.after - shift.before), -shift.images, shift.label))
    return tuple(shifts[:10])
