"""Pictures of predictions that changed: which are drawn, and what they show."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qconvert.images.frames import Frame
from qconvert.run.prediction_pictures import LOST_COLOUR, NEW_COLOUR, PANEL, SHARED_COLOUR
from qconvert.run.prediction_pictures import _draw as draw
from qconvert.tasks.instance_masks import PrototypeMasks
from qconvert.tasks.predictions import ClassMap, Detections

SIZE = (40, 20)


def detections(*boxes: tuple[float, float, float, float], score: float = 0.9) -> Detections:
    count = len(boxes)
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.full(count, score, np.float32),
        np.zeros(count, np.int32),
    )


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.new("RGB", SIZE, (128, 128, 128)).save(tmp_path / "plain.png")
    return tmp_path / "plain.png"


def colours(image: Image.Image) -> set[tuple[int, ...]]:
    return {tuple(colour) for colour in np.asarray(image).reshape(-1, 3).tolist()}


def halves(image: Image.Image) -> tuple[Image.Image, Image.Image]:
    middle = image.width // 2
    return (
        image.crop((0, 0, middle, image.height)),
        image.crop((middle, 0, image.width, image.height)),
    )


def test_lost_boxes_are_red_on_the_left_and_new_ones_orange_on_the_right(picture: Path) -> None:
    both, lost, new = (2, 8, 10, 18), (14, 8, 22, 18), (26, 8, 36, 18)
    drawn = draw(picture, detections(both, lost), detections(both, new), ["dent"])
    left, right = map(colours, halves(drawn))
    assert {SHARED_COLOUR, LOST_COLOUR} <= left
    assert NEW_COLOUR not in left
    assert {SHARED_COLOUR, NEW_COLOUR} <= right
    assert LOST_COLOUR not in right
    assert left & {(128, 128, 128)}
    assert drawn.height == PANEL * SIZE[1] // SIZE[0]


def test_boxes_of_low_scores_are_not_drawn(picture: Path) -> None:
    few = detections((2, 8, 10, 18), score=0.2)
    assert not colours(draw(picture, few, few, [])) & {SHARED_COLOUR, LOST_COLOUR, NEW_COLOUR}


def test_masks_of_objects_are_shaded_in_the_colour_of_their_boxes(picture: Path) -> None:
    box = np.array([[10, 4, 30, 16]], np.float32)
    sums = np.full((1, *SIZE[::-1]), -1, np.float32)
    sums[:, :, 20:] = 1  # the right half of the picture
    masks = PrototypeMasks(np.ones((1, 1), np.float32), sums, box, Frame(*SIZE, *SIZE))
    seen = replace(detections((10, 4, 30, 16)), masks=masks)
    for after, colour in ((seen, SHARED_COLOUR), (detections(), LOST_COLOUR)):
        pixels = np.asarray(halves(draw(picture, seen, after, []))[0]).astype(int)
        shade = (np.array((128, 128, 128)) * 0.6 + np.array(colour) * 0.4).round().astype(int)
        scale = PANEL // SIZE[0]
        inside = pixels[8 * scale : 14 * scale, 22 * scale : 28 * scale]
        assert (inside == shade).all()
        outside = pixels[8 * scale : 14 * scale, 12 * scale : 18 * scale]
        assert (outside == 128).all()


def test_masks_cover_the_pixels_of_their_class_alone(picture: Path) -> None:
    frame = Frame(*SIZE, *SIZE)
    nothing, right_half = np.zeros((20, 40), np.int32), np.zeros((20, 40), np.int32)
    right_half[:, 20:] = 3
    drawn = draw(picture, ClassMap(nothing, frame), ClassMap(right_half, frame), [])
    before, after = (np.asarray(half) for half in halves(drawn))
    assert (before[:, :PANEL] == 128).all()
    start = after.shape[1] - PANEL
    assert (after[:, start : start + PANEL // 2 - 4] == 128).all()
    assert (after[:, start + PANEL // 2 + 4 :] != 128).any(axis=2).all()
