"""The task `detect`: boxes with classes and scores, and masks where network and truth have them."""

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
    "map_mask": "mask mAP",
    "map50_mask": "mask mAP.50",
}


@dataclass(frozen=True, eq=False)
class Matches:
    """Which of FP32's and of the engine's detections of a picture match its objects."""

    before: ImageMatches
    after: ImageMatches


@dataclass(frozen=True, eq=False)
class DetectionRow:
    """One picture: FP32's and the engine's detections against the truth, and against each other.

    `masks` are the matches of masks, where the detections and the truth have them.
    """

    boxes: Matches | None
    masks: Matches | None
    shared: PictureAgreement
    dropped: int
    classes: tuple[int, ...] = ()


def compare(reference: Detections, detections: Detections, truth: TrueBoxes | None) -> DetectionRow:
    """Compare the detections of one picture."""
    shared = agreement(reference, detections)
    if truth is None:
        return DetectionRow(None, None, shared, detections.dropped)
    masks = None
    if truth.masks is not None and reference.masks is not None and detections.masks is not None:
        masks = _match_both(reference, detections, truth, with_masks=True)
    classes = tuple(np.unique(truth.classes[~truth.crowd]).tolist())
    boxes = _match_both(reference, detections, truth)
    return DetectionRow(boxes, masks, shared, detections.dropped, classes)


def _match_both(
    reference: Detections, detections: Detections, truth: TrueBoxes, with_masks: bool = False
) -> Matches:
    def match(own: Detections) -> ImageMatches:
        masks = own.masks if with_masks else None
        return match_image(own.boxes, own.scores, own.classes, truth, masks)

    before = match(reference)
    return Matches(before, before if detections is reference else match(detections))


def summarize(rows: Sequence[DetectionRow]) -> TaskScores:
    """Return the metrics of COCO, and the share of boxes that FP32 and the engine have in common.

    Where all pictures with truth have masks, the change, the classes and the curve are of masks.
    """
    boxes = [row.boxes for row in rows if row.boxes is not None]
    masks = [row.masks for row in rows if row.masks is not None]
    notes = []
    if dropped := sum(row.dropped for row in rows):
        notes.append(
            f"{dropped} {'box' if dropped == 1 else 'boxes'} with NaN or infinity left out"
        )
    scores = TaskScores(
        len(boxes),
        {},
        total_agreement([row.shared for row in rows]),
        by_image=tuple(row.shared.share for row in rows),
        notes=tuple(notes),
    )
    if not boxes:
        return scores
    if not any(len(pair.after.scores) for pair in boxes):
        notes.append("the engine detects nothing on any image")
    are_masks = len(masks) == len(boxes)
    before, after = _sides(masks if are_masks else boxes)
    old, new = average_precision(before), average_precision(after)
    if new.map is None:
        notes.append("the truth holds no object that counts: mAP is undefined")
    metrics = new.metrics
    if are_masks:
        of_boxes = average_precision(_sides(boxes)[1]).metrics
        metrics = {**of_boxes, "map_mask": new.map, "map50_mask": new.map50}
    change = None if old.map is None or new.map is None else new.map - old.map
    images = np.bincount([label for row in rows for label in row.classes], minlength=1).tolist()
    curve = precision_recall_curve(after)
    return replace(
        scores,
        metrics=defined(metrics),
        change=change,
        half_width=paired_interval(before, after) if change is not None else None,
        shifts=class_shifts(old.class_ap, new.class_ap, images),
        curve=() if curve is None else tuple(round(float(value), 5) for value in curve),
        notes=tuple(notes),
        primary="map_mask" if are_masks else "",
    )


def _sides(pairs: Sequence[Matches]) -> tuple[list[ImageMatches], list[ImageMatches]]:
    """Return the matches of FP32, and those of the engine."""
    return [pair.before for pair in pairs], [pair.after for pair in pairs]


DETECT = Task(
    "detect",
    "map",
    METRICS,
    compare,
    summarize,
    text="boxes with classes and scores",
    truth=(TrueBoxes,),
)
