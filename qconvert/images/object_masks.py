"""Masks of single objects: outlines and run lengths as files write them, drawn when asked for."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Size = tuple[int, int]


@dataclass(frozen=True, eq=False)
class PixelMask:
    """The pixels of an object within a rectangle of its picture that begins at (left, top)."""

    pixels: NDArray[np.bool_]
    left: int = 0
    top: int = 0

    @property
    def area(self) -> int:
        """How many pixels the object has."""
        return int(np.count_nonzero(self.pixels))

    def on_picture(self, size: Size) -> NDArray[np.bool_]:
        """Return the mask [height, width] of a picture of a (width, height)."""
        height, width = self.pixels.shape
        whole = np.zeros(size[::-1], np.bool_)
        whole[self.top : self.top + height, self.left : self.left + width] = self.pixels
        return whole


class Masks(Protocol):
    """The masks of the objects of a picture, in their order."""

    def __len__(self) -> int:
        """How many objects there are."""

    def draw(self, index: int) -> PixelMask:
        """Return the mask of an object, in pixels of the picture."""


@dataclass(frozen=True, eq=False)
class Polygons:
    """The outlines [corners, 2] of the parts of an object, x before y, in pixels of the picture.

    A pixel belongs to the object if its centre lies inside one of them, by the even-odd rule.
    """

    outlines: tuple[NDArray[np.float64], ...]

    def __post_init__(self) -> None:
        for outline in self.outlines:
            if outline.ndim != 2 or outline.shape[1] != 2 or len(outline) < 3:
                raise ValueError(f"an outline is [3 or more, 2], got {list(outline.shape)}")


@dataclass(frozen=True, eq=False)
class RunLengths:
    """How many pixels outside and inside an object follow, column by column, from the first one."""

    counts: NDArray[np.int64]
    size: Size

    def __post_init__(self) -> None:
        if (self.counts < 0).any() or self.counts.sum() != self.size[0] * self.size[1]:
            raise ValueError(f"runs add up to {self.counts.sum()} pixels, not to {self.size}")


Shape = Polygons | RunLengths


@dataclass(frozen=True, eq=False)
class ObjectMasks:
    """The shapes of the objects of a picture of a (width, height), which are drawn one by one."""

    shapes: tuple[Shape, ...]
    size: Size

    def __len__(self) -> int:
        return len(self.shapes)

    def draw(self, index: int) -> PixelMask:
        """Return the mask of an object."""
        shape = self.shapes[index]
        return _draw_runs(shape) if isinstance(shape, RunLengths) else _fill(shape, self.size)

    def to_bytes(self) -> bytes:
        """Return what the shapes say, for a hash."""
        parts = [f"{self.size}".encode()]
        for shape in self.shapes:
            arrays = shape.outlines if isinstance(shape, Polygons) else (shape.counts,)
            parts += [b"".join(f"{a.dtype.str}{a.shape}".encode() + a.tobytes() for a in arrays)]
        return b";".join(parts)


def outline_of(numbers: Sequence[float]) -> NDArray[np.float64]:
    """Return the corners of x, y, x, y ... as [n, 2]."""
    return np.array(numbers, np.float64).reshape(-1, 2)


def _fill(shape: Polygons, size: Size) -> PixelMask:
    corners = np.concatenate(shape.outlines)
    left, top = np.clip(np.floor(corners.min(axis=0)), 0, size).astype(int).tolist()
    right, bottom = np.clip(np.ceil(corners.max(axis=0)), 0, size).astype(int).tolist()
    pixels = np.zeros((bottom - top, right - left), np.bool_)
    for outline in shape.outlines:
        pixels |= _inside(outline - (left, top), pixels.shape)
    return PixelMask(pixels, left, top)


def _inside(outline: NDArray[np.float64], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Return which pixels of [height, width] have their centre inside an outline."""
    height, width = shape
    x, y = outline.T
    next_x, next_y = np.roll(outline, -1, axis=0).T
    centres = np.arange(height) + 0.5
    edges, rows = np.nonzero((y[:, None] <= centres) != (next_y[:, None] <= centres))
    share = (centres[rows] - y[edges]) / (next_y - y)[edges]
    crossings = x[edges] + share * (next_x - x)[edges]
    columns = np.clip(np.ceil(crossings - 0.5), 0, width).astype(np.intp)
    # Right of an odd number of crossings is inside.
    counts = np.zeros((height, width + 1), np.intp)
    np.add.at(counts, (rows, columns), 1)
    inside: NDArray[np.bool_] = np.cumsum(counts, axis=1)[:, :width] % 2 == 1
    return inside


def _draw_runs(shape: RunLengths) -> PixelMask:
    width, height = shape.size
    is_inside = np.arange(len(shape.counts)) % 2 == 1
    pixels = np.repeat(is_inside, shape.counts).reshape(width, height).T
    rows, columns = np.flatnonzero(pixels.any(axis=1)), np.flatnonzero(pixels.any(axis=0))
    if not len(rows):
        return PixelMask(np.zeros((0, 0), np.bool_))
    left, top = int(columns[0]), int(rows[0])
    return PixelMask(pixels[top : rows[-1] + 1, left : columns[-1] + 1].copy(), left, top)
