import contextlib
import io
import time
from collections.abc import Sequence
from typing import Any

import faster_coco_eval
import numpy as np
import pycocotools.coco
import pycocotools.cocoeval
import pytest
from numpy.typing import NDArray

from qconvert.tasks.detection_metrics import (
    DetectionScores,
    average_precision,
    match_image,
    paired_interval,
    precision_recall_curve,
)
from tests.tasks.random_detections import Kind, Picture, random_pictures, truth_of

NAMES = ("map", "map50", "map75", "map_small", "map_medium", "map_large", "ar1", "ar10", "ar100")
KINDS = {
    "plain": Kind(),
    "crowds": Kind(crowds=0.4),
    "ties": Kind(grid=True, crowds=0.2),
    "many": Kind(pictures=2, objects=30, detections=450, classes=2, crowds=0.1),
    "large": Kind(side=600, objects=12, detections=30, classes=6),
    "sparse": Kind(objects=1, detections=3, classes=8),
    "no detections": Kind(detections=0),
    "no objects": Kind(objects=0),
}


def coco_dataset(pictures: Sequence[Picture]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the objects in COCO's form, and the detections."""
    objects: list[dict[str, Any]] = []
    detections = []
    highest = 0
    for image, picture in enumerate(pictures, 1):
        truth = picture.truth
        for box, label, crowd, area in zip(
            truth.boxes, truth.classes, truth.crowd, truth.area, strict=True
        ):
            annotation = {"area": float(area), "iscrowd": int(crowd), "id": len(objects) + 1}
            objects.append({**annotation, **_entry(image, box, label)})
        for box, label, score in zip(picture.boxes, picture.classes, picture.scores, strict=True):
            detections.append({**_entry(image, box, label), "score": float(score)})
        highest = max([highest, *truth.classes.tolist(), *picture.classes.tolist()])
    images = [{"id": i, "width": 999, "height": 999} for i in range(1, len(pictures) + 1)]
    categories = [{"id": number, "name": str(number)} for number in range(highest + 1)]
    content = {"images": images, "annotations": objects, "categories": categories, "info": {}}
    return content, detections


def _entry(image: int, box: NDArray[np.float32], label: int) -> dict[str, Any]:
    left, top, right, bottom = map(float, box)
    bbox = [left, top, right - left, bottom - top]
    return {"image_id": image, "category_id": int(label), "bbox": bbox}


def coco_scores(pictures: Sequence[Picture], library: str) -> tuple[list[float], NDArray[Any]]:
    """Return the first nine numbers of COCO's summary, and the precisions behind them."""
    content, detections = coco_dataset(pictures)
    with contextlib.redirect_stdout(io.StringIO()):
        if library == "pycocotools":
            coco = pycocotools.coco.COCO()
            coco.dataset = content
            coco.createIndex()
            evaluation = pycocotools.cocoeval.COCOeval(coco, coco.loadRes(detections), "bbox")
        else:
            coco = faster_coco_eval.COCO(content)
            results = coco.loadRes(detections)
            evaluation = faster_coco_eval.COCOeval_faster(
                coco, results, "bbox", print_function=print
            )
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return list(evaluation.stats[:9]), evaluation.eval["precision"]


def as_coco(value: float | None) -> float:
    return -1.0 if value is None else value


def numbers(scores: DetectionScores) -> list[float]:
    assert tuple(scores.metrics) == NAMES
    return [as_coco(value) for value in scores.metrics.values()]


def per_class(precision: NDArray[Any]) -> list[float]:
    """Return the mean over thresholds and recalls of each class, of all sizes."""
    return [float(precision[:, :, number, 0, 2].mean()) for number in range(precision.shape[2])]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("library", ["pycocotools", "faster-coco-eval"])
def test_scores_are_those_of_coco(name: str, library: str) -> None:
    for seed in range(8 if name == "many" else 40):
        pictures = random_pictures(KINDS[name], seed)
        if not any(len(picture.scores) for picture in pictures):
            continue  # neither library reads an empty list of results
        expected, precision = coco_scores(pictures, library)
        scores = average_precision([picture.match() for picture in pictures])
        np.testing.assert_allclose(numbers(scores), expected, atol=1e-6, err_msg=f"seed {seed}")
        own = [as_coco(value) for value in scores.class_ap]
        np.testing.assert_allclose(own, per_class(precision), atol=1e-6)


def test_no_detections_score_zero() -> None:
    pictures = random_pictures(Kind(detections=0), 1)
    assert any(len(picture.truth.boxes) for picture in pictures)
    scores = average_precision([picture.match() for picture in pictures])
    assert (scores.map, scores.map50, scores.ar100) == (0.0, 0.0, 0.0)
    curve = precision_recall_curve([picture.match() for picture in pictures])
    assert curve is not None
    assert curve.tolist() == [0.0] * 101


def test_without_objects_nothing_is_defined() -> None:
    for pictures in (random_pictures(Kind(objects=0), 1), []):
        matches = [picture.match() for picture in pictures]
        scores = average_precision(matches)
        assert all(getattr(scores, name) is None for name in NAMES)
        assert set(scores.class_ap) <= {None}
        assert precision_recall_curve(matches) is None
        assert paired_interval(matches, matches) is None


def test_detections_equal_to_the_objects_score_one() -> None:
    pictures = random_pictures(Kind(pictures=20), 3)
    matches = [
        match_image(truth.boxes, np.ones(len(truth.boxes), np.float32), truth.classes, truth)
        for truth in (picture.truth for picture in pictures)
    ]
    scores = average_precision(matches)
    assert (scores.map, scores.map50, scores.ar100) == (1.0, 1.0, 1.0)
    curve = precision_recall_curve(matches)
    assert curve is not None
    assert curve.tolist() == [1.0] * 101


def test_values_that_are_not_finite_are_left_out() -> None:
    truth = truth_of(np.array([[0, 0, 10, 10]], np.float32), [0])
    boxes = np.array([[0, 0, 10, 10], [0, 0, np.nan, 10], [0, 0, 10, 10]], np.float32)
    scores = np.array([np.nan, 0.9, 0.5], np.float32)
    matches = match_image(boxes, scores, np.zeros(3, np.int32), truth)
    assert matches.scores.tolist() == [0.5]
    assert average_precision([matches]).map == 1.0


@pytest.mark.parametrize("name", ["plain", "crowds", "large"])
def test_weights_count_pictures_several_times(name: str) -> None:
    for seed in range(20):
        pictures = random_pictures(KINDS[name], seed)
        matches = [picture.match() for picture in pictures]
        weights = np.random.default_rng(seed).integers(0, 4, len(matches))
        repeated = [
            image for image, times in zip(matches, weights, strict=True) for _ in range(times)
        ]
        weighted, plain = average_precision(matches, weights), average_precision(repeated)
        np.testing.assert_allclose(numbers(weighted), numbers(plain), atol=1e-9)


def test_curve_is_that_of_coco_where_there_is_one_class() -> None:
    for seed in range(20):
        pictures = random_pictures(Kind(classes=1, pictures=6), seed)
        for picture in pictures:
            picture.classes[:] = 0
        _, precision = coco_scores(pictures, "pycocotools")
        curve = precision_recall_curve([picture.match() for picture in pictures])
        assert curve is not None
        np.testing.assert_allclose(curve, precision[0, :, 0, 0, 2], atol=1e-6)


def shaken(pictures: Sequence[Picture], pixels: float, seed: int = 9) -> list[Picture]:
    """Return pictures whose detections are moved a little."""
    generator = np.random.default_rng(seed)
    moved = []
    for picture in pictures:
        boxes = picture.boxes + pixels * generator.normal(size=picture.boxes.shape)
        moved.append(
            Picture(picture.truth, boxes.astype(np.float32), picture.scores, picture.classes)
        )
    return moved


def test_interval_is_zero_only_where_detections_are_equal() -> None:
    pictures = random_pictures(Kind(pictures=10), 5)
    before = [picture.match() for picture in pictures]
    assert paired_interval(before, [picture.match() for picture in pictures]) == 0.0
    # So small a change moves no detection across a threshold, and mAP stays the same.
    after = [picture.match() for picture in shaken(pictures, 1e-5)]
    assert average_precision(before) == average_precision(after)
    half = paired_interval(before, after)
    assert half is not None
    assert 0 < half < 0.02


def test_interval_is_the_same_each_time_and_grows_with_the_change() -> None:
    pictures = random_pictures(Kind(pictures=40), 5)
    before = [picture.match() for picture in pictures]
    widths = []
    for pixels in (0.3, 3.0):
        after = [picture.match() for picture in shaken(pictures, pixels)]
        half = paired_interval(before, after, resamples=200)
        assert half == paired_interval(before, after, resamples=200)
        assert half is not None
        widths.append(half)
    assert 0 < widths[0] < widths[1] < 0.2


@pytest.mark.slow
def test_interval_of_300_pictures_of_80_classes_takes_seconds() -> None:
    kind = Kind(pictures=300, objects=14, detections=200, classes=80, side=640)
    pictures = random_pictures(kind, 1)
    before = [picture.match() for picture in pictures]
    after = [picture.match() for picture in shaken(pictures, 1.0)]
    start = time.process_time()
    assert paired_interval(before, after, resamples=200) is not None
    assert time.process_time() - start < 5
