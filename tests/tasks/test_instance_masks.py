"""Masks from prototypes and coefficients, in pixels of the picture."""

from dataclasses import replace
from typing import Any

import numpy as np
import pycocotools.mask
import pytest
from numpy.typing import NDArray

from qconvert.images.frames import Frame
from qconvert.images.object_masks import PixelMask
from qconvert.images.truth import TrueBoxes
from qconvert.measure import accuracy
from qconvert.report.tables import TASK_SCORES
from qconvert.tasks.decoders import decode, find_decoder
from qconvert.tasks.detect import DETECT
from qconvert.tasks.heads import Sample
from qconvert.tasks.instance_masks import PrototypeMasks, mask_overlaps
from qconvert.tasks.predictions import Detections
from qconvert.tasks.task import TaskScores
from tests.tasks.encoded_heads import HEADS, SIZE, batch_of, centred, random_objects
from tests.tasks.mask_pictures import cropped, random_mask_pictures, run_lengths, truth_with_masks

# A picture of 64 x 40 in an input of 128 x 96: twice as large, and 8 rows further down.
FRAME = Frame(64, 40, 128, 96, (2.0, 2.0), (0.0, 8.0))


def masks_of(sums: NDArray[Any], *boxes: list[float], frame: Frame = FRAME) -> PrototypeMasks:
    """Return masks of which the only prototype is a map of the input."""
    coefficients = np.ones((len(boxes), 1), np.float32)
    corners = np.array(boxes, np.float32).reshape(-1, 4)
    return PrototypeMasks(coefficients, sums[None].astype(np.float32), corners, frame)


def test_mask_lies_in_its_box_where_the_sum_is_positive() -> None:
    sums = np.full((24, 32), -1.0)
    sums[:, 16:] = 1.0  # from the middle of the picture on
    mask = masks_of(sums, [20.4, 10, 44, 30.6]).draw(0)
    expected = np.zeros((40, 64), np.bool_)
    expected[10:31, 32:44] = True
    assert (mask.on_picture((64, 40)) == expected).all()


def test_values_between_places_of_the_map_are_interpolated() -> None:
    rows, columns = np.indices((24, 32)) * 4 + 2.0  # middles of places, in pixels of the input
    frame = Frame(128, 96, 128, 96)
    mask = masks_of(columns - 51.0 + 0.5 * (rows - 30), [10, 10, 100, 80], frame=frame).draw(0)
    y, x = np.indices((96, 128)) + 0.5
    inside = (x > 10) & (x < 100) & (y > 10) & (y < 80)
    assert (mask.on_picture((128, 96)) == (inside & (x - 51 + 0.5 * (y - 30) > 0))).all()


@pytest.mark.parametrize(
    "box", [[3.6, 3.6, 4.4, 4.4], [0, 0, 0.2, 0.2], [64, 40, 64, 40], [5, 0.9, 9, 1.2]]
)
def test_box_around_no_centre_of_a_pixel_has_an_empty_mask(box: list[float]) -> None:
    assert masks_of(np.ones((24, 32)), box).draw(0).area == 0


def test_values_that_are_not_finite_are_no_pixels() -> None:
    masks = masks_of(np.ones((24, 32)), [2, 2, 9, 9], [2, 2, 9, 9])
    masks.coefficients[:, 0] = np.nan, 1.0
    assert [masks.draw(index).area for index in range(2)] == [0, 49]


def test_arrays_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="have the shapes"):
        PrototypeMasks(
            np.ones((1, 3), np.float32),
            np.ones((2, 4, 4), np.float32),
            np.ones((1, 4), np.float32),
            FRAME,
        )
    arrays = np.zeros((2, 4), np.float32), np.ones(2, np.float32), np.zeros(2, np.int32)
    masks = masks_of(np.ones((4, 4)), [1, 1, 3, 3])
    with pytest.raises(ValueError, match="2 detections have 1 masks"):
        Detections(*arrays, masks=masks)


def test_overlaps_are_those_of_pycocotools() -> None:
    for seed in range(10):
        for picture in random_mask_pictures(seed, crowds=0.5):
            if not picture.masks or not picture.true_masks:
                continue
            crowd = picture.truth.crowd
            sides = [list(map(run_lengths, m)) for m in (picture.masks, picture.true_masks)]
            expected = pycocotools.mask.iou(*sides, crowd.astype(np.uint8).tolist())
            for index, mask in enumerate(picture.true_masks):
                own = mask_overlaps(
                    [cropped(one) for one in picture.masks],
                    [cropped(mask)] * len(picture.masks),
                    np.full(len(picture.masks), crowd[index]),
                )
                np.testing.assert_allclose(own, expected[:, index], atol=1e-12)


def test_masks_apart_share_nothing() -> None:
    one, other = PixelMask(np.ones((2, 2), np.bool_)), PixelMask(np.ones((2, 2), np.bool_), 2, 0)
    assert mask_overlaps([one], [other], np.zeros(1, np.bool_)).tolist() == [0.0]


