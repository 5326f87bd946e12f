"""Outlines and run lengths of objects, and what COCO's files say of them."""

from typing import Any

import numpy as np
import pycocotools.mask
import pytest

from qconvert.images.coco_segmentation import parse_segmentation
from qconvert.images.object_masks import ObjectMasks, PixelMask, Polygons, RunLengths, outline_of

SIZE = (60, 40)


def drawn(value: object, size: tuple[int, int] = SIZE) -> np.ndarray[Any, Any]:
    shape = parse_segmentation(value)
    assert shape is not None
    return ObjectMasks((shape,), size).draw(0).on_picture(size)


def test_outline_holds_the_pixels_whose_centres_are_inside() -> None:
    expected = np.zeros(SIZE[::-1], np.bool_)
    expected[2:5, 1:4] = True
    # 0.5 is the middle of the first pixel, and the last row's is outside.
    assert (drawn([[0.6, 1.6, 4.2, 1.6, 4.2, 5.4, 0.6, 5.4]]) == expected).all()


def test_parts_of_an_object_add_up_and_what_lies_outside_is_cut_off() -> None:
    mask = drawn(
        [[-5, -5, 3, -5, 3, 3, -5, 3], [58, 38, 70, 38, 70, 50, 58, 50], [90, 90, 91, 90, 90, 91]]
    )
    expected = np.zeros(SIZE[::-1], np.bool_)
    expected[:3, :3] = expected[38:, 58:] = True
    assert (mask == expected).all()


def test_object_outside_the_picture_has_no_pixels() -> None:
    assert not drawn([[90, 90, 95, 90, 90, 95]]).any()


# The C code of pycocotools is of the time before NumPy 2.
@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")
def test_outlines_are_those_of_pycocotools_but_for_the_border() -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        angles = np.sort(generator.uniform(0, 2 * np.pi, 12))
        radius = generator.uniform(60, 120, 12)
        points = np.stack((150 + radius * np.cos(angles), 140 + radius * np.sin(angles)), axis=1)
        encoded = pycocotools.mask.frPyObjects([points.ravel().tolist()], 280, 300)
        theirs = pycocotools.mask.decode(encoded)[..., 0].astype(bool)
        ours = drawn([points.ravel().tolist()], (300, 280))
        shared = np.count_nonzero(ours & theirs) / np.count_nonzero(ours | theirs)
        assert shared > 0.98
        assert abs(int(ours.sum()) / int(theirs.sum()) - 1) < 0.01


@pytest.mark.parametrize("density", [0.0, 0.01, 0.5, 1.0])
def test_run_lengths_are_those_of_pycocotools(density: float) -> None:
    generator = np.random.default_rng(1)
    for _ in range(20):
        pixels = generator.random(SIZE[::-1]) < density
        encoded = pycocotools.mask.encode(np.asfortranarray(pixels.astype(np.uint8)))
        text = {"size": encoded["size"], "counts": encoded["counts"].decode()}
        assert (drawn(text) == pixels).all()
        flat = pixels.T.ravel()
        edges = np.flatnonzero(np.diff(np.concatenate(([False], flat))))
        counts = np.diff(np.concatenate(([0], edges, [flat.size]))).tolist()
        assert (drawn({"size": list(SIZE[::-1]), "counts": counts}) == pixels).all()


def test_run_lengths_of_a_large_picture_are_those_of_pycocotools() -> None:
    pixels = np.zeros((3000, 4000), np.uint8, order="F")
    pixels[1000:1003, 5:3990] = 1
    encoded = pycocotools.mask.encode(pixels)
    text = {"size": encoded["size"], "counts": encoded["counts"].decode()}
    assert (drawn(text, (4000, 3000)) == pixels.astype(bool)).all()


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        "polygon",
        [[]],
        [[1, 2, 3, 4]],
        [[1, 2, 3, 4, 5, 6, 7]],
        [[1, 2, 3, 4, 5, "6"]],
        [[1, 2, 3, 4, 5, float("nan")]],
        [[1, 2, 3, 4, 5, 6], 7],
        {},
        {"size": [2, 2]},
        {"size": [2, 2], "counts": [1, 2]},
        {"size": [2, 2], "counts": [5, -1]},
        {"size": [2, 2], "counts": [1.0, 3.0]},
        {"size": [2], "counts": [2]},
        {"size": [-2, -2], "counts": [4]},
        {"size": [2, 2], "counts": "~~"},
        {"size": [2, 2], "counts": "T"},
        {"size": [2, 2], "counts": "oooooooooooooo0"},
        {"size": [2, 2], "counts": ""},
        {"size": [2**62, 4], "counts": [2**64]},
    ],
)
def test_what_is_no_mask_is_none(value: object) -> None:
    assert parse_segmentation(value) is None


def test_shapes_refuse_nonsense() -> None:
    with pytest.raises(ValueError, match="3 or more"):
        Polygons((outline_of([1, 2, 3, 4]),))
    with pytest.raises(ValueError, match="add up to 3 pixels"):
        RunLengths(np.array([1, 2]), (2, 2))


def test_hash_changes_with_the_shapes() -> None:
    square, other = ([0, 0, 4, 0, 4, 4], [0, 0, 4, 0, 4, 5])
    sets = [
        ObjectMasks((Polygons((outline_of(square),)),), SIZE),
        ObjectMasks((Polygons((outline_of(other),)),), SIZE),
        ObjectMasks((Polygons((outline_of(square), outline_of(other))),), SIZE),
        ObjectMasks((RunLengths(np.array([2400]), SIZE),), SIZE),
        ObjectMasks((), SIZE),
    ]
    assert len({masks.to_bytes() for masks in sets}) == len(sets)


def test_area_counts_pixels() -> None:
    assert PixelMask(np.eye(3, dtype=np.bool_), 5, 7).area == 3
