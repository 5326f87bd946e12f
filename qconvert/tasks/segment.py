"""The task `segment`: a class for each pixel."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qconvert.images.truth import TrueMask
from qconvert.images.truth_masks import read_mask
from qconvert.tasks.predictions import ClassMap
from qconvert.tasks.segmentation_metrics import (
    PixelAgreement,
    PixelCounts,
    count_pixels,
    paired_interval,
    pixel_agreement,
    segmentation_scores,
    total_agreement,
)
from qconvert.tasks.task import Task, TaskScores, class_shifts, defined

METRICS = {"miou": "mIoU", "pixel_accuracy": "pixels", "dice": "Dice"}


@dataclass(frozen=True, eq=False)
class SegmentationRow:
    """One picture: FP32's and the engine's pixels against the truth, and against each other."""

    before: PixelCounts | None
    after: PixelCounts | None
    shared: PixelAgreement


def compare(reference: ClassMap, prediction: ClassMap, truth: TrueMask | None) -> SegmentationRow:
    """Compare the classes of the pixels of one picture."""
    shared = pixel_agreement(reference.classes, prediction.classes)
    if truth is None:
        return SegmentationRow(None, None, shared)
    frame, classes = reference.frame, reference.class_count
    mask = read_mask(truth, (frame.width, frame.height), classes)
    before = count_pixels(mask, reference.to_picture(), classes)
    after = before
    if prediction is not reference:
        after = count_pixels(mask, prediction.to_picture(), classes)
    return SegmentationRow(before, after, shared)


def summarize(rows: Sequence[SegmentationRow]) -> TaskScores:
    """Return mean IoU, pixel accuracy and Dice, and the share of pixels with FP32's class."""
    before = [row.before for row in rows if row.before is not None]
    after = [row.after for row in rows if row.after is not None]
    agreement = total_agreement([row.shared for row in rows])
    by_image = tuple(row.shared.share for row in rows)
    if not before:
        return TaskScores(0, {}, agreement, by_image=by_image)
    old, new = segmentation_scores(before), segmentation_scores(after)
    change = None if old.miou is None or new.miou is None else new.miou - old.miou
    images = np.sum([counts.truth > 0 for counts in before], axis=0).tolist()
    return TaskScores(
        len(before),
        defined(new.metrics),
        agreement,
        change,
        paired_interval(before, after) if change is not None else None,
        by_image,
        class_shifts(old.class_iou, new.class_iou, images),
    )


SEGMENT = Task(
    "segment", "miou", METRICS, compare, summarize, text="a class for each pixel", truth=(TrueMask,)
)