@pytest.mark.parametrize("family", ["v8, masks", "v5, masks", "v26, masks"])
def test_coefficients_stay_with_their_boxes(family: str) -> None:
    batch = batch_of(3)
    outputs = HEADS[family][2](batch)
    _, head = find_decoder(Sample(outputs, SIZE))
    assert head.outputs == ("output0", "output1")
    assert head.text.endswith("masks from 8 prototypes `output1`")
    results = decode(outputs, replace(head, threshold=0.1), [objects.frame for objects in batch])
    for number, (result, objects) in enumerate(zip(results, batch, strict=True)):
        assert isinstance(result, Detections)
        assert result.masks is not None
        assert len(result.masks) == len(result) == len(objects.boxes)
        assert (result.masks.boxes == result.boxes).all()
        rows = np.asarray(outputs["output0"][number])
        rows = rows.T if head.swapped else rows
        corners = objects.input_boxes if family == "v26, masks" else centred(objects.input_boxes)
        for index, corner in enumerate(corners):
            row = np.abs(rows[:, :4] - corner).sum(axis=1).argmin()
            assert (result.masks.coefficients[index] == rows[row, -8:]).all()
        assert (result.masks.prototypes == outputs["output1"][number]).all()
        assert len(result.first(2).masks or ()) == min(2, len(result))


def test_masks_of_torchvision_are_those_of_their_boxes() -> None:
    objects = random_objects(Frame(*SIZE, *SIZE), 4, seed=3)
    outputs = HEADS["torchvision, masks"][2]([objects])
    # In another order, so that boxes and masks are sorted by score.
    outputs = {name: np.asarray(array)[::-1] for name, array in outputs.items()}
    _, head = find_decoder(Sample(outputs, SIZE))
    assert head.text.endswith("masks `masks`")
    (result,) = decode(outputs, head, [objects.frame])
    assert isinstance(result, Detections)
    assert result.masks is not None
    for index, box in enumerate(objects.boxes):
        y, x = np.indices(SIZE[::-1]) + 0.5
        inside = (x > box[0]) & (x < box[2]) & (y > box[1]) & (y < box[3])
        own = np.asarray(outputs["masks"])[::-1][index, 0] > 0.5
        assert (result.masks.draw(index).on_picture(SIZE) == (inside & own)).all()


def test_other_maps_are_no_prototypes() -> None:
    outputs = HEADS["v8, masks"][2](batch_of(1))
    outputs["output1"] = np.asarray(outputs["output1"])[:, :5]
    _, head = find_decoder(Sample(outputs, SIZE))
    assert head.outputs == ("output0",)
    assert head.text.endswith("8 further columns are not read")


def scored(truth: TrueBoxes, *predictions: Detections) -> TaskScores:
    reference, detections = predictions[0], predictions[-1]
    scores: TaskScores = DETECT.summarize([DETECT.compare(reference, detections, truth)])
    return scores


def seen(sums: NDArray[Any]) -> Detections:
    """Return one detection whose mask is where a map of the picture is positive."""
    box = np.array([[10, 10, 30, 30]], np.float32)
    masks = PrototypeMasks(np.ones((1, 1), np.float32), sums[None], box, Frame(64, 40, 64, 40))
    return Detections(box, np.ones(1, np.float32), np.zeros(1, np.int32), masks=masks)


def test_masks_decide_where_network_and_truth_have_them() -> None:
    upper = np.zeros((40, 64), np.bool_)
    upper[10:20, 10:30] = True
    truth = truth_with_masks([upper], [0])
    truth = replace(truth, boxes=np.array([[10, 10, 30, 30]], np.float32))
    right = seen(np.where(upper, 1, -1).astype(np.float32))
    wrong = seen(np.where(upper, -1, 1).astype(np.float32))
    scores = scored(truth, right, wrong)
    # The boxes are the same, and agree.
    assert (scores.metrics["map"], scores.metrics["map_mask"]) == (1.0, 0.0)
    assert (scores.agreement, scores.change, scores.primary) == (1.0, -1.0, "map_mask")
    assert scored(truth, right).metrics["map50_mask"] == 1.0
    for plain in (
        scored(replace(truth, masks=None), right, wrong),
        scored(truth, replace(right, masks=None), wrong),
    ):
        assert (plain.change, plain.primary) == (0.0, "")
        assert "map_mask" not in plain.metrics


def test_accuracy_names_the_metric_of_masks_as_primary() -> None:
    outputs = np.zeros((1, 2, 3), np.float32)
    rows = accuracy.score_batch({"y": outputs}, {"y": outputs}, [None])
    plain = accuracy.summarize_accuracy(accuracy.join_scores([rows]), "engine")
    scores = TaskScores(1, {"map": 0.5, "map_mask": 0.25}, 1.0, primary="map_mask")
    assert accuracy.with_task(plain, DETECT, scores).primary == "map_mask"
    assert set(TASK_SCORES["detect"]) <= set(DETECT.metrics)
