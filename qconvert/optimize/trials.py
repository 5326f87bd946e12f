"""Trials of a mixed-precision search: what each loses, and a file from which a search resumes."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from qconvert.core.atomic import write_text
from qconvert.core.tensors import Tensors, unpad_batch
from qconvert.measure.accuracy import (
    UNKNOWN,
    is_class_scores,
    join_scores,
    paired_change,
    score_batch,
)
from qconvert.measure.mixed_result import LossMeasure, PredictionLoss
from qconvert.measure.output_error import per_image_errors, to_probabilities

TrialRecord = dict[str, Any]
DIGITS = 5


@dataclass(frozen=True)
class Trials:
    """The trials of one model, a line each in a file whose first line identifies the model."""

    path: Path
    records: dict[str, TrialRecord] = field(default_factory=dict)

    def get_or_run(self, key: str, run: Callable[[], TrialRecord]) -> TrialRecord:
        """Return a trial, from the file if an earlier search ran it."""
        if key not in self.records:
            self.put(key, run())
        return self.records[key]

    def put(self, key: str, record: TrialRecord) -> None:
        """Append a trial to the file at once."""
        # A resumed search must see the same numbers, to the last digit.
        self.records[key] = json.loads(json.dumps(record))
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"trial": key, **record}) + "\n")


def open_trials(path: Path, subject: str) -> Trials:
    """Return the trials of a subject that a file has; those of another subject are dropped.

    A line cut short by a kill or a full disk, and what follows it, is dropped too.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = _read_lines(path)
    if not lines or lines[0].get("subject") != subject:
        lines = [{"subject": subject}]
    write_text(path, "".join(json.dumps(line) + "\n" for line in lines))
    return Trials(path, {str(line.pop("trial")): line for line in lines[1:]})


def _read_lines(path: Path) -> list[TrialRecord]:
    lines: list[TrialRecord] = []
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    for text_line in text.splitlines():
        try:
            line = json.loads(text_line)
        except ValueError:
            break
        if not isinstance(line, dict) or ("trial" in line) == (not lines):
            break
        lines.append(line)
    return lines


@dataclass(frozen=True)
class ReferenceOutputs:
    """The FP32 outputs, batch by batch, and the label of each image that has one."""

    outputs: Sequence[Tensors]
    labels: Sequence[int | None]

    @property
    def score_output(self) -> str:
        """The name of the first output that has class scores, empty if none has."""
        arrays = self.outputs[0].items()
        return next((name for name, array in arrays if is_class_scores(np.asarray(array))), "")

    @property
    def is_labelled(self) -> bool:
        """Whether every image has a label."""
        return bool(self.labels) and None not in self.labels


def record_trial(reference: ReferenceOutputs, outputs: Sequence[Tensors]) -> TrialRecord:
    """Return what a trial gives for each image, as plain values.

    `far` has the output errors; `changed` the numbers of the images whose prediction changed, and
    `given_up` the probability that FP32 had given to each of these predictions, less that of the
    new one; `lost` and `won` the images that only FP32, or only the trial, predicts right.
    """
    scores, probabilities, unpadded = [], [], []
    start, name = 0, reference.score_output
    for before, batch in zip(reference.outputs, outputs, strict=True):
        count = len(np.asarray(before[name]))
        after = unpad_batch(batch, count, len(np.asarray(batch[name])))
        unpadded.append(after)
        scores.append(score_batch(before, after, reference.labels[start : start + count]))
        probabilities.append(to_probabilities(np.asarray(before[name]).reshape(count, -1)))
        start += count
    rows, shares = join_scores(scores).rows, np.concatenate(probabilities)
    expected, predicted = rows["fp32_class"], rows["engine_class"]
    changed = np.flatnonzero((expected != UNKNOWN) & (expected != predicted))
    # Scores that are not finite predict nothing, and give up all that FP32 had.
    left = np.where(predicted != UNKNOWN, shares[np.arange(len(rows)), predicted], 0.0)
    given_up = shares[changed, expected[changed]] - left[changed]
    right, still_right = rows["fp32_rank"] == 0, rows["engine_rank"] == 0
    return {
        "images": len(rows),
        "far": [_shorten(error) for error in per_image_errors(reference.outputs, unpadded)],
        "changed": changed.tolist(),
        "given_up": [_shorten(probability) for probability in given_up],
        "lost": np.flatnonzero(right & ~still_right).tolist(),
        "won": np.flatnonzero(still_right & ~right).tolist(),
    }


def measure_loss(record: TrialRecord, by: LossMeasure) -> PredictionLoss:
    """Return what a trial loses, with a 95 % interval.

    Every interval counts one image more than was lost and won, so that it has a width even if no
    prediction changed.
    """
    images, changed = int(record["images"]), len(record["changed"])
    agreement = 100 * (images - changed) / images
    if by in ("top-1", "agreement"):
        lost, won = (len(record["lost"]), len(record["won"])) if by == "top-1" else (changed, 0)
        change = paired_change(lost, won, images)
        return PredictionLoss(0.0 - change.pp, change.half_width_pp, by, images, agreement)
    given_up = [float(probability) for probability in record["given_up"]]
    mean = math.fsum(given_up) / images
    squares = math.fsum(probability * probability for probability in given_up) + 1
    half_width = 196 * math.sqrt(max(squares / (images + 1) - mean * mean, 0.0) / (images + 1))
    return PredictionLoss(100 * mean, half_width, by, images, agreement)


def choose_metric(reference: ReferenceOutputs, budget: float) -> LossMeasure:
    """Return how to count a budget: by labels only if one image weighs no more than the budget."""
    fine_enough = len(reference.labels) * budget >= 100
    return "top-1" if reference.is_labelled and fine_enough else "certainty"


def _shorten(value: float) -> float:
    return float(f"{float(value):.{DIGITS}g}")
