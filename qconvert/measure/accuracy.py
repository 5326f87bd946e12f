"""How accurate an engine is, and how close to FP32, over the same images.

The outputs of a batch become a few numbers per image, whatever the outputs are. Neither the split
into batches nor the order of the parts changes them, but for the last bits of KL, whose
exponentials a processor rounds by their place in memory.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import AliasChoices, Field

from qconvert.core.config import Task as TaskName
from qconvert.core.errors import QConvertError
from qconvert.core.tensors import Tensors, output_array
from qconvert.measure.output_error import (
    ErrorArray,
    kl_divergence,
    sqnr_from_powers,
    to_probabilities,
)
from qconvert.tasks.bootstrap import paired_change
from qconvert.tasks.task import ClassShift, Task, TaskScores

# The name of FP32 among the engines of a run.
BASELINE = ""

BF16_UNSCORED = "ONNX Runtime has no bf16 kernels for the CPU, so its outputs are unknown here"
# Reports hold these notes, and why a score is missing is read from them: do not reword them.
IDENTICAL = "the outputs are those of FP32, bit for bit: there is no error, and no SQNR"
IDENTICAL_WHERE_FINITE = (
    "no SQNR: where the outputs are finite, they are those of FP32, bit for bit"
)
NO_LABELS = "no labels: top-1, precision, recall and F1 are not measured"
NO_CLASSES = "no output is a row of scores: outputs are compared by cosine and SQNR only"

MeasuredOn = Literal["engine", "cpu-simulation"]

UNKNOWN = -1
TOP_K = 5
MAX_PICTURES = 12
# A picture is shown as changed if its agreement does not round to 100.0 %.
NEARLY_ALL = 0.9995

# The classes are those that FP32 and the engine predict, the ranks the positions of the label among
# their scores, 0 for the best. `signal` and `error` are sums of squares. `lead` is how much likelier
# FP32 takes its own prediction to be than the engine's, and `new_lead` how much likelier the engine
# takes its own to be than FP32's, both from 0 to 1.
_CLASS_INTEGERS = ["label", "fp32_class", "engine_class", "fp32_rank", "engine_rank"]
_CLASS_FLOATS = ["kl", "lead", "new_lead"]
_COMPARISONS = ["signal", "error", "cosine"]
_ROW_TYPE = np.dtype(
    [
        *((name, np.int32) for name in _CLASS_INTEGERS),
        *((name, np.float64) for name in (*_COMPARISONS, *_CLASS_FLOATS)),
        *((name, np.bool_) for name in ("fp32_finite", "engine_finite")),
    ]
)


def _json_key(key: str, name: str) -> Any:
    """Give a field another key in a report; cached scores have its name."""
    return Field(validation_alias=AliasChoices(key, name), serialization_alias=key)


@dataclass(frozen=True)
class ImageScores:
    """One row per image; `classes` is 0 where no output is a row of class scores.

    A value that an image does not have is `UNKNOWN` or NaN: no label, or outputs that are not
    finite.
    """

    rows: NDArray[np.void]
    classes: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ChangedPrediction:
    """An image whose prediction differs from that of FP32, and its class where it is known.

    `lead` is by how many points FP32 took its own prediction to be likelier than the new one, and
    `new_lead` by how many the engine takes the new one to be.
    """

    image: str
    label: int | None
    before: int
    after: int
    lead: float
    new_lead: float


@dataclass(frozen=True)
class ChangedPicture:
    """An image of which FP32 and the engine predict other boxes or pixels.

    `agreement` is the share in percent that both predict.
    """

    image: str
    agreement: float


@dataclass(frozen=True)
class Accuracy:
    """Scores over images, in percent; those that need labels are None without them.

    `metrics` are those of the `task`, from 0 to 1; gates and searches judge by `primary`, and
    `change_pp` is the change of it. `agreement` is that of the predictions of the task: classes,
    boxes (two boxes of the same class at IoU .5), pixels, or nearest neighbours. `curve` is the
    precision of detections at 101 recalls.

    `labelled` counts the images with a label, which top-1 to F1 and `change_pp` are over; it is
    None in reports that did not count them. Precision, recall and F1 are means over the classes
    that have labels. `change_pp` is the change against FP32 over the same images, with
    half the width of its 95 % interval. `sqnr_db`, `kl` and `cosine` compare the outputs with those
    of FP32; an infinite SQNR is that of equal outputs, and a note says so where it cannot be
    written. `engine` means that the engine itself ran, `cpu-simulation` that its graph ran on the
    CPU.
    """

    images: Annotated[int, _json_key("n", "images")]
    measured_on: MeasuredOn
    agreement: float | None
    sqnr_db: float | None
    kl: float | None
    top1: float | None = None
    top5: float | None = None
    precision: float | None = None
    recall: float | None = None
    f1: float | None = None
    change_pp: Annotated[float | None, _json_key("delta_pp", "change_pp")] = None
    half_width_pp: float | None = None
    notes: tuple[str, ...] = ()
    cosine: float | None = None
    shifts: tuple[ClassShift, ...] = ()
    changed: tuple[ChangedPrediction, ...] = ()
    labelled: int | None = None
    task: TaskName = "classify"
    metrics: dict[str, float] = field(default_factory=dict)
    primary: str = ""
    curve: tuple[float, ...] = ()
    pictures: tuple[ChangedPicture, ...] = ()


def score_batch(reference: Tensors, outputs: Tensors, labels: Sequence[int | None]) -> ImageScores:
    """Compare an engine's outputs of a batch with those of FP32; one label per image, or None."""
    count = len(labels)
    # Each output as one row per image, of FP32 and of the engine.
    pairs: dict[str, tuple[ErrorArray, ErrorArray]] = {}
    notes = []
    for name in reference:
        before = output_array(reference, name)
        after = output_array(outputs, name) if name in outputs else None
        if after is None:
            problem = "is missing"
        elif before.dtype.kind in "OSTU":
            problem = "is not numeric"
        elif before.ndim == 0 or before.shape[0] != count:
            problem = "does not have a row for each image"
        elif before.shape != after.shape:
            problem = "has another shape than that of FP32"
        else:
            flat = before.astype(np.float64).reshape(count, -1)
            is_itself = outputs is reference
            pairs[name] = flat, flat if is_itself else after.astype(np.float64).reshape(count, -1)
            continue
        notes.append(f"output `{name}` {problem}: not compared")
    real = [pair for name, pair in pairs.items() if np.asarray(reference[name]).dtype.kind in "fV"]
    # A class number is not a quantity: real outputs are compared where there are any.
    rows = _compare(real or list(pairs.values()), count)
    scores = [name for name, array in reference.items() if name in pairs and is_class_scores(array)]
    if not scores:
        return ImageScores(rows, 0, tuple(notes))
    if len(scores) > 1:
        notes.append(f"of {len(scores)} outputs with scores the first, `{scores[0]}`, counts")
    before, after = pairs[scores[0]]
    classes = before.shape[1]
    for label in labels:
        if label is not None and not 0 <= label < classes:
            raise QConvertError(
                f"label {label} is not a class of the model, which has {classes}, counted from 0",
                hint="labels are indices in the model's own order of classes; give them with "
                "`--labels FILE`, or put a `classes.txt` beside the class folders",
            )
    rows["label"] = [UNKNOWN if label is None else label for label in labels]
    _classify(rows, before, after)
    return ImageScores(rows, classes, tuple(notes))


