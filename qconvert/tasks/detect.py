"""The task `detect`: boxes with classes and scores."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from qconvert.images.truth import TrueBoxes
from qconvert.tasks.detection_agreement import PictureAgreement, agreement, total_agreement
from qconvert.tasks.detection_metrics import (
    ImageMatches,
    average_precision,
    match_image,
    paired_interval,
    precision_recall_curve,
)
from qconvert.tasks.predictions import Detections
from qconvert.tasks.task import Task, TaskScores, class_shifts, defined

METRICS = {
    "map": "mAP",
    "map50": "mAP.50",
    "map75": "mAP.75",
    "map_small": "small",
    "map_medium": "medium",
    "map_large": "large",
    "ar1": "AR@1",
    "ar10": "AR@10",
    "ar100": "AR@100",
}


@dataclass(frozen=True, eq=False)
class DetectionRow:
    """One picture: FP32's and the engine's detections against the truth, and against each other."""

    before: ImageMatches | None
    after: ImageMatches | None
    shared: PictureAgreement
    dropped: int
    classes: tuple[int, ...] = ()


def compare(reference: Detections, detections: Detections, truth: TrueBoxes | None) -> DetectionRow:
    """Compare the detections of one picture."""
    shared = agreement(reference, detections)
    if truth is None:
        return DetectionRow(None, None, shared, detections.dropped)
    before = match_image(reference.boxes, reference.scores, reference.classes, truth)
    after = before
    if detections is not reference:
        after = match_image(detections.boxes, detections.scores, detections.classes, truth)
    classes = tuple(np.unique(truth.classes[~truth.crowd]).tolist())
    return DetectionRow(before, after, shared, detections.dropped, classes)


def summarize(rows: Sequence[DetectionRow]) -> TaskScores:
    """Return the metrics of COCO, and the share of boxes that FP32 and the engine have in common."""
    before = [row.before for row in rows if row.before is not None]
    after = [row.after for row in rows if row.after is not None]
    notes = []
    if dropped := sum(row.dropped for row in rows):
        notes.append(
            f"{dropped} {'box' if dropped == 1 else 'boxes'} with NaN or infinity left out"
        )
    scores = TaskScores(
        len(before),
        {},
        total_agreement([row.shared for row in rows]),
        by_image=tuple(row.shared.share for row in rows),
        notes=tuple(notes),
    )
    if not before:
        return scores
    if not any(len(matches.scores) for matches in after):
        notes.append("the engine detects nothing on any image")
    old, new = average_precision(before), average_precision(after)
    if new.map is None:
        notes.append("the truth holds no object that counts: mAP is undefined")
    change = None if old.map is None or new.map is None else new.map - old.map
    images = np.bincount([label for row in rows for label in row.classes], minlength=1).tolist()
    curve = precision_recall_curve(after)
    return replace(
        scores,
        metrics=defined(new.metrics),
        change=change,
        half_width=paired_interval(before, after) if change is not None else None,
        shifts=class_shifts(old.class_ap, new.class_ap, images),
        curve=() if curve is None else tuple(round(float(value), 5) for value in curve),
        notes=tuple(notes),
    )


DETECT = Task(
    "detect",
    "map",
    METRICS,
    compare,
    summarize,
    text="boxes with classes and scores",
    truth=(TrueBoxes,),
)
