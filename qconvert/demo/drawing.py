"""Surfaces of metal and paint as planes of 128 x 128 numbers, and the camera that shows them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

IMAGE_SIZE = 128
OVERSAMPLING = 2  # lines and polygons are drawn larger and shrunk, which smooths their edges

Plane = NDArray[np.floating]
Point = tuple[float, float]
Random = np.random.Generator

ROWS, COLUMNS = np.mgrid[0:IMAGE_SIZE, 0:IMAGE_SIZE].astype(np.float32)
# Steel, aluminium, brass, copper, cast iron, and paints: light gray, blue, green, ochre, white.
COLOURS = (
    (0.56, 0.57, 0.58),
    (0.70, 0.70, 0.69),
    (0.68, 0.60, 0.42),
    (0.62, 0.47, 0.40),
    (0.40, 0.40, 0.42),
    (0.62, 0.64, 0.66),
    (0.36, 0.45, 0.58),
    (0.40, 0.52, 0.45),
    (0.66, 0.57, 0.38),
    (0.78, 0.78, 0.76),
)


def noise(random: Random, down: int, across: int) -> Plane:
    """Return smooth noise around 0 with this many bumps."""
    cells = random.random((down + 1, across + 1), dtype=np.float32) * 2 - 1
    size = IMAGE_SIZE, IMAGE_SIZE
    return np.asarray(Image.fromarray(cells).resize(size, Image.Resampling.BICUBIC))


def distance_from(centre: Point, elongation: float = 1.0, angle: float = 0.0) -> Plane:
    """Return the distance of each pixel from a point; `elongation` makes the circles ellipses."""
    across, down = COLUMNS - np.float32(centre[0]), ROWS - np.float32(centre[1])
    cos, sin = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    along, beside = across * cos + down * sin, down * cos - across * sin
    distance: Plane = np.sqrt(along**2 / elongation + beside**2 * elongation)
    return distance


def smoothstep(values: Plane, low: float, high: float) -> Plane:
    """Return 0 below `low`, 1 above `high`, and a smooth transition between."""
    t: Plane = np.clip((values - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def blot_depth(random: Random, centre: Point, radius: float, rough: float) -> Plane:
    """Return how deep inside an irregular blot each pixel lies: 1 in its middle, 0 at its rim."""
    elongation = random.uniform(0.7, 1.5)
    distance = distance_from(centre, elongation, random.uniform(0, math.pi)) / radius
    return 1 - distance + rough * (noise(random, 5, 5) * 0.6 + noise(random, 14, 14) * 0.4)


def draw_lines(paths: Sequence[tuple[Sequence[Point], float]]) -> Plane:
    """Return the coverage of lines, each with its width in pixels; width 0 fills a polygon."""
    size = IMAGE_SIZE * OVERSAMPLING
    canvas = Image.new("L", (size, size))
    pen = ImageDraw.Draw(canvas)
    for points, width in paths:
        large = [(x * OVERSAMPLING, y * OVERSAMPLING) for x, y in points]
        if width:
            pen.line(large, fill=255, width=max(1, round(width * OVERSAMPLING)), joint="curve")
        else:
            pen.polygon(large, fill=255)
    return np.asarray(canvas.reduce(OVERSAMPLING), dtype=np.float32) / 255


def colour(red: float, green: float, blue: float) -> Plane:
    """Return a colour that broadcasts over all pixels."""
    return np.array([red, green, blue], np.float32).reshape(3, 1, 1)


def gray(brightness: float) -> Plane:
    """Return a gray that broadcasts over all pixels."""
    return colour(brightness, brightness, brightness)


@dataclass(frozen=True)
class Surface:
    """Height in pixels, and the reflected share of red, green and blue light."""

    height: Plane
    colour: Plane

    def with_relief(self, height: Plane) -> "Surface":
        """Return the surface with height added; negative heights cut into it."""
        return Surface(self.height + height, self.colour)

    def with_tint(self, opacity: Plane, tint: Plane) -> "Surface":
        """Return the surface with another colour blended over it."""
        return Surface(self.height, self.colour + (tint - self.colour) * opacity)


def blank_surface(random: Random) -> Surface:
    """Return a surface without a defect."""
    base = np.array(COLOURS[random.integers(len(COLOURS))]) * random.uniform(0.85, 1.12)
    base += random.uniform(-0.03, 0.03, 3)
    grain = _finish(random)
    cloud = noise(random, 3, 3) * random.uniform(0, 0.05) + noise(random, 9, 9) * 0.012
    shade = 1 + cloud + grain * random.uniform(0.01, 0.05)
    return Surface(grain * random.uniform(0.05, 0.22), colour(*base) * shade)


def _finish(random: Random) -> Plane:
    """Return the relief of a brushed, cast, milled or painted finish."""
    kind = ("brushed", "cast", "milled", "painted")[random.integers(4)]
    if kind == "brushed":  # straight marks in one direction, enlarged so that no corner stays empty
        marks = noise(random, 96, int(random.integers(2, 7))) + noise(random, 48, 3) * 0.6
        image = Image.fromarray(marks)
        image = image.resize((IMAGE_SIZE * 3 // 2,) * 2, Image.Resampling.BILINEAR)
        image = image.rotate(random.uniform(0, 180), Image.Resampling.BILINEAR)
        inner = slice(IMAGE_SIZE // 4, IMAGE_SIZE // 4 + IMAGE_SIZE)
        return np.asarray(image)[inner, inner]
    if kind == "cast":
        return noise(random, 20, 20) * 0.6 + noise(random, 44, 44) + noise(random, 80, 80) * 0.5
    if kind == "painted":
        return noise(random, 26, 26) * random.uniform(0.3, 1.0)
    angle, radius = random.uniform(0, 2 * math.pi), random.uniform(0.8, 4) * IMAGE_SIZE
    middle = IMAGE_SIZE / 2
    centre = (middle + radius * math.cos(angle), middle + radius * math.sin(angle))
    step = random.uniform(3.5, 8)
    phase = distance_from(centre) * np.float32(2 * math.pi / step) + random.uniform(0, 6)
    arcs: Plane = np.sin(phase)
    return arcs * random.uniform(0.4, 0.9) + noise(random, 50, 50) * 0.4


def add_edge(random: Random, surface: Surface, ragged: Plane | None) -> Surface:
    """Return the surface ending near one side in a bevelled edge, with a background behind it.

    The edge is straight unless `ragged` gives how far it sticks out.
    """
    beyond = COLUMNS - np.float32(IMAGE_SIZE * random.uniform(0.8, 0.93))
    if ragged is not None:
        beyond = beyond - ragged
    outside = smoothstep(beyond, -0.6, 0.6)
    bevel = np.exp(-(((beyond + 2.5) / 1.6) ** 2)) * random.uniform(0.05, 0.2)
    background = random.uniform(0.04, 0.24) + noise(random, 4, 4) * 0.02
    turns = int(random.integers(4))
    outside, bevel, background = (np.rot90(plane, turns) for plane in (outside, bevel, background))
    shiny = surface.with_tint(bevel, gray(1))
    return Surface(shiny.height * (1 - outside), shiny.colour).with_tint(outside, background)


def photograph(random: Random, surface: Surface) -> Image.Image:
    """Return the surface in some light, a little blurred, noisy and imperfectly exposed."""
    pixels = surface.colour * _illumination(random, surface.height)
    warmth = random.uniform(-0.05, 0.05)
    exposure = random.uniform(0.72, 1.25) * colour(1 + warmth, 1, 1 - warmth)
    contrast = random.uniform(0.75, 1.15)
    pixels = (pixels * exposure - 0.5) * contrast + 0.5
    blur = ImageFilter.GaussianBlur(random.uniform(0, 1.0))
    blurred = np.asarray(_to_image(pixels * 255).filter(blur)).transpose(2, 0, 1)
    grain = random.standard_normal((4, IMAGE_SIZE, IMAGE_SIZE), dtype=np.float32)
    return _to_image(blurred + (grain[:3] + grain[3]) * random.uniform(0.8, 5.0))


def _to_image(planes: Plane) -> Image.Image:
    pixels = np.clip(planes, 0, 255).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))


def _illumination(random: Random, height: Plane) -> Plane:
    """Return the brightness of each pixel: higher on slopes towards the lamp, and on its side."""
    angle = random.uniform(0, 2 * math.pi)
    cos, sin = math.cos(angle), math.sin(angle)
    down: Plane = np.gradient(height, axis=0)
    across: Plane = np.gradient(height, axis=1)
    slope = across * cos + down * sin
    reach = random.uniform(0.4, 1.2) * IMAGE_SIZE
    lamp = IMAGE_SIZE / 2 + reach * cos, IMAGE_SIZE / 2 + reach * sin
    proximity: Plane = np.exp(-((distance_from(lamp) / (1.3 * IMAGE_SIZE)) ** 2))
    ambient = random.uniform(0.6, 0.95)
    lit: Plane = np.clip(1 - slope * random.uniform(0.7, 1.3), 0.2, 2.2)
    return lit * (ambient + (1.1 - ambient) * proximity)