def join_scores(parts: Sequence[ImageScores]) -> ImageScores:
    """Return all parts of a run over images as one."""
    notes = tuple(dict.fromkeys(note for part in parts for note in part.notes))
    rows, classes = np.concatenate([part.rows for part in parts]), parts[0].classes
    if any(part.classes != classes for part in parts):
        # As many scores as an image has objects: not a row of class scores after all.
        rows[_CLASS_INTEGERS], rows[_CLASS_FLOATS], classes = UNKNOWN, np.nan, 0
    return ImageScores(rows, classes, notes)


def is_class_scores(array: NDArray[Any]) -> bool:
    """Whether an output is real and of shape [images, classes], trailing ones allowed."""
    rows = array.ndim >= 2 and array.shape[1] > 1 and all(size == 1 for size in array.shape[2:])
    return rows and array.dtype.kind not in "iub"


def summarize_accuracy(
    scores: ImageScores, measured_on: MeasuredOn = "engine", names: Sequence[str] = ()
) -> Accuracy:
    """Return the accuracy of an engine over all images; `names` are those of the images.

    SQNR is over all outputs of all images, KL and cosine are means over images. Images on which
    FP32 is not finite compare with nothing and are left out. Where only the engine's class scores
    are not finite, its prediction is wrong and its error is left out; where only its other outputs
    are not, prediction and KL count as usual. Notes count all of them.
    """
    rows = scores.rows
    labelled = np.asarray(rows[rows["label"] != UNKNOWN])
    predicted = rows[rows["fp32_class"] != UNKNOWN]
    compared = rows[np.isfinite(rows["error"])]
    # Exact sums, so that the order of the images does not matter.
    powers = math.fsum(compared["signal"]), math.fsum(compared["error"])
    sqnr_db = sqnr_from_powers(*powers) if len(compared) else None
    right, still_right = labelled["fp32_rank"] == 0, labelled["engine_rank"] == 0
    lost, won = int((right & ~still_right).sum()), int((still_right & ~right).sum())
    change = paired_change(lost, won, len(labelled)) if len(labelled) else (None, None)
    images, before, after = (
        np.bincount(labels, minlength=scores.classes).tolist()
        for labels in (labelled["label"], labelled["label"][right], labelled["label"][still_right])
    )
    shifts = [
        ClassShift(label, 100 * before[label] / count, 100 * after[label] / count, count)
        for label, count in enumerate(images)
        if before[label] != after[label]
    ]
    # Of equal changes the class with more images comes first.
    shifts.sort(key=lambda shift: (-abs(shift.after - shift.before), -shift.images, shift.label))
    percents = _classification_scores(labelled, scores.classes)
    return Accuracy(
        images=len(rows),
        measured_on=measured_on,
        agreement=_percent(predicted["fp32_class"] == predicted["engine_class"]),
        sqnr_db=sqnr_db,
        kl=_finite_mean(rows["kl"]),
        change_pp=change[0],
        half_width_pp=change[1],
        notes=(*scores.notes, *_notes(scores, len(labelled), sqnr_db)),
        cosine=_finite_mean(rows["cosine"]),
        shifts=tuple(shifts[:10]),
        changed=_changed_predictions(rows, names) if names else (),
        labelled=len(labelled),
        task="classify" if scores.classes else "any",
        metrics={name: value / 100 for name, value in percents.items() if value is not None},
        primary="top1" if percents else "",
        curve=(),
        pictures=(),
        **percents,
    )


