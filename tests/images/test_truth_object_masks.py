"""Masks of objects in the truth, from COCO's segmentation and YOLO's outlines."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qconvert.images.listing import list_images
from qconvert.images.truth import TrueBoxes, truth_digest
from qconvert.images.truth_files import TruthSet, find_truth
from tests.images.truth_folders import coco_content, write_json, write_pictures, write_text

SQUARE = [4, 4, 14, 4, 14, 14, 4, 14]


def write_coco(folder: Path, *segmentations: object) -> TruthSet:
    """Write two pictures, of which the first has an object for each segmentation, and read them."""
    pictures = write_pictures(folder / "images", "a.png", "b.png")
    content = coco_content({"a.png": [(7, [4, 4, 10, 10])] * len(segmentations), "b.png": []})
    for row, value in zip(content["annotations"], segmentations, strict=True):
        if value is not None:
            row["segmentation"] = value
    write_json(folder / "annotations.json", content)
    truth = find_truth(pictures, list_images(pictures))
    assert truth is not None
    return truth


def boxes_of(truth: TruthSet, index: int = 0) -> TrueBoxes:
    boxes = truth.truths[index]
    assert isinstance(boxes, TrueBoxes)
    return boxes


def test_coco_masks_are_drawn_in_the_picture(tmp_path: Path) -> None:
    runs = {"size": [30, 40], "counts": [4 * 30 + 4, 10, 1200 - 4 * 30 - 14]}
    truth = write_coco(tmp_path, [SQUARE], runs)
    first, second = boxes_of(truth), boxes_of(truth, 1)
    assert first.masks is not None
    assert second.masks is not None
    assert (len(first.masks), len(second.masks)) == (2, 0)
    square = np.zeros((30, 40), np.bool_)
    square[4:14, 4:14] = True
    assert (first.masks.draw(0).on_picture((40, 30)) == square).all()
    column = np.zeros((30, 40), np.bool_)
    column[4:14, 4] = True
    assert (first.masks.draw(1).on_picture((40, 30)) == column).all()
    assert not any("no mask" in note for note in truth.notes)


@pytest.mark.parametrize(
    "other", [None, [], [[1, 2]], {"size": [40, 30], "counts": [1200]}, {"size": [30, 40]}]
)
def test_masks_of_some_objects_are_no_masks_and_a_note_says_so(tmp_path: Path, other: Any) -> None:
    truth = write_coco(tmp_path, [SQUARE], other)
    assert boxes_of(truth).masks is None
    assert boxes_of(truth, 1).masks is None
    (note,) = (note for note in truth.notes if "no mask that fits" in note)
    assert "1 of 2 objects of `annotations.json` have no mask that fits" in note
    assert "`annotations[1]`" in note


def test_boxes_alone_have_no_masks_and_no_note(tmp_path: Path) -> None:
    truth = write_coco(tmp_path, None, [])
    assert boxes_of(truth).masks is None
    assert not any("no mask" in note for note in truth.notes)


def test_digest_changes_with_the_masks(tmp_path: Path) -> None:
    digests = set()
    for number, value in enumerate(([SQUARE], [SQUARE[:6]], [SQUARE[:6], SQUARE], None)):
        truth = write_coco(tmp_path / str(number), value)
        digests.add(truth_digest(truth.truths[0]))
    assert len(digests) == 4


def test_outlines_of_yolo_are_masks(tmp_path: Path) -> None:
    pictures = write_pictures(tmp_path / "images", "a.png")
    write_text(tmp_path / "labels" / "a.txt", "1 0.1 0.1 0.6 0.1 0.6 0.5 0.1 0.5\n")
    truth = find_truth(pictures, list_images(pictures))
    assert truth is not None
    masks = boxes_of(truth).masks
    assert masks is not None
    expected = np.zeros((30, 40), np.bool_)
    expected[3:15, 4:24] = True
    assert (masks.draw(0).on_picture((40, 30)) == expected).all()


def test_masks_are_as_many_as_boxes(tmp_path: Path) -> None:
    boxes = boxes_of(write_coco(tmp_path, [SQUARE]))
    with pytest.raises(ValueError, match="0 boxes, but 1 masks"):
        TrueBoxes(
            boxes.boxes[:0], boxes.classes[:0], boxes.crowd[:0], boxes.area[:0], masks=boxes.masks
        )
