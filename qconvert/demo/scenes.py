"""The pictures of the demo's detector and segmenter: surfaces with several defects each.

The pixels of a defect follow from the plane that drew it, and its box is their extent.
"""

import io
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from qconvert.demo import generator
from qconvert.demo.generator import Point, Random, Surface

Task = Literal["detect", "segment"]
Mask = NDArray[np.bool_]
Box = NDArray[np.int32]

SCENE_SIZE = 160
MAX_DEFECTS, ATTEMPTS = 4, 12
MIN_COVERAGE = 0.15  # from which share of a pixel the pixel belongs to the defect
MIN_PIXELS = 24
MAX_OVERLAP = 0.25  # of the boxes of two defects, as a share of the smaller box
PURPOSE = 1  # tells the random numbers of scenes from those of the classifier's images


def pit_cluster(random: Random, surface: Surface) -> Surface:
    """Sink small dark holes close together."""
    return generator.pits(random, surface, _cluster(random, surface.size))


def spatter_cluster(random: Random, surface: Surface) -> Surface:
    """Add shining drops of weld metal close together."""
    return generator.drops(random, surface, _cluster(random, surface.size))


def _cluster(random: Random, size: int) -> Callable[[], Point]:
    """Return a function that returns random points of a small square."""
    (x, y), reach = generator.random_point(random, size, 0.15), random.uniform(9, 24)
    return lambda: (x + random.uniform(-reach, reach), y + random.uniform(-reach, reach))


# A burr is no part of this: it runs along a whole side and has no outline of its own.
DEFECTS: dict[str, Callable[[Random, Surface], Surface]] = {
    "scratch": generator.groove,
    "crack": generator.crack,
    "dent": generator.dent,
    "pit": pit_cluster,
    "stain": generator.stain,
    "rust": generator.rust_spot,
    "spatter": spatter_cluster,
    "peel": generator.peel,
}
CLASSES = tuple(DEFECTS)
THIN = {"scratch", "crack"}  # their masks have a margin of one pixel, as the blur of a camera has


@dataclass(frozen=True, eq=False)
class Defect:
    """The number of its class, its pixels, and their extent: left, top, right, bottom."""

    label: int
    mask: Mask
    box: Box


@dataclass(frozen=True, eq=False)
class Scene:
    """The bytes of an image file, its name, and the defects that the image shows."""

    jpeg: bytes
    name: str
    defects: tuple[Defect, ...]

    def decode(self) -> NDArray[np.uint8]:
        """Return the pixels as a reader of the file sees them."""
        return np.asarray(Image.open(io.BytesIO(self.jpeg)))

    def class_map(self) -> NDArray[np.uint8]:
        """Return the class of each pixel: 0 for the background, 1 for the first class."""
        classes = np.zeros((SCENE_SIZE, SCENE_SIZE), np.uint8)
        for defect in self.defects:
            classes[defect.mask] = defect.label + 1
        return classes


def draw_scene(seed: int, number: int) -> Scene:
    """Return an image of a seed with 0 to 4 defects that do not touch."""
    random = np.random.default_rng((seed, number, PURPOSE))
    surface, defects = generator.blank_surface(random, SCENE_SIZE), list[Defect]()
    for _ in range(random.integers(MAX_DEFECTS + 1)):
        label = int(random.integers(len(CLASSES)))
        for _ in range(ATTEMPTS):  # a defect that does not fit is drawn again, somewhere else
            candidate = DEFECTS[CLASSES[label]](random, surface)
            defect = outline(candidate, label)
            if defect is not None and _fits(defect, defects):
                surface = candidate
                defects.append(defect)
                break
    file = io.BytesIO()
    generator.photograph(random, surface).save(file, "JPEG", quality=90)
    return Scene(file.getvalue(), f"{number:04}.jpg", tuple(defects))


def outline(surface: Surface, label: int) -> Defect | None:
    """Return the last defect of a surface; None where it is too small or touches the border."""
    mask = surface.coverage[-1] > MIN_COVERAGE
    if CLASSES[label] in THIN:
        mask = np.asarray(Image.fromarray(mask).convert("L").filter(ImageFilter.MaxFilter(3))) > 0
    if mask[[0, -1]].any() or mask[:, [0, -1]].any() or mask.sum() < MIN_PIXELS:
        return None
    return Defect(label, mask, extent(mask))


def extent(mask: Mask) -> Box:
    """Return the smallest box around the pixels of a mask; right and bottom are exclusive."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.int32)


def _fits(defect: Defect, others: list[Defect]) -> bool:
    for other in others:
        if (defect.mask & other.mask).any():
            return False
        low, high = np.maximum(defect.box, other.box)[:2], np.minimum(defect.box, other.box)[2:]
        shared = np.prod(np.maximum(high - low, 0))
        if shared > MAX_OVERLAP * min(_area(defect.box), _area(other.box)):
            return False
    return True


def _area(box: Box) -> int:
    return int((box[2] - box[0]) * (box[3] - box[1]))


def write_images(
    folder: Path,
    seed: int,
    count: int,
    task: Task,
    progress: Callable[[int], None] = lambda done: None,
) -> None:
    """Draw the first images of a seed into `images`, with boxes or masks beside them.

    Boxes are COCO's `annotations.json`, whose category n is class n - 1. Masks are PNG files of
    `masks` that hold the line of `classes.txt` for each pixel, counted from 0.
    """
    images, masks = folder / "images", folder / "masks"
    images.mkdir(parents=True, exist_ok=True)
    scenes = []
    # Most of the work holds Python's lock; more threads would wait for each other.
    with ThreadPoolExecutor(2) as pool:
        for done, scene in enumerate(pool.map(partial(draw_scene, seed), range(count)), 1):
            (images / scene.name).write_bytes(scene.jpeg)
            scenes.append(scene)
            progress(done)
    if task == "detect":
        text = json.dumps(annotations(scenes), indent=1) + "\n"
        (folder / "annotations.json").write_text(text, encoding="utf-8")
        return
    masks.mkdir(exist_ok=True)
    for scene in scenes:
        file = masks / Path(scene.name).with_suffix(".png")
        Image.fromarray(scene.class_map()).save(file, optimize=True)
    names = "".join(f"{name}\n" for name in ("background", *CLASSES))
    (folder / "classes.txt").write_text(names, encoding="utf-8")


def annotations(scenes: list[Scene]) -> dict[str, object]:
    """Return the defects of images as COCO's object detection format."""
    images: list[dict[str, object]] = []
    objects: list[dict[str, object]] = []
    for number, scene in enumerate(scenes, 1):
        images.append(
            {"id": number, "file_name": scene.name, "width": SCENE_SIZE, "height": SCENE_SIZE}
        )
        for defect in scene.defects:
            left, top, right, bottom = defect.box.tolist()
            objects.append(
                {
                    "id": len(objects) + 1,
                    "image_id": number,
                    "category_id": defect.label + 1,
                    "bbox": [left, top, right - left, bottom - top],
                    "area": int(defect.mask.sum()),
                    "iscrowd": 0,
                }
            )
    categories = [{"id": number, "name": name} for number, name in enumerate(CLASSES, 1)]
    return {"images": images, "annotations": objects, "categories": categories}