def with_task(
    accuracy: Accuracy, task: Task, scores: TaskScores, names: Sequence[str] = ()
) -> Accuracy:
    """Return the accuracy with the scores of a task in place of those of a classifier."""
    pairs = zip(names, scores.by_image, strict=False)
    changed = [
        ChangedPicture(name, 100 * share)
        for name, share in pairs
        if share is not None and share < NEARLY_ALL
    ]
    changed.sort(key=lambda picture: picture.agreement)
    agreement = None if scores.agreement is None else 100 * scores.agreement
    not_about_tasks = (NO_CLASSES, NO_LABELS)
    # A function of the user names its metrics itself, the most important first.
    primary = scores.primary or task.primary or next(iter(scores.metrics), "")
    return replace(
        accuracy,
        task=task.name,
        metrics=dict(scores.metrics),
        primary=primary if primary in scores.metrics else "",
        # A metric of the user's own says nothing of it: that of a classifier stays.
        agreement=accuracy.agreement if task.name == "any" else agreement,
        change_pp=None if scores.change is None else 100 * scores.change,
        half_width_pp=None if scores.half_width is None else 100 * scores.half_width,
        labelled=scores.labelled,
        shifts=scores.shifts,
        curve=scores.curve,
        pictures=tuple(changed[:MAX_PICTURES]),
        notes=(*(note for note in accuracy.notes if note not in not_about_tasks), *scores.notes),
        changed=(),
        top1=None,
        top5=None,
        precision=None,
        recall=None,
        f1=None,
        kl=None,
    )


