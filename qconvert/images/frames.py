"""Where a picture lies in the input of a network, and the way back from there to the picture."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qconvert.images.preprocess import (
    ImageInput,
    Preprocess,
    crop_corner,
    letterbox_area,
    resized_size,
)

# The class of a pixel that the network did not see.
OUTSIDE = -1


@dataclass(frozen=True)
class Frame:
    """Where a picture lies in the input of a network: input = picture * scale + offset.

    Sizes and coordinates are pixels, x before y; the left edge of the first pixel is at 0.
    """

    width: int
    height: int
    input_width: int
    input_height: int
    scale: tuple[float, float] = (1.0, 1.0)
    offset: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        sizes = (self.width, self.height, self.input_width, self.input_height)
        if min(sizes) < 1 or min(self.scale) <= 0:
            raise ValueError(f"sizes and scales are above 0, got {sizes} and {self.scale}")

    @property
    def input_size(self) -> tuple[int, int]:
        """The (width, height) of the network's input."""
        return self.input_width, self.input_height

    @property
    def is_cut(self) -> bool:
        """Whether a crop left out a part of the picture, beyond the rounding of a pixel."""
        ends = zip(
            (self.width, self.height),
            (self.input_width, self.input_height),
            self.scale,
            self.offset,
            strict=True,
        )
        return any(
            offset < -1 or length * scale + offset > limit + 1
            for length, limit, scale, offset in ends
        )

    def to_picture(self, boxes: ArrayLike) -> NDArray[np.float32]:
        """Return xyxy boxes of the input in pixels of the upright picture, cut at its edges."""
        corners = np.asarray(boxes, np.float64).reshape(-1, 4)
        corners = (corners - np.tile(self.offset, 2)) / np.tile(self.scale, 2)
        limit = [self.width, self.height] * 2
        return np.asarray(np.clip(corners, 0, limit), np.float32)

    def to_input(self, boxes: ArrayLike) -> NDArray[np.float32]:
        """Return xyxy boxes of the picture in pixels of the input; they are not cut."""
        corners = np.asarray(boxes, np.float64).reshape(-1, 4)
        return np.asarray(corners * np.tile(self.scale, 2) + np.tile(self.offset, 2), np.float32)


def frame_of(preprocess: Preprocess, image_input: ImageInput, size: tuple[int, int]) -> Frame:
    """Return where an upright picture of a (width, height) lies, for what `fit_to_input` returns."""
    whole = image_input.width or size[0], image_input.height or size[1]
    if preprocess.letterbox:
        area = letterbox_area(size, whole)
        scaled, left, top = (area.width, area.height), area.left, area.top
    else:
        scaled = resized_size(size, preprocess.resize)
        left, top = (-corner for corner in crop_corner(scaled, whole))
    scale = scaled[0] / size[0], scaled[1] / size[1]
    return Frame(*size, *whole, scale, (float(left), float(top)))


def mask_to_picture(mask: NDArray[Any], frame: Frame) -> NDArray[np.int32]:
    """Return the class of each pixel of the picture, by nearest neighbour.

    The mask covers the network's input, in any resolution. Pixels that a crop cut off were not seen
    by the network and are `OUTSIDE`.
    """
    rows, visible_rows = _nearest(
        frame.height, frame.scale[1], frame.offset[1], frame.input_height, mask.shape[0]
    )
    columns, visible_columns = _nearest(
        frame.width, frame.scale[0], frame.offset[0], frame.input_width, mask.shape[1]
    )
    classes = mask[np.ix_(rows, columns)].astype(np.int32)
    classes[~visible_rows] = OUTSIDE
    classes[:, ~visible_columns] = OUTSIDE
    return classes


def _nearest(
    count: int, scale: float, offset: float, input_side: int, mask_side: int
) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Return for each pixel along one side its index in the mask, and whether the input has it."""
    places = (np.arange(count) + 0.5) * scale + offset
    indices = np.floor(places * mask_side / input_side).astype(np.intp)
    return np.clip(indices, 0, mask_side - 1), (places >= 0) & (places < input_side)
