"""Folders of drawn images, and the one that is part of the repository."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qconvert.demo import generator
from qconvert.demo.generator import CLASSES, draw_image
from qconvert.images import listing

SHIPPED = Path(__file__).resolve().parent.parent.parent / "calib_data"


def test_image_folder_labels_are_read_as_classes() -> None:
    counts: list[int] = []
    generator.write_images(Path("drawn"), seed=7, count=23, progress=counts.append)
    images = listing.attach_labels(listing.list_images(Path("drawn")))
    assert [item.label for item in images.items] == [number % len(CLASSES) for number in range(23)]
    assert images.classes.names == CLASSES
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
    images = listing.attach_labels(listing.list_images(SHIPPED))
    assert {item.label for item in images.items} == set(range(len(CLASSES)))
