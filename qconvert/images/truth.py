"""What is in a picture, as people marked it: boxes with classes, or a mask of class numbers."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qconvert.images.object_masks import ObjectMasks

# The value of a pixel of a mask that belongs to no class and is not judged.
IGNORED_PIXEL = 255


@dataclass(frozen=True, eq=False)
class TrueBoxes:
    """The objects of a picture: `boxes` [n, 4] are left, top, right, bottom in its upright pixels.

    A `crowd` box (COCO's `iscrowd`, VOC's `difficult`) neither has to be detected nor makes a
    detection wrong. `area` decides whether an object is small, medium or large. `masks` are those of
    the objects where people outlined them.
    """

    boxes: NDArray[np.float32]
    classes: NDArray[np.int32]
    crowd: NDArray[np.bool_]
    area: NDArray[np.float32]
    masks: ObjectMasks | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        count = len(self.boxes)
        if self.boxes.shape != (count, 4):
            raise ValueError(f"boxes are [n, 4], got {list(self.boxes.shape)}")
        for array in (self.classes, self.crowd, self.area):
            if array.shape != (count,):
                raise ValueError(f"{count} boxes, but an array of {list(array.shape)} about them")
        if self.masks is not None and len(self.masks) != count:
            raise ValueError(f"{count} boxes, but {len(self.masks)} masks")


@dataclass(frozen=True)
class TrueMask:
    """The class of each pixel, in a PNG file of class numbers that `truth_masks.read_mask` reads."""

    file: Path


Truth = TrueBoxes | TrueMask


def truth_digest(truth: Truth | None) -> str:
    """Return a hash of what a picture's truth says; it is empty where there is none.

    A mask is hashed as its file; the hash of one that cannot be read is that of its name.
    """
    if truth is None:
        return ""
    if isinstance(truth, TrueMask):
        try:
            with truth.file.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError:
            return hashlib.sha256(str(truth.file).encode(errors="replace")).hexdigest()
    arrays = (
        truth.boxes.astype("<f4"),
        truth.classes.astype("<i4"),
        truth.crowd.astype("u1"),
        truth.area.astype("<f4"),
    )
    content = b"".join(array.tobytes() for array in arrays)
    if truth.masks is not None:
        content += truth.masks.to_bytes()
    return hashlib.sha256(content).hexdigest()
