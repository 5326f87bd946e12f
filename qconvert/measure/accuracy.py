"""How right the answers of an engine are, and how like those of FP32, over the same images."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from qconvert.measure.classified import Changed, Scores, Shift, change, changed, scores, shifts
from qconvert.measure.judged import NONE, Judged, Rows

MeasuredOn = Literal["engine", "cpu-simulation"]

IDENTICAL = "the outputs are those of FP32, bit for bit: there is no error, and no SQNR"
ELSE_IDENTICAL = "no SQNR: where the outputs are finite, they are those of FP32, bit for bit"
NO_LABELS = "no labels: top-1, precision, recall and F1 are not measured"
NO_CLASSES = "no output is a row of scores: outputs are compared by cosine and SQNR only"
OTHER = "an output of the engine other than its scores holds"


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
    shifts: tuple[Shift, ...] = ()
    changed: tuple[Changed, ...] = ()
    labelled: int | None = None


def accuracy(
    judged: Judged, measured_on: MeasuredOn = "engine", names: Sequence[str] = ()
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
        shifts=shifts(judged),
        changed=changed(judged, names) if names else (),
        notes=(*judged.notes, *_notes(judged)),
        labelled=_labelled(rows),
    )
    moved = change(judged)
    if moved is not None:
        found = replace(found, change_pp=moved.pp, half_width_pp=moved.half_width_pp)
    return _with_scores(found, scores(judged))


def baseline(judged: Judged) -> Accuracy:
    """Return what the same images say of FP32 itself; whose answers it was held against is all one.

    It agrees with itself and has no error, so nothing compares.
    """
    notes = (*_label_notes(judged), *_fp32_notes(judged))
    bare = Accuracy(len(judged.rows), "engine", None, sqnr_db=None, kl=None, notes=notes)
    bare = replace(bare, labelled=_labelled(judged.rows))
    return _with_scores(bare, scores(judged, of_fp32=True))


def _with_scores(found: Accuracy, of: Scores | None) -> Accuracy:
    if of is None:
        return found
    return replace(
        found, top1=of.top1, top5=of.top5, precision=of.precision, recall=of.recall, f1=of.f1
    )


def _labelled(rows: Rows) -> int:
    return int((rows["label"] != NONE).sum())


def _agreement(judged: Judged) -> float | None:
    rows = judged.rows[judged.rows["wanted"] != NONE]
    if not judged.classes or not len(rows):
        return None
    return 100 * float(np.mean(rows["wanted"] == rows["answer"]))


def _sqnr_db(rows: Rows) -> float | None:
    known = rows[np.isfinite(rows["error"])]
    if not len(known):
        return None
    # Exact sums: the order of the images is nobody's concern.
    signal, error = math.fsum(known["signal"]), math.fsum(known["error"])
    if error == 0:
        return math.inf
    return 10 * math.log10(signal / error) if signal else None


def _mean(rows: Rows, name: str) -> float | None:
    known = rows[name][np.isfinite(rows[name])]
    return math.fsum(known) / len(known) if len(known) else None


def _notes(judged: Judged) -> list[str]:
    rows = judged.rows
    notes = [*_label_notes(judged), *_fp32_notes(judged)]
    broken = rows["fp32_finite"] & ~rows["finite"]
    wrong = broken & (rows["answer"] == NONE) & bool(judged.classes)
    if some := int(wrong.sum()):
        notes.append(
            f"on {some} of {len(rows)} images the engine's outputs hold NaN or infinity: they "
            "count as wrong, and are left out of SQNR, KL and cosine"
        )
    if some := int((broken & ~wrong).sum()):
        which = OTHER if judged.classes else "the engine's outputs hold"
        notes.append(
            f"on {some} of {len(rows)} images {which} NaN or infinity: they are left out of SQNR "
            "and cosine"
        )
    if _sqnr_db(rows) == math.inf:
        notes.append(ELSE_IDENTICAL if broken.any() else IDENTICAL)
    return notes


def _label_notes(judged: Judged) -> list[str]:
    if not judged.classes:
        return [NO_CLASSES]
    without = int((judged.rows["label"] == NONE).sum())
    if without == len(judged.rows):
        return [NO_LABELS]
    if without:
        return [f"{without} of {len(judged.rows)} images have no label: scores are over the others"]
    return []


def _fp32_notes(judged: Judged) -> list[str]:
    rows = judged.rows
    broken = ~rows["fp32_finite"]
    scores = broken & ((rows["wanted"] == NONE) | (not judged.classes))
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
