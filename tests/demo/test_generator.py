"""The drawn images are reproducible and show their class, alone, in folders and as shipped."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qconvert.demo import generator
from qconvert.demo.generator import CLASSES, DEFECTS, IMAGE_SIZE, Surface, blank_surface, draw_image
from qconvert.images import listing

SHIPPED = Path(__file__).resolve().parent.parent.parent / "calib_data"


def test_image_folder_labels_are_read_as_classes() -> None:
    counts: list[int] = []
    generator.write_images(Path("drawn"), seed=7, count=23, progress=counts.append)
    labels, classes = listing.find_labels(Path("drawn"), listing.list_images(Path("drawn")))
    assert labels == [number % len(CLASSES) for number in range(23)]
    assert classes.names == CLASSES
    assert counts == list(range(1, 24))


def test_image_folder_bytes_follow_from_the_seed() -> None:
    for name in ("one", "two"):
        generator.write_images(Path(name), seed=7, count=12)
    one, two = (
        {file.name: file.read_bytes() for file in Path(name).iterdir()} for name in ("one", "two")
    )
    assert one == two


@pytest.mark.slow
def test_shipped_images_match_the_generator() -> None:
    """Compares pixels, because another release of Pillow may encode the same image differently."""
    files = sorted(SHIPPED.glob("*.jpg"))
    assert len(files) == generator.CALIBRATION_COUNT
    for number, file in enumerate(files):
        drawn = draw_image(generator.CALIBRATION_SEED, number)
        assert file.name == drawn.name
        shipped = np.asarray(Image.open(file)).astype(int)
        assert np.abs(shipped - drawn.decode()).mean() < 1


def test_shipped_images_are_small_and_of_every_class() -> None:
    assert sum(file.stat().st_size for file in SHIPPED.iterdir()) < 3_000_000
    labels, _ = listing.find_labels(SHIPPED, listing.list_images(SHIPPED))
    assert set(labels) == set(range(len(CLASSES)))


def test_image_of_a_seed_is_independent_of_drawing_order() -> None:
    expected = [draw_image(7, number).jpeg for number in range(12)]
    assert [draw_image(7, number).jpeg for number in reversed(range(12))] == expected[::-1]
    assert len(set(expected)) == len(expected)


def test_seeds_share_no_image() -> None:
    three = generator.TRAINING_SEED, generator.CALIBRATION_SEED, generator.EVALUATION_SEED
    drawn = {draw_image(seed, number).jpeg for seed in three for number in range(20)}
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