def fp32_accuracy(own_scores: ImageScores) -> Accuracy:
    """Return the accuracy of FP32 from its scores against itself, without what compares the two."""
    return without_comparisons(summarize_accuracy(own_scores), own_scores.notes)


def without_comparisons(accuracy: Accuracy, notes: Sequence[str] = ()) -> Accuracy:
    """Return the accuracy of FP32 without what compares it with itself, and without these notes."""
    return replace(
        accuracy,
        agreement=None,
        sqnr_db=None,
        kl=None,
        change_pp=None,
        half_width_pp=None,
        cosine=None,
        shifts=(),
        pictures=(),
        notes=tuple(n for n in accuracy.notes if n not in (*notes, IDENTICAL)),
    )


def _compare(pairs: Sequence[tuple[ErrorArray, ErrorArray]], count: int) -> NDArray[np.void]:
    """Return rows that compare all outputs of an image, taken as one long vector."""
    rows = np.zeros(count, _ROW_TYPE)
    rows[_CLASS_INTEGERS], rows[_CLASS_FLOATS] = UNKNOWN, np.nan
    rows["fp32_finite"] = rows["engine_finite"] = True
    for before, after in pairs:
        rows["fp32_finite"] &= np.isfinite(before).all(axis=1)
        rows["engine_finite"] &= np.isfinite(after).all(axis=1)
    finite = rows["fp32_finite"] & rows["engine_finite"] & bool(pairs)
    product, power = np.zeros(count), np.zeros(count)
    # Outputs of detectors have millions of values: those of all images are not copied again.
    kept = slice(None) if finite.all() else finite
    for before, after in pairs:
        expected, actual = before[kept], after[kept]
        signal = np.square(expected).sum(axis=1)
        rows["signal"][kept] += signal
        if after is before:
            product[kept] += signal
            power[kept] += signal
            continue
        rows["error"][kept] += np.square(expected - actual).sum(axis=1)
        product[kept] += (expected * actual).sum(axis=1)
        power[kept] += np.square(actual).sum(axis=1)
    lengths = np.sqrt(rows["signal"]) * np.sqrt(power)
    # A zero vector has no direction: it equals another one, and is orthogonal to all else.
    both_zero = (rows["signal"] == 0) & (power == 0)
    cosine = np.divide(product, lengths, out=both_zero.astype(np.float64), where=lengths > 0)
    rows["cosine"] = np.clip(cosine, -1.0, 1.0)
    rows[_COMPARISONS][~finite] = np.nan
    return rows


def _classify(rows: NDArray[np.void], before: ErrorArray, after: ErrorArray) -> None:
    """Fill in the fields of rows of class scores."""
    for scores, prefix in ((before, "fp32"), (after, "engine")):
        finite = np.isfinite(scores).all(axis=1)
        rows[f"{prefix}_class"][finite] = scores[finite].argmax(axis=1)
        ranked = finite & (rows["label"] != UNKNOWN)
        labels = rows["label"][ranked, np.newaxis].astype(np.int64)
        own = np.take_along_axis(scores[ranked], labels, axis=1)
        # Integer scores tie often: of equal ones the first class counts, as for `argmax`.
        tied_before = (scores[ranked] == own) & (np.arange(scores.shape[1]) < labels)
        rows[f"{prefix}_rank"][ranked] = ((scores[ranked] > own) | tied_before).sum(axis=1)
    both = (rows["fp32_class"] != UNKNOWN) & (rows["engine_class"] != UNKNOWN)
    rows["kl"][both] = kl_divergence(before[both], after[both])
    classes = np.stack([rows["fp32_class"], rows["engine_class"]], axis=1)[both]
    for name, scores, sign in (("lead", before, 1), ("new_lead", after, -1)):
        probabilities = np.take_along_axis(to_probabilities(scores[both]), classes, axis=1)
        rows[name][both] = sign * (probabilities[:, 0] - probabilities[:, 1])


