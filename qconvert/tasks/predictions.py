"""What a network says about one picture: the objects in it, or the class of each pixel."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qconvert.images.frames import Frame, mask_to_picture
from qconvert.tasks.boxes import Candidates
from qconvert.tasks.instance_masks import PrototypeMasks

MAX_DETECTIONS = 300
# Masks hold class numbers in bytes, of which 255 is ignored.
MAX_CLASSES = 255


@dataclass(frozen=True, eq=False)
class Detections:
    """Objects of one picture by falling score: xyxy boxes in its pixels, scores and classes.

    `dropped` counts the boxes of the network that were not finite. `masks` are drawn one by one, and
    None where the network has none.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    classes: NDArray[np.int32]
    dropped: int = 0
    masks: PrototypeMasks | None = None

    def __post_init__(self) -> None:
        count = len(self.scores)
        shapes = self.boxes.shape, self.scores.shape, self.classes.shape
        if shapes != ((count, 4), (count,), (count,)):
            raise ValueError(f"boxes, scores and classes have the shapes {shapes}")
        if np.any(self.scores[1:] > self.scores[:-1]):
            raise ValueError("detections are sorted by falling score")
        if self.masks is not None and len(self.masks) != count:
            raise ValueError(f"{count} detections have {len(self.masks)} masks")

    def __len__(self) -> int:
        return len(self.scores)

    def first(self, count: int) -> "Detections":
        """Return those of the highest scores."""
        return replace(
            self,
            boxes=self.boxes[:count],
            scores=self.scores[:count],
            classes=self.classes[:count],
            masks=None if self.masks is None else self.masks.first(count),
        )


@dataclass(frozen=True, eq=False)
class ClassMap:
    """The class of each pixel of the input, in the resolution of the network's output.

    Classes are numbered below `class_count`.
    """

    classes: NDArray[Any]
    frame: Frame
    class_count: int = MAX_CLASSES

    def __post_init__(self) -> None:
        if self.classes.ndim != 2 or self.classes.dtype.kind not in "iu":
            raise ValueError(
                f"a class map is [h, w] of integers, got {self.classes.dtype} {self.classes.shape}"
            )

    def to_picture(self) -> NDArray[np.int32]:
        """Return the class of each pixel of the picture; those that a crop cut off are -1."""
        return mask_to_picture(self.classes, self.frame)


Prediction = Detections | ClassMap


def detections_of(candidates: Candidates, frame: Frame, limit: int = MAX_DETECTIONS) -> Detections:
    """Return candidates in pixels of the picture, by falling score, at most `limit`.

    A box that lies outside the picture, in the border of a letterbox, is no object of it and is
    left out; a box or score that is not finite is dropped and counted.
    """
    scores = np.asarray(candidates.scores, np.float32)
    boxes = np.asarray(candidates.boxes, np.float32).reshape(-1, 4)
    finite = np.isfinite(boxes).all(axis=1) & np.isfinite(scores)
    dropped = candidates.dropped + len(finite) - int(np.count_nonzero(finite))
    placed = np.zeros_like(boxes)
    placed[finite] = frame.to_picture(boxes[finite])
    kept = np.flatnonzero(finite & (placed[:, :2] < placed[:, 2:]).all(axis=1))
    kept = kept[np.argsort(-scores[kept], kind="stable")][:limit]
    classes = np.asarray(candidates.classes, np.int32)
    masks = None
    if candidates.coefficients is not None and candidates.prototypes is not None:
        own = candidates.coefficients[kept]
        masks = PrototypeMasks(own, candidates.prototypes, placed[kept], frame)
    return Detections(placed[kept], scores[kept], classes[kept], dropped, masks)
