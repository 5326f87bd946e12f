from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from qconvert.core.tensors import TensorSpec
from qconvert.images import ImageChoice, open_images
from qconvert.images.frames import OUTSIDE, Frame, frame_of, mask_to_picture
from qconvert.images.preprocess import Preprocess, find_image_input, fit_to_input, make_converter

RULES: dict[str, tuple[dict[str, Any], tuple[int, int]]] = {
    "letterbox": ({"resize": "letterbox"}, (64, 96)),
    "letterbox of its own size": ({"resize": "letterbox:96x64"}, (64, 96)),
    "exact size": ({"resize": (96, 64)}, (64, 96)),
    "shorter side and crop": ({"resize": 72}, (64, 64)),
    "model's size": ({}, (64, 64)),
}
SIZES = [(200, 150), (150, 200), (97, 61), (301, 64), (64, 64)]


def fitted(rule: str, size: tuple[int, int]) -> tuple[Frame, Any]:
    settings, (height, width) = RULES[rule]
    spec = TensorSpec("x", np.dtype("float32"), ("N", 3, height, width))
    preprocess, image_input = fit_to_input(Preprocess.from_dict(settings), find_image_input([spec]))
    return frame_of(preprocess, image_input, size), make_converter(preprocess, image_input)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("rule", RULES)
def test_frame_says_where_preprocessing_puts_a_rectangle(rule: str, size: tuple[int, int]) -> None:
    frame, convert = fitted(rule, size)
    image = Image.new("RGB", size, "black")
    box = [size[0] * 0.45, size[1] * 0.35, size[0] * 0.55, size[1] * 0.7]
    box = [round(corner) for corner in box]
    ImageDraw.Draw(image).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill="white")
    bright = convert(image, "picture")[1] > 0.75
    rows, columns = np.flatnonzero(bright.any(axis=1)), np.flatnonzero(bright.any(axis=0))
    seen = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    expected = frame.to_input([box])[0]
    assert np.abs(np.array(seen) - expected).max() <= 1.1
    assert np.abs(frame.to_picture([expected])[0] - box).max() <= 1e-3


@pytest.mark.parametrize("rule", RULES)
def test_boxes_of_the_input_are_cut_at_the_edges_of_the_picture(rule: str) -> None:
    frame, _ = fitted(rule, (201, 147))
    boxes = frame.to_picture([[-1e6, -1e6, 1e6, 1e6], [1e6, 0, 2e6, 5]])
    assert boxes[0].tolist() == [0, 0, 201, 147]
    assert boxes[1, 0] == boxes[1, 2] == 201
    assert frame.to_picture(np.zeros((0, 4))).shape == (0, 4)


@pytest.mark.parametrize("rule", RULES)
def test_mask_returns_to_the_picture(rule: str) -> None:
    size = (120, 90)
    frame, convert = fitted(rule, size)
    image = Image.new("RGB", size, "black")
    ImageDraw.Draw(image).rectangle((40, 30, 79, 59), fill="white")
    mask = (convert(image, "picture")[0] > 0.6).astype(np.uint8)
    classes = mask_to_picture(mask, frame)
    truth = np.asarray(image)[:, :, 0] // 255
    visible = classes != OUTSIDE
    assert classes.shape == (90, 120)
    assert np.mean(classes[visible] == truth[visible]) > 0.985
    assert visible.all() == ("crop" not in rule and "model" not in rule)


def test_mask_of_half_the_resolution_returns_to_the_picture() -> None:
    frame = Frame(8, 4, 8, 8, offset=(0.0, 2.0))
    mask = np.arange(16).reshape(4, 4)
    classes = mask_to_picture(mask, frame)
    assert classes.tolist() == [[4, 4, 5, 5, 6, 6, 7, 7]] * 2 + [[8, 8, 9, 9, 10, 10, 11, 11]] * 2


@pytest.mark.parametrize(("sizes", "scale"), [((0, 4, 4, 4), (1, 1)), ((4, 4, 4, 4), (0, 1))])
def test_frame_without_area_is_refused(
    sizes: tuple[int, int, int, int], scale: tuple[float, float]
) -> None:
    with pytest.raises(ValueError, match="above 0"):
        Frame(*sizes, scale=scale)


def frames_of(path: Path, shape: Sequence[int | str]) -> list[Frame]:
    spec = TensorSpec("x", np.dtype("float32"), tuple(shape))
    images = open_images(ImageChoice(path), [spec], Preprocess.from_dict({"resize": "letterbox"}))
    return [frame for batch in images.batches(2) for frame in batch.frames]


def test_batches_of_files_have_the_frame_of_each_upright_picture(tmp_path: Path) -> None:
    for number, size in enumerate([(40, 30), (30, 60), (50, 10)]):
        exif = Image.Exif()
        exif[0x0112] = 6  # to be turned by 90 degrees
        image = Image.new("RGB", size)
        image.save(tmp_path / f"{number}.jpg", exif=exif if number == 1 else Image.Exif())
    frames = frames_of(tmp_path, ("N", 3, 64, 64))
    assert [(frame.width, frame.height) for frame in frames] == [(40, 30), (60, 30), (50, 10)]
    assert frames[0] == Frame(40, 30, 64, 64, (1.6, 1.6), (0.0, 8.0))


@pytest.mark.parametrize(
    ("shape", "expected"), [((3, 3, 20, 30), (30, 20)), ((3, 20, 30, 1), (30, 20)), ((3, 7), None)]
)
def test_rows_of_arrays_are_pictures_as_they_are(
    tmp_path: Path, shape: tuple[int, ...], expected: tuple[int, int] | None
) -> None:
    np.savez(tmp_path / "rows.npz", x=np.zeros(shape, np.float32))
    frames = frames_of(tmp_path / "rows.npz", ("N", *shape[1:]))
    assert frames == ([Frame(*expected, *expected)] * 3 if expected else [])


@pytest.mark.parametrize(
    ("settings", "is_cut"),
    [
        ({"resize": "letterbox"}, False),
        ({"resize": [24, 24]}, False),
        ({"resize": 24, "crop": 24}, True),
        ({"resize": 30, "crop": 24}, True),
    ],
)
def test_frame_says_whether_a_part_of_the_picture_is_cut_off(
    settings: dict[str, object], is_cut: bool
) -> None:
    spec = TensorSpec("x", np.dtype(np.float32), ("N", 3, 24, 24))
    preparation = fit_to_input(Preprocess.from_dict(settings), find_image_input([spec]))
    assert frame_of(*preparation, (48, 36)).is_cut == is_cut
    # The rounding of a pixel is no loss.
    assert not Frame(24, 25, 24, 24).is_cut
