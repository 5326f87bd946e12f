"""What a trial of a search gives: errors, changed predictions, and what the budget counts as lost."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np

from qconvert.core.errors import UsageError
from qconvert.core.tensors import Tensors, rows_of_images
from qconvert.images.frames import Frame
from qconvert.images.listing import ImageEntry
from qconvert.measure import accuracy
from qconvert.measure.mixed_result import LossMeasure, PredictionLoss
from qconvert.measure.output_error import per_image_errors, to_probabilities
from qconvert.tasks.bootstrap import paired_change
from qconvert.tasks.reading import Reading

TrialRecord = dict[str, Any]


@dataclass(frozen=True, eq=False)
class SearchImages:
    """Named batches, their FP32 outputs, and the image of each row.

    `frames` say where the pictures lie in the inputs. `reading` is None for a classifier, whose
    predictions are class numbers. `counts` are the images of each batch, by default the rows of its
    first output; where the model fixes a batch of `fixed`, the others are repeated ones.
    """

    name: str
    batches: Iterable[Tensors]
    outputs: Sequence[Tensors]
    items: Sequence[ImageEntry]
    frames: Sequence[Frame] = ()
    reading: Reading | None = None
    counts: Sequence[int] = ()
    fixed: int | None = None

    @property
    def score_output(self) -> str:
        """The name of the first output that has class scores, empty if none has."""
        arrays = (self.rows if self.counts else self.outputs)[0].items()
        return next(
            (name for name, array in arrays if accuracy.is_class_scores(np.asarray(array))), ""
        )

    @property
    def unlabelled_measure(self) -> LossMeasure:
        """How a loss is counted without truth."""
        if self.reading is None:
            return "certainty"
        return "agreement" if self.reading.task.primary else "metric"

    @cached_property
    def sizes(self) -> list[int]:
        """How many images each batch has, without padding."""
        if self.counts:
            return list(self.counts)
        first = next(iter(self.outputs[0]))
        return [len(np.asarray(batch[self.score_output or first])) for batch in self.outputs]

    @cached_property
    def rows(self) -> list[Tensors]:
        """The FP32 outputs of the images, without those of padding."""
        return self.unpad(self.outputs)

    def unpad(self, outputs: Sequence[Tensors]) -> list[Tensors]:
        """Return outputs without those of padding."""
        pairs = zip(outputs, self.sizes, strict=True)
        return [rows_of_images(batch, count, self.fixed) for batch, count in pairs]

    @cached_property
    def predictions(self) -> list[Any]:
        """What FP32 predicts for each image."""
        return self.read(self.outputs)

    def read(self, outputs: Sequence[Tensors]) -> list[Any]:
        """Return the prediction for each image."""
        assert self.reading is not None
        frames, predictions = iter(self.frames), list[Any]()
        for batch, count in zip(outputs, self.sizes, strict=True):
            places = list(islice(frames, count))
            predictions += self.reading.read(batch, places, count, self.fixed)
        return predictions


def record_trial(images: SearchImages, outputs: Sequence[Tensors]) -> TrialRecord:
    """Return what a trial gives for all images, as plain values of five digits.

    `far` has the output errors. Of a classifier, `changed` are the images whose prediction changed,
    `given_up` by how much likelier FP32 took its prediction to be than the new one, `lost` and
    `won` the images that only FP32, or only the trial, predicts right. Of another task, `agreement`
    is that with FP32 and `change` that of its metric, both with half their 95 % interval.
    """
    unpadded = images.unpad(outputs)
    errors = per_image_errors(images.rows, unpadded, images.sizes)
    record = {"images": len(images.items), "far": [float(f"{error:.5g}") for error in errors]}
    if images.reading is not None:
        return record | _task_record(images, images.reading, outputs)
    return record | _class_record(images, unpadded)


def _task_record(images: SearchImages, reading: Reading, outputs: Sequence[Tensors]) -> TrialRecord:
    triples = zip(images.predictions, images.read(outputs), images.items, strict=True)
    scores = reading.task.summarize(
        [
            reading.task.compare(before, after, reading.truth_of(item))
            for before, after, item in triples
        ]
    )
    agreement = 1.0 if scores.agreement is None else scores.agreement
    shares = [share for share in scores.by_image if share is not None]
    # One image more that agrees on nothing gives a width where all agree.
    deviation = float(np.std([*shares, 0.0])) if shares else 1.0
    return {
        "agreement": [agreement, 1.96 * deviation / math.sqrt(len(shares) + 1)],
        "change": None if scores.change is None else [scores.change, scores.half_width],
    }


def _class_record(images: SearchImages, outputs: Sequence[Tensors]) -> TrialRecord:
    name, labels = images.score_output, (item.label for item in images.items)
    scores = [
        accuracy.score_batch(before, batch, list(islice(labels, count)))
        for before, batch, count in zip(images.rows, outputs, images.sizes, strict=True)
    ]
    rows = accuracy.join_scores(scores).rows
    expected, predicted = rows["fp32_class"], rows["engine_class"]
    changed = np.flatnonzero((expected != accuracy.UNKNOWN) & (expected != predicted))
    reference = np.concatenate([np.asarray(before[name]) for before in images.rows])
    shares = to_probabilities(reference.reshape(len(rows), -1))
    # Scores that are not finite predict nothing, and give up all that FP32 had.
    left = np.where(predicted != accuracy.UNKNOWN, shares[np.arange(len(rows)), predicted], 0.0)
    given_up = shares[changed, expected[changed]] - left[changed]
    right, still_right = rows["fp32_rank"] == 0, rows["engine_rank"] == 0
    return {
        "changed": changed.tolist(),
        "given_up": [float(f"{probability:.5g}") for probability in given_up],
        "lost": np.flatnonzero(right & ~still_right).tolist(),
        "won": np.flatnonzero(still_right & ~right).tolist(),
    }


def measure_loss(record: TrialRecord, by: LossMeasure) -> PredictionLoss:
    """Return what a trial loses, with a 95 % interval.

    Every interval counts one image more than was lost and won, so that it has a width even if no
    prediction changed.
    """
    images = int(record["images"])
    if "agreement" in record:
        agreement, spread = (100 * value for value in record["agreement"])
        if by == "agreement" or record["change"] is None:
            return PredictionLoss(100 - agreement, spread, "agreement", images, agreement)
        change, half_width = record["change"]
        return PredictionLoss(0.0 - 100 * change, 100 * half_width, by, images, agreement)
    changed = len(record["changed"])
    agreement = 100 * (images - changed) / images
    if by in ("top-1", "agreement"):
        lost, won = (len(record["lost"]), len(record["won"])) if by == "top-1" else (changed, 0)
        change, half_width = paired_change(lost, won, images)
        return PredictionLoss(0.0 - change, half_width, by, images, agreement)
    mean = math.fsum(record["given_up"]) / images
    squares = math.fsum(probability * probability for probability in record["given_up"]) + 1
    half_width = 196 * math.sqrt(max(squares / (images + 1) - mean * mean, 0.0) / (images + 1))
    return PredictionLoss(100 * mean, half_width, by, images, agreement)


def choose_metric(
    images: SearchImages, budget: float, named: LossMeasure | None = None
) -> LossMeasure:
    """Return how to count a budget, as named if that fits the task.

    Labels count only if one image weighs no more than the budget, the metric of a task if every
    image has truth, or if it is the user's own.
    """
    reading = images.reading
    fitting: tuple[str, ...] = ("top-1", "agreement", "certainty")
    if reading is not None:
        fitting = ("metric", "agreement")
    if named is not None and named not in fitting:
        task = "classify" if reading is None else reading.task.name
        raise UsageError(
            f"`--by {named}` does not count predictions of the task `{task}`",
            hint=f"measures of this task: {', '.join(fitting)}",
        )
    truths = []
    if reading is not None and reading.task.primary:
        truths = [reading.truth_of(item) is not None for item in images.items]
    if named == "metric" and truths and not any(truths):
        raise UsageError(
            "`--by metric` needs truth, and no image has any",
            hint="name it with `--labels`, or leave `--by` out, and agreement with FP32 counts",
        )
    if named is not None:
        return named
    if reading is not None:
        return "metric" if all(truths) else "agreement"
    fine_enough = len(images.items) * budget >= 100
    labelled = all(item.label is not None for item in images.items)
    return "top-1" if fine_enough and labelled else "certainty"
