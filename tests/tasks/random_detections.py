"""Random objects and detections of them, as data sets of a few pictures."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qconvert.images.truth import TrueBoxes
from qconvert.tasks.detection_metrics import ImageMatches, match_image


@dataclass(frozen=True, eq=False)
class Picture:
    """The objects of a picture, and what a network detects in it."""

    truth: TrueBoxes
    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    classes: NDArray[np.int32]

    def match(self) -> ImageMatches:
        return match_image(self.boxes, self.scores, self.classes, self.truth)


def truth_of(
    boxes: NDArray[np.float32], classes: Sequence[int], crowd: Sequence[bool] = ()
) -> TrueBoxes:
    """Return objects whose areas are those of their boxes."""
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    crowds = np.array(crowd or [False] * len(boxes), np.bool_)
    return TrueBoxes(boxes, np.array(classes, np.int32), crowds, area)


@dataclass(frozen=True)
class Kind:
    """What random pictures are like; `grid` puts corners on whole pixels and scores on tenths."""

    pictures: int = 4
    objects: int = 6
    detections: int = 12
    classes: int = 3
    crowds: float = 0.0
    grid: bool = False
    side: int = 200


def random_pictures(kind: Kind, seed: int) -> list[Picture]:
    generator = np.random.default_rng(seed)
    return [_random_picture(kind, generator) for _ in range(kind.pictures)]


def _random_picture(kind: Kind, generator: np.random.Generator) -> Picture:
    count = int(generator.integers(0, kind.objects + 1))
    sizes = kind.side * generator.uniform(0.02, 1, (count, 2)) ** 2
    corners = generator.uniform(0, 1, (count, 2)) * (kind.side - sizes)
    objects = np.concatenate([corners, corners + sizes + 2], axis=1)
    classes = generator.integers(0, kind.classes, count)
    # Most detections are objects that moved a little, some with another class; the rest is noise.
    number = int(generator.integers(0, kind.detections + 1))
    boxes, labels = np.zeros((number, 4)), generator.integers(0, kind.classes + 1, number)
    for row in range(number):
        if count and generator.random() < 0.8:
            source = int(generator.integers(count))
            spread = 0.15 * np.tile(objects[source, 2:] - objects[source, :2], 2)
            boxes[row] = objects[source] + spread * generator.normal(size=4) * generator.random()
            if generator.random() < 0.8:
                labels[row] = classes[source]
        else:
            size = kind.side * generator.uniform(0.02, 1, 2) ** 2
            corner = generator.uniform(0, 1, 2) * (kind.side - size)
            boxes[row] = [*corner, *(corner + size)]
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    scores = generator.random(number)
    if kind.grid:
        objects, boxes, scores = np.round(objects), np.round(boxes / 4) * 4, np.round(scores, 1)
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 4)
    crowd = (generator.random(count) < kind.crowds).tolist()
    truth = truth_of(objects.astype(np.float32), classes.tolist(), crowd)
    arrays = boxes.astype(np.float32), scores.astype(np.float32), labels.astype(np.int32)
    return Picture(truth, *arrays)
