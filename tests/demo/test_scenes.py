"""Boxes and masks of drawn scenes are exact, and their files follow the formats that they name."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qconvert.demo import generator, scenes
from qconvert.demo.scenes import CLASSES, DEFECTS, SCENE_SIZE, draw_scene

COUNT = 8


@pytest.fixture(scope="module")
def drawn() -> list[scenes.Scene]:
    return [draw_scene(7, number) for number in range(40)]


def test_box_is_the_extent_of_its_mask(drawn: list[scenes.Scene]) -> None:
    defects = [defect for scene in drawn for defect in scene.defects]
    for defect in defects:
        rows, columns = np.nonzero(defect.mask)
        extent = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert defect.box.tolist() == extent
        assert defect.box.min() >= 1
        assert defect.box.max() <= SCENE_SIZE - 1
    assert {defect.label for defect in defects} == set(range(len(CLASSES)))


def test_scene_has_0_to_4_defects_that_share_no_pixel(drawn: list[scenes.Scene]) -> None:
    assert {len(scene.defects) for scene in drawn} == set(range(scenes.MAX_DEFECTS + 1))
    for scene in drawn:
        pixels = sum(int(defect.mask.sum()) for defect in scene.defects)
        assert np.count_nonzero(scene.class_map()) == pixels


@pytest.mark.parametrize("name", CLASSES)
def test_mask_covers_what_a_defect_changes(name: str) -> None:
    """A stain's rim, the shadow of drops and the slope around a dent lie outside of the masks."""
    random, inside, total = np.random.default_rng(3), 0.0, 0.0
    for _ in range(8):
        before = generator.blank_surface(random, SCENE_SIZE)
        after = DEFECTS[name](random, before)
        if (defect := scenes.outline(after, CLASSES.index(name))) is not None:
            change = np.abs(after.height - before.height) + np.abs(after.colour - before.colour)
            inside += float(change.sum(0)[defect.mask].sum())
            total += float(change.sum())
    assert inside > 0.8 * total > 0


def test_defect_that_touches_the_border_or_is_tiny_has_no_outline() -> None:
    surface = generator.blank_surface(np.random.default_rng(3), SCENE_SIZE)
    coverage = np.zeros((SCENE_SIZE, SCENE_SIZE), np.float32)
    coverage[40:43, 50:54] = 1
    assert scenes.outline(surface.with_defect(coverage), CLASSES.index("stain")) is None
    coverage[40:60, 50:54] = 1
    whole = scenes.outline(surface.with_defect(coverage), CLASSES.index("stain"))
    assert whole is not None
    assert whole.box.tolist() == [50, 40, 54, 60]
    coverage[60:, 50:54] = 1
    assert scenes.outline(surface.with_defect(coverage), CLASSES.index("stain")) is None


def test_thin_defect_has_a_mask_one_pixel_wider_on_each_side() -> None:
    surface = generator.blank_surface(np.random.default_rng(3), SCENE_SIZE)
    coverage = np.zeros((SCENE_SIZE, SCENE_SIZE), np.float32)
    coverage[40, 50:90] = 1
    defect = scenes.outline(surface.with_defect(coverage), CLASSES.index("scratch"))
    assert defect is not None
    assert defect.box.tolist() == [49, 39, 91, 42]


@pytest.mark.parametrize("task", ["detect", "segment"])
def test_bytes_of_a_folder_follow_from_the_seed(task: scenes.Task) -> None:
    for name in ("one", "two"):
        scenes.write_images(Path(name), 7, COUNT, task)
    one, two = (
        {file.relative_to(name): file.read_bytes() for file in Path(name).rglob("*.*")}
        for name in ("one", "two")
    )
    assert one == two


def test_annotations_are_coco_and_agree_with_the_images() -> None:
    counts: list[int] = []
    scenes.write_images(Path("drawn"), 7, COUNT, "detect", counts.append)
    assert counts == list(range(1, COUNT + 1))
    data = json.loads(Path("drawn/annotations.json").read_text())
    assert [category["name"] for category in data["categories"]] == list(CLASSES)
    names = {image["id"]: image["file_name"] for image in data["images"]}
    files = sorted(Path("drawn/images").iterdir())
    assert sorted(names.values()) == [file.name for file in files]
    for image in data["images"]:
        with Image.open(Path("drawn/images") / image["file_name"]) as picture:
            assert picture.size == (image["width"], image["height"])
    objects = data["annotations"]
    assert [item["id"] for item in objects] == list(range(1, len(objects) + 1))
    expected = [
        (number, defect.label + 1, defect.box.tolist())
        for number in range(1, COUNT + 1)
        for defect in draw_scene(7, number - 1).defects
    ]
    for item, (image_id, category, (left, top, right, bottom)) in zip(
        objects, expected, strict=True
    ):
        assert (item["image_id"], item["category_id"]) == (image_id, category)
        assert item["bbox"] == [left, top, right - left, bottom - top]
        assert 0 < item["area"] <= item["bbox"][2] * item["bbox"][3]


def test_masks_hold_a_line_of_the_classes_file_for_each_pixel() -> None:
    scenes.write_images(Path("drawn"), 7, COUNT, "segment")
    assert Path("drawn/classes.txt").read_text().split() == ["background", *CLASSES]
    images = sorted(path.stem for path in Path("drawn/images").iterdir())
    masks = sorted(Path("drawn/masks").iterdir())
    assert [path.stem for path in masks] == images
    for number, path in enumerate(masks):
        with Image.open(path) as mask:
            assert mask.mode == "L"
            assert np.array_equal(np.asarray(mask), draw_scene(7, number).class_map())


def test_scenes_are_none_of_the_images_of_the_classifier() -> None:
    seeds = generator.TRAINING_SEED, generator.CALIBRATION_SEED, generator.EVALUATION_SEED
    drawings = {draw_scene(seed, number).jpeg for seed in seeds for number in range(8)}
    assert len(drawings) == 24
    assert draw_scene(7, 3).decode().shape == (SCENE_SIZE, SCENE_SIZE, 3)
