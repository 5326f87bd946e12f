"""Summarize how accurate an engine is, and how close to FP32, over the same images."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import AliasChoices, Field

from qconvert.measure.output_error import sqnr_from_powers
from qconvert.measure.per_image_scores import TOP_K, UNKNOWN, ImageScores, ScoreRows

# The name of FP32 among the engines of a run.
BASELINE = ""

BF16_UNSCORED = "ONNX Runtime has no bf16 kernels for the CPU, so its outputs are unknown here"
IDENTICAL = "the outputs equal those of FP32 bit for bit: there is no error, and no SQNR"
IDENTICAL_WHERE_FINITE = "no SQNR: where the outputs are finite, they equal those of FP32"
NO_LABELS = "no labels: top-1, precision, recall and F1 are not measured"
NO_CLASSES = "no output is a row of scores: outputs are compared by cosine and SQNR only"

MeasuredOn = Literal["engine", "cpu-simulation"]


def _json_key(key: str, name: str) -> Any:
    """Give a field another key in a report; cached scores have its name."""
    return Field(validation_alias=AliasChoices(key, name), serialization_alias=key)


@dataclass(frozen=True)
class ClassificationScores:
    """In percent; precision, recall and F1 are means over the classes that have labels."""

    top1: float
    top5: float | None
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class RecallShift:
    """A class whose recall changed: percent of its images that FP32 and the engine got right."""

    label: int
    before: float
    after: float
    images: int


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
class PairedChange:
    """A change of top-1 in percentage points, and half the width of its 95 % interval."""

    pp: float
    half_width_pp: float


@dataclass(frozen=True)
class Accuracy:
    """Scores over images, in percent; those that need labels are None without them.

    `labelled` counts the images with a label, which top-1 to F1 and `change_pp` are over; it is
    None in reports that did not count them.
    `change_pp` is the change of top-1 against FP32 over the same images, with half the width of its
    95 % interval. `sqnr_db`, `kl` and `cosine` compare the outputs with those of FP32; an infinite
    SQNR is that of equal outputs, and a note says so where it cannot be written. `engine` means
    that the engine itself ran, `cpu-simulation` that its graph ran on the CPU.
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
    shifts: tuple[RecallShift, ...] = ()
    changed: tuple[ChangedPrediction, ...] = ()
    labelled: int | None = None


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
    change = top1_change(scores)
    accuracy = Accuracy(
        images=len(rows),
        measured_on=measured_on,
        agreement=_agreement(scores),
        sqnr_db=_sqnr_db(rows),
        kl=_finite_mean(rows["kl"]),
        change_pp=change.pp if change is not None else None,
        half_width_pp=change.half_width_pp if change is not None else None,
        notes=(*scores.notes, *_notes(scores)),
        cosine=_finite_mean(rows["cosine"]),
        shifts=recall_shifts(scores),
        changed=changed_predictions(scores, names) if names else (),
        labelled=len(_labelled(scores)),
    )
    return _with_classification(accuracy, classification_scores(scores))


def fp32_accuracy(scores: ImageScores) -> Accuracy:
    """Return the accuracy of FP32 itself, whichever engine it was compared with.

    It agrees with itself and has no error, so nothing is compared.
    """
    notes, labelled = tuple(_notes(scores, of_fp32=True)), len(_labelled(scores))
    accuracy = Accuracy(
        len(scores.rows), "engine", None, None, None, notes=notes, labelled=labelled
    )
    return _with_classification(accuracy, classification_scores(scores, of_fp32=True))


def classification_scores(
    scores: ImageScores, *, of_fp32: bool = False
) -> ClassificationScores | None:
    """Return the scores over images with a label, None where there are none.

    A class that is never predicted has precision 0, and F1 0 where precision and recall both are.
    A prediction that is not finite is wrong. Top-5 needs more than 5 classes.
    """
    rows = _labelled(scores)
    if not len(rows):
        return None
    engine = "fp32" if of_fp32 else "engine"
    precision, recall, f1 = _macro_average(rows["label"], rows[f"{engine}_class"], scores.classes)
    ranks = rows[f"{engine}_rank"]
    in_top5 = (ranks != UNKNOWN) & (ranks < TOP_K)
    top5 = _percent(in_top5) if scores.classes > TOP_K else None
    return ClassificationScores(_percent(ranks == 0), top5, precision, recall, f1)


def top1_change(scores: ImageScores) -> PairedChange | None:
    """Return how top-1 changed over the images with a label, None where there are none."""
    rows = _labelled(scores)
    if not len(rows):
        return None
    before, after = rows["fp32_rank"] == 0, rows["engine_rank"] == 0
    return paired_change(int((before & ~after).sum()), int((after & ~before).sum()), len(rows))


def paired_change(lost: int, won: int, images: int) -> PairedChange:
    """Return the change when `lost` images were right only before and `won` only after.

    The interval is the adjusted Wald interval for paired proportions (Bonett and Price 2012): one
    lost and one won image are added to the counts. So it has a width where no prediction changed,
    covers 95 % from some dozens of images on, and approaches the usual one for many.
    """
    count = images + 2
    losing, winning = (lost + 1) / count, (won + 1) / count
    variance = (losing + winning - (winning - losing) ** 2) / count
    return PairedChange(100 * (won - lost) / images, 196 * math.sqrt(variance))