def _classification_scores(rows: NDArray[np.void], classes: int) -> dict[str, float | None]:
    """Return the scores over images with a label, none where there are none.

    A class that is never predicted has precision 0, and F1 0 where precision and recall both are.
    A prediction that is not finite is wrong. Top-5 needs more than 5 classes.
    """
    if not len(rows):
        return {}
    labels, predictions, ranks = rows["label"], rows["engine_class"], rows["engine_rank"]
    labelled, predicted, correct = (
        np.bincount(numbers[numbers != UNKNOWN], minlength=classes)
        for numbers in (labels, predictions, labels[labels == predictions])
    )
    present = labelled > 0
    labelled, predicted, correct = labelled[present], predicted[present], correct[present]
    in_top5 = (ranks != UNKNOWN) & (ranks < TOP_K)
    return {
        "top1": _percent(ranks == 0),
        "top5": _percent(in_top5) if classes > TOP_K else None,
        "precision": _percent(correct / np.maximum(predicted, 1)),
        "recall": _percent(correct / labelled),
        # 2PR / (P + R) in whole numbers, whose denominator is never zero for a class with an image.
        "f1": _percent(2 * correct / (labelled + predicted)),
    }


def _changed_predictions(
    rows: NDArray[np.void], names: Sequence[str]
) -> tuple[ChangedPrediction, ...]:
    """Return images whose prediction changed, those that FP32 was most certain of first."""
    both_known = (rows["fp32_class"] != UNKNOWN) & (rows["engine_class"] != UNKNOWN)
    changed = np.flatnonzero(both_known & (rows["fp32_class"] != rows["engine_class"])).tolist()
    changed.sort(key=lambda index: (-float(rows["lead"][index]), index))
    predictions = []
    for index in changed[:12]:
        row = rows[index]
        label = None if row["label"] == UNKNOWN else int(row["label"])
        classes = int(row["fp32_class"]), int(row["engine_class"])
        leads = 100 * float(row["lead"]), 100 * float(row["new_lead"])
        predictions.append(ChangedPrediction(names[index], label, *classes, *leads))
    return tuple(predictions)


def _percent(shares: NDArray[Any]) -> float | None:
    return 100 * float(np.mean(shares)) if len(shares) else None


def _finite_mean(values: NDArray[np.float64]) -> float | None:
    finite = values[np.isfinite(values)]
    return math.fsum(finite) / len(finite) if len(finite) else None


def _notes(scores: ImageScores, labelled: int, sqnr_db: float | None) -> list[str]:
    """Return notes on images without a label, and on those with outputs that are not finite."""
    rows, total = scores.rows, len(scores.rows)
    notes = []
    if not scores.classes:
        notes.append(NO_CLASSES)
    elif not labelled:
        notes.append(NO_LABELS)
    elif labelled < total:
        missing = total - labelled
        notes.append(f"{missing} of {total} images have no label: scores are over the others")
    fp32_finite, no_class = rows["fp32_finite"], rows["fp32_class"] == UNKNOWN
    no_prediction, prediction = ~fp32_finite & no_class, ~fp32_finite & ~no_class
    broken = fp32_finite & ~rows["engine_finite"]
    wrong = broken & (rows["engine_class"] == UNKNOWN) & bool(scores.classes)
    engine = "an output of the engine other than its scores holds"
    engine = engine if scores.classes else "the engine's outputs hold"
    left_out = "NaN or infinity: they are left out of SQNR and cosine"
    counted_wrong = "they count as wrong, and are left out of SQNR, KL and cosine"
    for mask, text in (
        (no_prediction, "FP32's own outputs hold NaN or infinity: nothing compares with them"),
        (prediction, f"an output of FP32 other than its scores holds {left_out}"),
        (wrong, f"the engine's outputs hold NaN or infinity: {counted_wrong}"),
        (broken & ~wrong, f"{engine} {left_out}"),
    ):
        if mask.any():
            notes.append(f"on {mask.sum()} of {total} images {text}")
    if sqnr_db == math.inf:
        notes.append(IDENTICAL_WHERE_FINITE if broken.any() else IDENTICAL)
    return notes
