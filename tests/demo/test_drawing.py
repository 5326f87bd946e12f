"""The drawn images are reproducible for a seed, cover all classes and show their class."""

import numpy as np
import pytest

from qconvert.demo import generator
from qconvert.demo.generator import CLASSES, DEFECTS, IMAGE_SIZE, Surface, blank_surface, draw_image


def test_image_of_a_seed_is_independent_of_drawing_order() -> None:
    expected = [draw_image(7, number).encode_jpeg() for number in range(12)]
    assert [draw_image(7, number).encode_jpeg() for number in reversed(range(12))] == expected[::-1]
    assert len(set(expected)) == len(expected)


def test_seeds_share_no_image() -> None:
    three = generator.TRAINING_SEED, generator.CALIBRATION_SEED, generator.EVALUATION_SEED
    drawn = {draw_image(seed, number).encode_jpeg() for seed in three for number in range(20)}
    assert len(drawn) == 60


def test_classes_are_balanced_and_in_file_names() -> None:
    images = [draw_image(7, number) for number in range(2 * len(CLASSES))]
    assert sorted(image.label for image in images) == sorted(2 * list(range(len(CLASSES))))
    for number, image in enumerate(images):
        assert image.name == f"{number:04}-{CLASSES[image.label]}.jpg"


def test_images_are_rgb_with_a_realistic_brightness_range() -> None:
    pixels = np.stack([draw_image(7, number).decode() for number in range(40)])
    assert pixels.shape == (40, IMAGE_SIZE, IMAGE_SIZE, 3)
    assert pixels.dtype == np.uint8
    brightness = pixels.mean((1, 2, 3))
    assert brightness.min() < 90
    assert brightness.max() > 160
    assert pixels.std((1, 2, 3)).min() > 3


@pytest.mark.parametrize("name", CLASSES)
def test_defect_changes_part_of_a_surface_and_plain_changes_nothing(name: str) -> None:
    random = np.random.default_rng(3)
    for _ in range(5):
        before = blank_surface(random)
        share = _changed(before, DEFECTS[name](random, before))
        if name == "plain":
            assert share == 0
        else:
            assert 0.002 < share < 0.6


def _changed(before: Surface, after: Surface) -> float:
    moved = np.abs(after.height - before.height) > 0.05
    tinted = np.abs(after.colour - before.colour).max(0) > 0.02
    return float((moved | tinted).mean())
