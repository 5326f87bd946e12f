"""Trials written down one by one, so that a search that was killed goes on where it was."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qconvert.core.tensors import Tensors, unpad_batch
from qconvert.measure.accuracy import paired_change
from qconvert.measure.mixed_result import LossMeasure, PredictionLoss
from qconvert.measure.output_error import per_image_errors, to_probabilities
from qconvert.measure.per_image_scores import UNKNOWN, is_class_scores, join_scores, score_batch

TrialRecord = dict[str, Any]


@dataclass(frozen=True)
class Trials:
    """The trials of one subject, a line each in a file; the first line says whose they are."""

    path: Path
    records: dict[str, TrialRecord] = field(default_factory=dict)

    def get_or_run(self, key: str, make: Callable[[], TrialRecord]) -> TrialRecord:
        """Return a trial, from the file if it was made before."""
        if key not in self.records:
            self.put(key, make())
        return self.records[key]

    def put(self, key: str, made: TrialRecord) -> None:
        """Write a trial down, which is a line at once."""
        # What is read again later is what is used now, to the last digit.
        self.records[key] = json.loads(json.dumps(made))
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"trial": key, **made}) + "\n")


def open_trials(path: Path, subject: str) -> Trials:
    """Return the trials that a file holds of a subject; those of another one are dropped.

    A line that was not finished, as by a kill or a full disk, ends what is taken.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = _read_lines(path)
    if not lines or lines[0].get("subject") != subject:
        lines = [{"subject": subject}]
    draft = path.with_name(f".{path.name}.new")
    draft.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    draft.replace(path)
    known = {str(line.pop("trial")): line for line in lines[1:]}
    return Trials(path, known)


def _read_lines(path: Path) -> list[TrialRecord]:
    found: list[TrialRecord] = []
    if not path.is_file():
        return found
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            told = json.loads(line)
        except ValueError:
            break
        if not isinstance(told, dict) or ("trial" in told) == (not found):
            break
        found.append(told)
    return found


DIGITS = 5


@dataclass(frozen=True)
class ReferenceOutputs:
    """The answers of FP32, batch by batch, and the label of each image where it has one."""

    outputs: Sequence[Tensors]
    labels: Sequence[int | None]

    @property
    def score_output(self) -> str:
        """The output whose best score is the answer, empty where there is none."""
        arrays = self.outputs[0].items()
        return next((name for name, array in arrays if is_class_scores(np.asarray(array))), "")

    @property
    def is_labelled(self) -> bool:
        """Whether every image has a label."""
        return bool(self.labels) and None not in self.labels


def record_trial(wanted: ReferenceOutputs, got: Sequence[Tensors]) -> TrialRecord:
    """Return what a trial says of each image, as plain values.

    `far` is the distance of its outputs from those of FP32; of changed answers the number of the
    image and the probability that FP32 gives up; `lost` and `won` are the images answered rightly
    before only, or after only.
    """
    judged, start = [], 0
    alike = []
    for before, answers in zip(wanted.outputs, got, strict=True):
        count = len(np.asarray(before[wanted.score_output]))
        after = unpad_batch(answers, count, len(np.asarray(answers[wanted.score_output])))
        alike.append(after)
        judged.append(score_batch(before, after, wanted.labels[start : start + count]))
        start += count
    rows = join_scores(judged).rows
    shares = np.concatenate(
        [
            to_probabilities(_flat(np.asarray(feeds[wanted.score_output])))
            for feeds in wanted.outputs
        ]
    )
    known = rows["fp32_class"] != UNKNOWN
    changed = np.flatnonzero(known & (rows["fp32_class"] != rows["engine_class"]))
    # An answer that is not finite gives up all that FP32 had.
    taken = np.where(
        rows["engine_class"] != UNKNOWN, shares[np.arange(len(rows)), rows["engine_class"]], 0.0
    )
    given_up = shares[changed, rows["fp32_class"][changed]] - taken[changed]
    right, still = rows["fp32_rank"] == 0, rows["engine_rank"] == 0
    return {
        "images": len(rows),
        "far": [_shorten(each) for each in per_image_errors(wanted.outputs, alike)],
        "changed": changed.tolist(),
        "given_up": [_shorten(each) for each in given_up],
        "lost": np.flatnonzero(right & ~still).tolist(),
        "won": np.flatnonzero(still & ~right).tolist(),
    }


def measure_loss(told: TrialRecord, by: LossMeasure) -> PredictionLoss:
    """Return what a trial loses.

    All intervals count one image lost and one won more than there were: so they have a width where
    no answer changed.
    """
    images = int(told["images"])
    changed = len(told["changed"])
    agreement = 100 * (images - changed) / images
    if by == "top-1":
        moved = paired_change(len(told["lost"]), len(told["won"]), images)
        return PredictionLoss(0.0 - moved.pp, moved.half_width_pp, by, images, agreement)
    if by == "agreement":
        moved = paired_change(changed, 0, images)
        return PredictionLoss(0.0 - moved.pp, moved.half_width_pp, by, images, agreement)
    given_up = [float(each) for each in told["given_up"]]
    mean = math.fsum(given_up) / images
    squares = math.fsum(each * each for each in given_up) + 1
    half = 196 * math.sqrt(max(squares / (images + 1) - mean * mean, 0.0) / (images + 1))
    return PredictionLoss(100 * mean, half, by, images, agreement)


def choose_metric(wanted: ReferenceOutputs, budget: float) -> LossMeasure:
    """Return what a budget is counted in: labels where an image weighs no more than the budget."""
    images = len(wanted.labels)
    return "top-1" if wanted.is_labelled and images * budget >= 100 else "certainty"


def _shorten(value: float) -> float:
    return float(f"{float(value):.{DIGITS}g}")


def _flat(array: NDArray[Any]) -> NDArray[Any]:
    return array.reshape(array.shape[0], -1)
