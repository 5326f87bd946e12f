"""Random shapes on a small square: smooth noise, blots, discs, lines and polygons, from 0 to 1."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

SIZE = 128
FINE = 2  # lines and polygons are drawn so much larger, then shrunk: that smooths their edges

Array = NDArray[np.floating]
Point = tuple[float, float]

ROWS, COLUMNS = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32)


def noise(random: np.random.Generator, down: int, across: int) -> Array:
    """Return noise around 0 with so many bumps down and across, about one high."""
    cells = random.random((down + 1, across + 1), dtype=np.float32) * 2 - 1
    wide = Image.fromarray(cells).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    return np.asarray(wide)


def turned(values: Array, degrees: float) -> Array:
    """Return a field turned about its centre, enlarged so that no corner stays empty."""
    enlarged = Image.fromarray(values).resize((SIZE * 3 // 2,) * 2, Image.Resampling.BILINEAR)
    rotated = enlarged.rotate(degrees, Image.Resampling.BILINEAR)
    start = SIZE // 4
    return np.asarray(rotated)[start : start + SIZE, start : start + SIZE]


def distance(centre: Point, stretch: float = 1.0, angle: float = 0.0) -> Array:
    """Return how far each pixel is from a point; `stretch` makes the circles ellipses."""
    across, down = COLUMNS - np.float32(centre[0]), ROWS - np.float32(centre[1])
    cos, sin = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    along, beside = across * cos + down * sin, down * cos - across * sin
    far: Array = np.sqrt(along**2 / stretch + beside**2 * stretch)
    return far


def ramp(values: Array, low: float, high: float) -> Array:
    """Return 0 below `low`, 1 above `high`, and a smooth way between."""
    t: Array = np.clip((values - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def blot(random: np.random.Generator, centre: Point, radius: float, rough: float) -> Array:
    """Return how deep inside an irregular blot each pixel lies: 1 in its middle, 0 at its rim."""
    stretch = random.uniform(0.7, 1.5)
    far = distance(centre, stretch, random.uniform(0, math.pi)) / radius
    wobble = noise(random, 5, 5) * 0.6 + noise(random, 14, 14) * 0.4
    return 1 - far + rough * wobble


def lines(paths: Sequence[tuple[Sequence[Point], float]]) -> Array:
    """Return lines, each with its width in pixels, as a coverage."""
    canvas, draw = _canvas()
    for points, width in paths:
        draw.line(_fine(points), fill=255, width=max(1, round(width * FINE)), joint="curve")
    return _shrunk(canvas)


def polygon(points: Sequence[Point]) -> Array:
    """Return a filled polygon as a coverage."""
    canvas, draw = _canvas()
    draw.polygon(_fine(points), fill=255)
    return _shrunk(canvas)


def _canvas() -> tuple[Image.Image, ImageDraw.ImageDraw]:
    canvas = Image.new("L", (SIZE * FINE, SIZE * FINE))
    return canvas, ImageDraw.Draw(canvas)


def _fine(points: Sequence[Point]) -> list[Point]:
    return [(x * FINE, y * FINE) for x, y in points]


def _shrunk(canvas: Image.Image) -> Array:
    return np.asarray(canvas.reduce(FINE), dtype=np.float32) / 255
