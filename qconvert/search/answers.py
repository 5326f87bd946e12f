"""What is kept of the answers of a trial, and what they lose against FP32."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qconvert.feeds import Feeds, first
from qconvert.measure.classified import paired
from qconvert.measure.judged import NONE, is_scores, join, judge
from qconvert.measure.mix import By, Loss
from qconvert.measure.nearness import distances, probabilities
from qconvert.search.trials import Record

DIGITS = 5


@dataclass(frozen=True)
class Wanted:
    """The answers of FP32, batch by batch, and the label of each image where it has one."""

    answers: Sequence[Feeds]
    labels: Sequence[int | None]

    @property
    def scores(self) -> str:
        """The output whose best score is the answer, empty where there is none."""
        arrays = self.answers[0].items()
        return next((name for name, array in arrays if is_scores(np.asarray(array))), "")

    @property
    def labelled(self) -> bool:
        """Whether every image has a label."""
        return bool(self.labels) and None not in self.labels


def record(wanted: Wanted, got: Sequence[Feeds]) -> Record:
    """Return what a trial says of each image, as plain values.

    `far` is the distance of its outputs from those of FP32; of changed answers the number of the
    image and the probability that FP32 gives up; `lost` and `won` are the images answered rightly
    before only, or after only.
    """
    judged, start = [], 0
    alike = []
    for before, answers in zip(wanted.answers, got, strict=True):
        count = len(np.asarray(before[wanted.scores]))
        after = first(answers, count, len(np.asarray(answers[wanted.scores])))
        alike.append(after)
        judged.append(judge(before, after, wanted.labels[start : start + count]))
        start += count
    rows = join(judged).rows
    shares = np.concatenate(
        [probabilities(_flat(np.asarray(feeds[wanted.scores]))) for feeds in wanted.answers]
    )
    known = rows["wanted"] != NONE
    changed = np.flatnonzero(known & (rows["wanted"] != rows["answer"]))
    # An answer that is not finite gives up all that FP32 had.
    taken = np.where(rows["answer"] != NONE, shares[np.arange(len(rows)), rows["answer"]], 0.0)
    given_up = shares[changed, rows["wanted"][changed]] - taken[changed]
    right, still = rows["wanted_rank"] == 0, rows["rank"] == 0
    return {
        "images": len(rows),
        "far": [_short(each) for each in distances(wanted.answers, alike)],
        "changed": changed.tolist(),
        "given_up": [_short(each) for each in given_up],
        "lost": np.flatnonzero(right & ~still).tolist(),
        "won": np.flatnonzero(still & ~right).tolist(),
    }


def loss(told: Record, by: By) -> Loss:
    """Return what a trial loses.

    All intervals count one image lost and one won more than there were: so they have a width where
    no answer changed.
    """
    images = int(told["images"])
    changed = len(told["changed"])
    agreement = 100 * (images - changed) / images
    if by == "top-1":
        moved = paired(len(told["lost"]), len(told["won"]), images)
        return Loss(0.0 - moved.pp, moved.half_width_pp, by, images, agreement)
    if by == "agreement":
        moved = paired(changed, 0, images)
        return Loss(0.0 - moved.pp, moved.half_width_pp, by, images, agreement)
    given_up = [float(each) for each in told["given_up"]]
    mean = math.fsum(given_up) / images
    squares = math.fsum(each * each for each in given_up) + 1
    half = 196 * math.sqrt(max(squares / (images + 1) - mean * mean, 0.0) / (images + 1))
    return Loss(100 * mean, half, by, images, agreement)


def judged_by(wanted: Wanted, budget: float) -> By:
    """Return what a budget is counted in: labels where an image weighs no more than the budget."""
    images = len(wanted.labels)
    return "top-1" if wanted.labelled and images * budget >= 100 else "certainty"


def _short(value: float) -> float:
    return float(f"{float(value):.{DIGITS}g}")


def _flat(array: NDArray[Any]) -> NDArray[Any]:
    return array.reshape(array.shape[0], -1)
