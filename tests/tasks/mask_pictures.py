"""Random masks of objects and of detections, as pixels and as COCO writes them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pycocotools.mask
from numpy.typing import NDArray

from qconvert.images.coco_segmentation import parse_segmentation
from qconvert.images.object_masks import ObjectMasks, PixelMask
from qconvert.images.truth import TrueBoxes
from qconvert.tasks.detection_metrics import ImageMatches, match_image
from tests.tasks.random_detections import truth_of

SIZE = (90, 70)
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class DrawnMasks:
    """Masks that are pixels already."""

    pixels: tuple[PixelMask, ...]

    def __len__(self) -> int:
        return len(self.pixels)

    def draw(self, index: int) -> PixelMask:
        return self.pixels[index]


def run_lengths(mask: Bools) -> dict[str, Any]:
    """Return a mask as COCO's compressed run lengths."""
    encoded = pycocotools.mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


def box_of(mask: Bools) -> list[int]:
    """Return the corners of the box around a mask; of an empty one, that of the first pixel."""
    rows, columns = np.nonzero(mask)
    if not len(rows):
        return [0, 0, 1, 1]
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def cropped(mask: Bools) -> PixelMask:
    """Return a mask without the pixels around its box."""
    left, top, right, bottom = box_of(mask)
    return PixelMask(mask[top:bottom, left:right], left, top)


def truth_with_masks(
    masks: list[Bools], classes: list[int], crowd: list[bool] | None = None
) -> TrueBoxes:
    """Return objects with the boxes around their masks, and the areas of these."""
    plain = truth_of(np.array([box_of(mask) for mask in masks], np.float32), classes, crowd or ())
    shapes = [parse_segmentation(run_lengths(mask)) for mask in masks]
    size = masks[0].shape[::-1] if masks else SIZE
    area = np.array([mask.sum() for mask in masks], np.float32)
    own = ObjectMasks(tuple(shape for shape in shapes if shape is not None), size)
    return TrueBoxes(plain.boxes, plain.classes, plain.crowd, area, masks=own)


@dataclass(frozen=True, eq=False)
class MaskPicture:
    """The objects of a picture, and the masks that a network sees in it."""

    truth: TrueBoxes
    true_masks: list[Bools]
    masks: list[Bools]
    scores: NDArray[np.float32]
    classes: NDArray[np.int32]

    def match(self) -> ImageMatches:
        boxes = np.array([box_of(mask) for mask in self.masks], np.float32).reshape(-1, 4)
        drawn = DrawnMasks(tuple(cropped(mask) for mask in self.masks))
        return match_image(boxes, self.scores, self.classes, self.truth, drawn)


def random_mask_pictures(seed: int, pictures: int = 4, crowds: float = 0.2) -> list[MaskPicture]:
    """Return pictures of ellipses and of detections that are moved, cut or of another class."""
    generator = np.random.default_rng(seed)
    return [_random_picture(generator, crowds) for _ in range(pictures)]


def _random_picture(generator: np.random.Generator, crowds: float) -> MaskPicture:
    objects = [_ellipse(generator) for _ in range(generator.integers(0, 6))]
    classes = generator.integers(0, 3, len(objects))
    masks, labels = [], []
    for _ in range(generator.integers(0, 12)):
        if objects and generator.random() < 0.8:
            source = int(generator.integers(len(objects)))
            shift = generator.integers(-2, 3, 2).tolist()
            mask = np.roll(objects[source], shift, (0, 1)) & (generator.random(SIZE[::-1]) < 0.95)
            labels.append(classes[source] if generator.random() < 0.8 else generator.integers(3))
        else:
            mask = _ellipse(generator) & (generator.random() < 0.9)
            labels.append(generator.integers(3))
        masks.append(mask)
    crowd = (generator.random(len(objects)) < crowds).tolist()
    scores = np.round(generator.random(len(masks)), 1).astype(np.float32)
    truth = truth_with_masks(objects, classes.tolist(), crowd)
    return MaskPicture(truth, objects, masks, scores, np.array(labels, np.int32))


def _ellipse(generator: np.random.Generator) -> Bools:
    rows, columns = np.indices(SIZE[::-1])
    middle, radius = generator.uniform(0, SIZE), generator.uniform(3, 40, 2)
    inside = ((columns - middle[0]) / radius[0]) ** 2 + ((rows - middle[1]) / radius[1]) ** 2 < 1
    return np.asarray(inside)
