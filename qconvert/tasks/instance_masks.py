"""Masks of detections from prototypes, and how far masks overlap."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from qconvert.images.frames import Frame
from qconvert.images.object_masks import PixelMask

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class PrototypeMasks:
    """The masks of detections: sums of `prototypes` [k, h, w], weighed by `coefficients` [n, k].

    The prototypes cover the network's input. A pixel of the picture belongs to a detection if its
    centre lies in its box, of xyxy `boxes` in the picture, and the sum there, between the four
    nearest places of the map, is above 0: a probability of more than one half (Bolya et al.,
    YOLACT, 2019).
    """

    coefficients: Floats
    prototypes: Floats
    boxes: Floats
    frame: Frame

    def __post_init__(self) -> None:
        count, prototypes = self.coefficients.shape
        if self.boxes.shape != (count, 4) or self.prototypes.shape[:1] != (prototypes,):
            shapes = [array.shape for array in (self.coefficients, self.prototypes, self.boxes)]
            raise ValueError(f"coefficients, prototypes and boxes have the shapes {shapes}")

    def __len__(self) -> int:
        return len(self.coefficients)

    def first(self, count: int) -> "PrototypeMasks":
        """Return those of the first detections."""
        return replace(self, coefficients=self.coefficients[:count], boxes=self.boxes[:count])

    def draw(self, index: int) -> PixelMask:
        """Return the mask of a detection."""
        # A centre is half a pixel from the edges.
        low, high = np.split(np.ceil(self.boxes[index] - 0.5).astype(int), 2)
        high = np.maximum(high, low)
        frame, (height, width) = self.frame, self.prototypes.shape[1:]
        across = _samples(
            low[0], high[0], frame.scale[0], frame.offset[0], frame.input_width, width
        )
        down = _samples(
            low[1], high[1], frame.scale[1], frame.offset[1], frame.input_height, height
        )
        if not len(across.first) or not len(down.first):
            return PixelMask(np.zeros((0, 0), np.bool_))
        rows = slice(down.first.min(), down.second.max() + 1)
        columns = slice(across.first.min(), across.second.max() + 1)
        # A coefficient that is not finite leaves an empty mask.
        with np.errstate(invalid="ignore", over="ignore"):
            sums = np.tensordot(self.coefficients[index], self.prototypes[:, rows, columns], axes=1)
            sums = _between(sums, down, rows.start)
            sums = _between(sums.T, across, columns.start).T
            return PixelMask(sums > 0, int(low[0]), int(low[1]))


@dataclass(frozen=True, eq=False)
class _Samples:
    """For each pixel along a side the two nearest places of a map, and the weight of the second."""

    first: NDArray[np.intp]
    second: NDArray[np.intp]
    weight: Floats


def _samples(
    start: int, stop: int, scale: float, offset: float, input_side: int, map_side: int
) -> _Samples:
    places = ((np.arange(start, stop) + 0.5) * scale + offset) * map_side / input_side - 0.5
    places = np.clip(places, 0, map_side - 1)
    first = np.floor(places).astype(np.intp)
    second = np.minimum(first + 1, map_side - 1)
    return _Samples(first, second, (places - first).astype(np.float32)[:, None])


def _between(values: Floats, samples: _Samples, start: int) -> Floats:
    """Return values of a map, from its row `start` on, at the samples along the first axis."""
    before, after = values[samples.first - start], values[samples.second - start]
    return np.asarray(before + (after - before) * samples.weight, np.float32)


def mask_overlaps(
    masks: Sequence[PixelMask], objects: Sequence[PixelMask], crowd: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Return the IoU of each mask with its object; of a crowd, the share of the mask inside it."""
    shared = np.array([_shared(*pair) for pair in zip(masks, objects, strict=True)], np.float64)
    area = np.array([mask.area for mask in masks], np.float64)
    union = area + np.where(crowd, 0.0, np.array([mask.area for mask in objects]) - shared)
    return np.divide(shared, union, out=np.zeros_like(shared), where=shared > 0)


def _shared(one: PixelMask, other: PixelMask) -> int:
    left, top = max(one.left, other.left), max(one.top, other.top)
    right = min(mask.left + mask.pixels.shape[1] for mask in (one, other))
    bottom = min(mask.top + mask.pixels.shape[0] for mask in (one, other))
    if right <= left or bottom <= top:
        return 0
    parts = (
        mask.pixels[top - mask.top : bottom - mask.top, left - mask.left : right - mask.left]
        for mask in (one, other)
    )
    return int(np.count_nonzero(np.logical_and(*parts)))
