"""COCO's metrics of instance masks, against pycocotools."""

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pycocotools.coco
import pycocotools.cocoeval
import pytest

from qconvert.tasks.detection_metrics import average_precision, match_image, paired_interval
from tests.tasks.mask_pictures import (
    DrawnMasks,
    MaskPicture,
    box_of,
    cropped,
    random_mask_pictures,
    run_lengths,
)


def coco_scores(pictures: Sequence[MaskPicture]) -> list[float]:
    """Return the first nine numbers of pycocotools for masks."""
    objects: list[dict[str, Any]] = []
    detections = []
    for image, picture in enumerate(pictures, 1):
        truth = picture.truth
        rows = zip(picture.true_masks, truth.classes, truth.crowd, truth.area, strict=True)
        for mask, label, crowd, area in rows:
            entry: dict[str, Any] = {
                "id": len(objects) + 1,
                "image_id": image,
                "category_id": int(label),
            }
            entry |= {"segmentation": run_lengths(mask), "area": float(area)}
            objects.append(entry | {"iscrowd": int(crowd), "bbox": box_of(mask)})
        for mask, label, score in zip(picture.masks, picture.classes, picture.scores, strict=True):
            entry = {"image_id": image, "category_id": int(label), "score": float(score)}
            detections.append(entry | {"segmentation": run_lengths(mask)})
    height, width = 70, 90
    images = [{"id": i, "width": width, "height": height} for i in range(1, len(pictures) + 1)]
    coco = pycocotools.coco.COCO()
    categories = [{"id": number} for number in range(3)]
    coco.dataset = {"images": images, "annotations": objects, "categories": categories, "info": {}}
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
        evaluation = pycocotools.cocoeval.COCOeval(coco, coco.loadRes(detections), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return list(evaluation.stats[:9])


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")
@pytest.mark.parametrize("crowds", [0.0, 0.4])
def test_scores_of_masks_are_those_of_pycocotools(crowds: float) -> None:
    compared = 0
    for seed in range(40):
        pictures = random_mask_pictures(seed, crowds=crowds)
        if not any(len(picture.scores) for picture in pictures):
            continue
        scores = average_precision([picture.match() for picture in pictures])
        own = [-1.0 if value is None else value for value in scores.metrics.values()]
        np.testing.assert_allclose(own, coco_scores(pictures), atol=1e-6, err_msg=f"seed {seed}")
        compared += scores.map is not None and scores.map > 0
    assert compared > 30


def test_interval_is_zero_only_where_masks_are_equal() -> None:
    pictures = random_mask_pictures(5, pictures=10)
    before = [picture.match() for picture in pictures]
    assert paired_interval(before, [picture.match() for picture in pictures]) == 0.0
    after = []
    for picture in pictures:
        boxes = np.array([box_of(mask) for mask in picture.masks], np.float32).reshape(-1, 4)
        rows = np.indices(picture.masks[0].shape)[0] if picture.masks else np.zeros(0)
        smaller = DrawnMasks(tuple(cropped(mask & (rows % 5 > 0)) for mask in picture.masks))
        after.append(match_image(boxes, picture.scores, picture.classes, picture.truth, smaller))
    half = paired_interval(before, after)
    assert half is not None
    assert half > 0


def test_masks_need_those_of_the_truth() -> None:
    picture = next(p for p in random_mask_pictures(1) if p.masks and p.true_masks)
    plain = type(picture.truth)(
        picture.truth.boxes, picture.truth.classes, picture.truth.crowd, picture.truth.area
    )
    drawn = DrawnMasks(tuple(map(cropped, picture.masks)))
    boxes = np.array([box_of(mask) for mask in picture.masks], np.float32)
    with pytest.raises(ValueError, match="which has none"):
        match_image(boxes, picture.scores, picture.classes, plain, drawn)
