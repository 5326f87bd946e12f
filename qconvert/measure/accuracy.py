"""How right the answers of an engine are, and how like those of FP32, over the same images."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from qconvert.measure.per_image_scores import TOP_K, UNKNOWN, ImageScores, ScoreRows

BF16_UNSCORED = "ONNX Runtime has no bf16 kernels for the CPU, so its answers are not known here"

BASELINE = ""

ClassArray = NDArray[np.int32]


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
class PairedChange:
    """A change of top-1 in percentage points, and half the width of its 95 % interval."""

    pp: float
    half_width_pp: float


def classification_scores(
    judged: ImageScores, *, of_fp32: bool = False
) -> ClassificationScores | None:
    """Return the scores over images with a label, None where there are none.

    A class that is never answered has precision 0, and F1 0 where precision and recall both are.
    An answer that is not finite is wrong. Top-5 needs more than 5 classes.
    """
    rows = judged.rows[judged.rows["label"] != UNKNOWN]
    if not len(rows):
        return None
    said, rank = ("wanted", "wanted_rank") if of_fp32 else ("answer", "rank")
    precision, recall, f1 = _macro_average(rows["label"], rows[said], judged.classes)
    ranks = rows[rank]
    top5 = _percent((ranks != UNKNOWN) & (ranks < TOP_K)) if judged.classes > TOP_K else None
    return ClassificationScores(_percent(ranks == 0), top5, precision, recall, f1)


def top1_change(judged: ImageScores) -> PairedChange | None:
    """Return how top-1 changed over the images with a label, None where there are none."""
    rows = judged.rows[judged.rows["label"] != UNKNOWN]
    if not len(rows):
        return None
    before, after = rows["wanted_rank"] == 0, rows["rank"] == 0
    return paired_change(int((before & ~after).sum()), int((after & ~before).sum()), len(rows))


def paired_change(lost: int, won: int, images: int) -> PairedChange:
    """Return the change when so many images were answered right before only, or after only.

    The interval is the adjusted Wald interval for paired proportions (Bonett and Price 2012): one
    image lost and one won are added to those counted. So it has a width where no answer changed,
    and covers 95 % from some dozens of images on; for many it is the usual one.
    """
    count = images + 2
    losing, winning = (lost + 1) / count, (won + 1) / count
    variance = (losing + winning - (winning - losing) ** 2) / count
    return PairedChange(100 * (won - lost) / images, 196 * math.sqrt(variance))


def recall_shifts(judged: ImageScores, most: int = 10) -> tuple[RecallShift, ...]:
    """Return the classes whose recall changed most; of equal changes the larger class first."""
    rows = judged.rows[judged.rows["label"] != UNKNOWN]
    if not len(rows):
        return ()
    images = np.bincount(rows["label"], minlength=judged.classes)
    before, after = (
        np.bincount(rows["label"][rows[rank] == 0], minlength=judged.classes)
        for rank in ("wanted_rank", "rank")
    )
    found = [
        RecallShift(
            label, 100 * before[label] / images[label], 100 * after[label] / images[label], n
        )
        for label, n in enumerate(images.tolist())
        if before[label] != after[label]
    ]
    found.sort(key=lambda each: (-abs(each.after - each.before), -each.images, each.label))
    return tuple(
        RecallShift(each.label, float(each.before), float(each.after), each.images)
        for each in found[:most]
    )


def changed_predictions(
    judged: ImageScores, names: Sequence[str], most: int = 12
) -> tuple[ChangedPrediction, ...]:
    """Return images that changed their answer, those that FP32 was most sure of first."""
    rows = judged.rows
    there = np.flatnonzero(
        (rows["wanted"] != rows["answer"])
        & (rows["wanted"] != UNKNOWN)
        & (rows["answer"] != UNKNOWN)
    )
    order = sorted(there.tolist(), key=lambda at: (-float(rows["lead"][at]), at))
    return tuple(
        ChangedPrediction(
            names[at],
            None if rows["label"][at] == UNKNOWN else int(rows["label"][at]),
            int(rows["wanted"][at]),
            int(rows["answer"][at]),
            100 * float(rows["lead"][at]),
            100 * float(rows["new_lead"][at]),
        )
        for at in order[:most]
    )


def _macro_average(
    labels: ClassArray, said: ClassArray, classes: int
) -> tuple[float, float, float]:
    truth = np.bincount(labels, minlength=classes)
    answers = np.bincount(said[said != UNKNOWN], minlength=classes)
    right = np.bincount(labels[labels == said], minlength=classes)
    present = truth > 0
    truth, answers, right = truth[present], answers[present], right[present]
    precision = right / np.maximum(answers, 1)
    # 2PR / (P + R) in whole numbers, which no class with an image can make zero.
    f1 = 2 * right / (truth + answers)
    return _percent(precision), _percent(right / truth), _percent(f1)


def _percent(shares: NDArray[np.bool_] | NDArray[np.float64]) -> float:
    return 100 * float(np.mean(shares))


MeasuredOn = Literal["engine", "cpu-simulation"]

IDENTICAL = "the outputs are those of FP32, bit for bit: there is no error, and no SQNR"
IDENTICAL_WHERE_FINITE = (
    "no SQNR: where the outputs are finite, they are those of FP32, bit for bit"
)
NO_LABELS = "no labels: top-1, precision, recall and F1 are not measured"
NO_CLASSES = "no output is a row of scores: outputs are compared by cosine and SQNR only"
OTHER_OUTPUT = "an output of the engine other than its scores holds"


@dataclass(frozen=True)
class Accuracy:
    """Scores over images, in percent; those that need labels are None without.

    `labelled` counts the images that have a label, which top-1 to F1 and `change_pp` are over; it
    is None in reports that did not count them.
    `change_pp` is the change of top-1 against FP32 over the same images, with half the width of its
    95 % interval. `sqnr_db`, `kl` and `cosine` compare the outputs with those of FP32; an SQNR of
    infinity is that of equal outputs, and a note says so where it cannot be written. `engine` says
    that the engine itself ran, `cpu-simulation` that its graph did on the CPU.
    """

    images: int
    measured_on: MeasuredOn
    agreement: float | None
    sqnr_db: float | None
    kl: float | None
    top1: float | None = None
    top5: float | None = None
    precision: float | None = None
    recall: float | None = None
    f1: float | None = None
    change_pp: float | None = None
    half_width_pp: float | None = None
    notes: tuple[str, ...] = ()
    cosine: float | None = None
    shifts: tuple[RecallShift, ...] = ()
    changed: tuple[ChangedPrediction, ...] = ()
    labelled: int | None = None


def summarize_accuracy(
    judged: ImageScores, measured_on: MeasuredOn = "engine", names: Sequence[str] = ()
) -> Accuracy:
    """Return what all images together say of an engine; `names` are those of the images.

    SQNR is over all outputs of all images, KL and cosine are means over images. Images on which
    FP32 is not finite compare with nothing and are left out; where only the engine is not, its
    answer is wrong, and the error, which no number could tell, is left out. Where that is another
    output than the scores, answer and KL count as ever. Notes count all of them.
    """
    rows = judged.rows
    found = Accuracy(
        images=len(rows),
        measured_on=measured_on,
        agreement=_agreement(judged),
        sqnr_db=_sqnr_db(rows),
        kl=_mean(rows, "kl"),
        cosine=_mean(rows, "cosine"),
        shifts=recall_shifts(judged),
        changed=changed_predictions(judged, names) if names else (),
        notes=(*judged.notes, *_notes(judged)),
        labelled=_count_labels(rows),
    )
    moved = top1_change(judged)
    if moved is not None:
        found = replace(found, change_pp=moved.pp, half_width_pp=moved.half_width_pp)
    return _with_scores(found, classification_scores(judged))


def fp32_accuracy(judged: ImageScores) -> Accuracy:
    """Return what the same images say of FP32 itself; whose answers it was held against is all one.

    It agrees with itself and has no error, so nothing compares.
    """
    notes = (*_label_notes(judged), *_fp32_notes(judged))
    bare = Accuracy(len(judged.rows), "engine", None, sqnr_db=None, kl=None, notes=notes)
    bare = replace(bare, labelled=_count_labels(judged.rows))
    return _with_scores(bare, classification_scores(judged, of_fp32=True))


def _with_scores(found: Accuracy, of: ClassificationScores | None) -> Accuracy:
    if of is None:
        return found
    return replace(
        found, top1=of.top1, top5=of.top5, precision=of.precision, recall=of.recall, f1=of.f1
    )


def _count_labels(rows: ScoreRows) -> int:
    return int((rows["label"] != UNKNOWN).sum())


def _agreement(judged: ImageScores) -> float | None:
    rows = judged.rows[judged.rows["wanted"] != UNKNOWN]
    if not judged.classes or not len(rows):
        return None
    return 100 * float(np.mean(rows["wanted"] == rows["answer"]))


def _sqnr_db(rows: ScoreRows) -> float | None:
    known = rows[np.isfinite(rows["error"])]
    if not len(known):
        return None
    # Exact sums: the order of the images is nobody's concern.
    signal, error = math.fsum(known["signal"]), math.fsum(known["error"])
    if error == 0:
        return math.inf
    return 10 * math.log10(signal / error) if signal else None


def _mean(rows: ScoreRows, name: str) -> float | None:
    known = rows[name][np.isfinite(rows[name])]
    return math.fsum(known) / len(known) if len(known) else None


def _notes(judged: ImageScores) -> list[str]:
    rows = judged.rows
    notes = [*_label_notes(judged), *_fp32_notes(judged)]
    broken = rows["fp32_finite"] & ~rows["finite"]
    wrong = broken & (rows["answer"] == UNKNOWN) & bool(judged.classes)
    if some := int(wrong.sum()):
        notes.append(
            f"on {some} of {len(rows)} images the engine's outputs hold NaN or infinity: they "
            "count as wrong, and are left out of SQNR, KL and cosine"
        )
    if some := int((broken & ~wrong).sum()):
        which = OTHER_OUTPUT if judged.classes else "the engine's outputs hold"
        notes.append(
            f"on {some} of {len(rows)} images {which} NaN or infinity: they are left out of SQNR "
            "and cosine"
        )
    if _sqnr_db(rows) == math.inf:
        notes.append(IDENTICAL_WHERE_FINITE if broken.any() else IDENTICAL)
    return notes


def _label_notes(judged: ImageScores) -> list[str]:
    if not judged.classes:
        return [NO_CLASSES]
    without = int((judged.rows["label"] == UNKNOWN).sum())
    if without == len(judged.rows):
        return [NO_LABELS]
    if without:
        return [f"{without} of {len(judged.rows)} images have no label: scores are over the others"]
    return []


def _fp32_notes(judged: ImageScores) -> list[str]:
    rows = judged.rows
    broken = ~rows["fp32_finite"]
    scores = broken & ((rows["wanted"] == UNKNOWN) | (not judged.classes))
    notes = []
    if some := int(scores.sum()):
        notes.append(
            f"on {some} of {len(rows)} images FP32's own outputs hold NaN or infinity: nothing "
            "compares with them"
        )
    if some := int((broken & ~scores).sum()):
        notes.append(
            f"on {some} of {len(rows)} images an output of FP32 other than its scores holds NaN or "
            "infinity: they are left out of SQNR and cosine"
        )
    return notes
