"""What is in a picture, as people marked it: boxes with classes, or a mask of class numbers."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

# The value of a pixel of a mask that belongs to no class and is not judged.
IGNORED_PIXEL = 255


@dataclass(frozen=True, eq=False)
class TrueBoxes:
    """The objects of a picture: `boxes` [n, 4] are left, top, right, bottom in its upright pixels.

    A `crowd` box (COCO's `iscrowd`, VOC's `difficult`) neither has to be detected nor makes a
    detection wrong. `area` decides whether an object is small, medium or large.
    """

    boxes: NDArray[np.float32]
    classes: NDArray[np.int32]
    crowd: NDArray[np.bool_]
    area: NDArray[np.float32]

    def __post_init__(self) -> None:
        count = len(self.boxes)
        if self.boxes.shape != (count, 4):
            raise ValueError(f"boxes are [n, 4], got {list(self.boxes.shape)}")
        for array in (self.classes, self.crowd, self.area):
            if array.shape != (count,):
                raise ValueError(f"{count} boxes, but an array of {list(array.shape)} about them")


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
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()
