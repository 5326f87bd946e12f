"""Right and wrong answers of a classifier, from the class of each image and what was answered."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qconvert.measure.judged import NONE, TOP, Judged

Integers = NDArray[np.int32]


@dataclass(frozen=True)
class Scores:
    """In percent; precision, recall and F1 are means over the classes that have labels."""

    top1: float
    top5: float | None
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class Shift:
    """A class whose recall changed: percent of its images that FP32 and the engine got right."""

    label: int
    before: float
    after: float
    images: int


@dataclass(frozen=True)
class Changed:
    """An image with another answer than FP32's, and its class where it is known.

    `lead` is by how many points FP32 took its own answer to be likelier than the new one, and
    `new_lead` by how many the engine takes the new one to be.
    """

    image: str
    label: int | None
    before: int
    after: int
    lead: float
    new_lead: float


@dataclass(frozen=True)
class Change:
    """A change of top-1 in percentage points, and half the width of its 95 % interval."""

    pp: float
    half_width_pp: float


def scores(judged: Judged, *, of_fp32: bool = False) -> Scores | None:
    """Return the scores over images with a label, None where there are none.

    A class that is never answered has precision 0, and F1 0 where precision and recall both are.
    An answer that is not finite is wrong. Top-5 needs more than 5 classes.
    """
    rows = judged.rows[judged.rows["label"] != NONE]
    if not len(rows):
        return None
    said, rank = ("wanted", "wanted_rank") if of_fp32 else ("answer", "rank")
    precision, recall, f1 = _macro(rows["label"], rows[said], judged.classes)
    ranks = rows[rank]
    top5 = _percent((ranks != NONE) & (ranks < TOP)) if judged.classes > TOP else None
    return Scores(_percent(ranks == 0), top5, precision, recall, f1)


def change(judged: Judged) -> Change | None:
    """Return how top-1 changed over the images with a label, None where there are none."""
    rows = judged.rows[judged.rows["label"] != NONE]
    if not len(rows):
        return None
    before, after = rows["wanted_rank"] == 0, rows["rank"] == 0
    return paired(int((before & ~after).sum()), int((after & ~before).sum()), len(rows))


def paired(lost: int, won: int, images: int) -> Change:
    """Return the change when so many images were answered right before only, or after only.

    The interval is the adjusted Wald interval for paired proportions (Bonett and Price 2012): one
    image lost and one won are added to those counted. So it has a width where no answer changed,
    and covers 95 % from some dozens of images on; for many it is the usual one.
    """
    count = images + 2
    losing, winning = (lost + 1) / count, (won + 1) / count
    variance = (losing + winning - (winning - losing) ** 2) / count
    return Change(100 * (won - lost) / images, 196 * math.sqrt(variance))


def shifts(judged: Judged, most: int = 10) -> tuple[Shift, ...]:
    """Return the classes whose recall changed most; of equal changes the larger class first."""
    rows = judged.rows[judged.rows["label"] != NONE]
    if not len(rows):
        return ()
    images = np.bincount(rows["label"], minlength=judged.classes)
    before, after = (
        np.bincount(rows["label"][rows[rank] == 0], minlength=judged.classes)
        for rank in ("wanted_rank", "rank")
    )
    found = [
        Shift(label, 100 * before[label] / images[label], 100 * after[label] / images[label], n)
        for label, n in enumerate(images.tolist())
        if before[label] != after[label]
    ]
    found.sort(key=lambda each: (-abs(each.after - each.before), -each.images, each.label))
    return tuple(
        Shift(each.label, float(each.before), float(each.after), each.images)
        for each in found[:most]
    )


def changed(judged: Judged, names: Sequence[str], most: int = 12) -> tuple[Changed, ...]:
    """Return images that changed their answer, those that FP32 was most sure of first."""
    rows = judged.rows
    there = np.flatnonzero(
        (rows["wanted"] != rows["answer"]) & (rows["wanted"] != NONE) & (rows["answer"] != NONE)
    )
    order = sorted(there.tolist(), key=lambda at: (-float(rows["lead"][at]), at))
    return tuple(
        Changed(
            names[at],
            None if rows["label"][at] == NONE else int(rows["label"][at]),
            int(rows["wanted"][at]),
            int(rows["answer"][at]),
            100 * float(rows["lead"][at]),
            100 * float(rows["new_lead"][at]),
        )
        for at in order[:most]
    )


def _macro(labels: Integers, said: Integers, classes: int) -> tuple[float, float, float]:
    truth = np.bincount(labels, minlength=classes)
    answers = np.bincount(said[said != NONE], minlength=classes)
    right = np.bincount(labels[labels == said], minlength=classes)
    present = truth > 0
    truth, answers, right = truth[present], answers[present], right[present]
    precision = right / np.maximum(answers, 1)
    # 2PR / (P + R) in whole numbers, which no class with an image can make zero.
    f1 = 2 * right / (truth + answers)
    return _percent(precision), _percent(right / truth), _percent(f1)


def _percent(shares: NDArray[np.bool_] | NDArray[np.float64]) -> float:
    return 100 * float(np.mean(shares))