def recall_shifts(scores: ImageScores, limit: int = 10) -> tuple[RecallShift, ...]:
    """Return the classes whose recall changed most; of equal changes the larger class first."""
    rows = _labelled(scores)
    if not len(rows):
        return ()
    images, before, after = (
        np.bincount(labels, minlength=scores.classes).tolist()
        for labels in (
            rows["label"],
            rows["label"][rows["fp32_rank"] == 0],
            rows["label"][rows["engine_rank"] == 0],
        )
    )
    shifts = [
        RecallShift(label, 100 * before[label] / count, 100 * after[label] / count, count)
        for label, count in enumerate(images)
        if before[label] != after[label]
    ]
    shifts.sort(key=lambda shift: (-abs(shift.after - shift.before), -shift.images, shift.label))
    return tuple(shifts[:limit])


def changed_predictions(
    scores: ImageScores, names: Sequence[str], limit: int = 12
) -> tuple[ChangedPrediction, ...]:
    """Return images whose prediction changed, those that FP32 was most certain of first."""
    rows = scores.rows
    both_known = (rows["fp32_class"] != UNKNOWN) & (rows["engine_class"] != UNKNOWN)
    changed = np.flatnonzero(both_known & (rows["fp32_class"] != rows["engine_class"])).tolist()
    changed.sort(key=lambda index: (-float(rows["lead"][index]), index))
    return tuple(
        ChangedPrediction(
            names[index],
            None if rows["label"][index] == UNKNOWN else int(rows["label"][index]),
            int(rows["fp32_class"][index]),
            int(rows["engine_class"][index]),
            100 * float(rows["lead"][index]),
            100 * float(rows["new_lead"][index]),
        )
        for index in changed[:limit]
    )


def _labelled(scores: ImageScores) -> ScoreRows:
    rows: ScoreRows = scores.rows[scores.rows["label"] != UNKNOWN]
    return rows


def _with_classification(accuracy: Accuracy, scores: ClassificationScores | None) -> Accuracy:
    return accuracy if scores is None else replace(accuracy, **vars(scores))


def _macro_average(
    labels: NDArray[np.int32], predictions: NDArray[np.int32], classes: int
) -> tuple[float, float, float]:
    """Return precision, recall and F1, averaged over the classes that have labels."""
    labelled = np.bincount(labels, minlength=classes)
    predicted = np.bincount(predictions[predictions != UNKNOWN], minlength=classes)
    correct = np.bincount(labels[labels == predictions], minlength=classes)
    present = labelled > 0
    labelled, predicted, correct = labelled[present], predicted[present], correct[present]
    precision = correct / np.maximum(predicted, 1)
    # 2PR / (P + R) in whole numbers, whose denominator is never zero for a class with an image.
    f1 = 2 * correct / (labelled + predicted)
    return _percent(precision), _percent(correct / labelled), _percent(f1)


def _percent(shares: NDArray[np.bool_] | NDArray[np.float64]) -> float:
    return 100 * float(np.mean(shares))


def _agreement(scores: ImageScores) -> float | None:
    rows = scores.rows[scores.rows["fp32_class"] != UNKNOWN]
    if not scores.classes or not len(rows):
        return None
    return _percent(rows["fp32_class"] == rows["engine_class"])


def _sqnr_db(rows: ScoreRows) -> float | None:
    compared = rows[np.isfinite(rows["error"])]
    if not len(compared):
        return None
    # Exact sums, so that the order of the images does not matter.
    return sqnr_from_powers(math.fsum(compared["signal"]), math.fsum(compared["error"]))


def _finite_mean(values: NDArray[np.float64]) -> float | None:
    finite = values[np.isfinite(values)]
    return math.fsum(finite) / len(finite) if len(finite) else None


def _notes(scores: ImageScores, *, of_fp32: bool = False) -> list[str]:
    """Return notes on images without a label, and on those with outputs that are not finite."""
    rows, total = scores.rows, len(scores.rows)
    notes = []
    unlabelled = total - len(_labelled(scores))
    if not scores.classes:
        notes.append(NO_CLASSES)
    elif unlabelled == total:
        notes.append(NO_LABELS)
    elif unlabelled:
        notes.append(f"{unlabelled} of {total} images have no label: scores are over the others")
    fp32_broken = ~rows["fp32_finite"]
    incomparable = fp32_broken & ((rows["fp32_class"] == UNKNOWN) | (not scores.classes))
    problems = [
        (incomparable, "FP32's own outputs hold NaN or infinity: nothing compares with them"),
        (
            fp32_broken & ~incomparable,
            "an output of FP32 other than its scores holds NaN or infinity: they are left out of "
            "SQNR and cosine",
        ),
    ]
    broken = rows["fp32_finite"] & ~rows["engine_finite"]
    if not of_fp32:
        wrong = broken & (rows["engine_class"] == UNKNOWN) & bool(scores.classes)
        other = "an output of the engine other than its scores holds"
        if not scores.classes:
            other = "the engine's outputs hold"
        problems += [
            (
                wrong,
                "the engine's outputs hold NaN or infinity: they count as wrong, and are left out "
                "of SQNR, KL and cosine",
            ),
            (
                broken & ~wrong,
                f"{other} NaN or infinity: they are left out of SQNR and cosine",
            ),
        ]
    notes += [f"on {mask.sum()} of {total} images {text}" for mask, text in problems if mask.any()]
    if not of_fp32 and _sqnr_db(rows) == math.inf:
        notes.append(IDENTICAL_WHERE_FINITE if broken.any() else IDENTICAL)
    return notes
