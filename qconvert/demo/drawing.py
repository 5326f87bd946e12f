"""Random shapes on a small square: smooth noise, blots, discs, lines and polygons, from 0 to 1."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

IMAGE_SIZE = 128
OVERSAMPLING = (
    2  # lines and polygons are drawn so much larger, then shrunk: that smooths their edges
)

Plane = NDArray[np.floating]
Point = tuple[float, float]

ROWS, COLUMNS = np.mgrid[0:IMAGE_SIZE, 0:IMAGE_SIZE].astype(np.float32)


def noise(random: np.random.Generator, down: int, across: int) -> Plane:
    """Return noise around 0 with so many bumps down and across, about one high."""
    cells = random.random((down + 1, across + 1), dtype=np.float32) * 2 - 1
    wide = Image.fromarray(cells).resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)
    return np.asarray(wide)


def rotate_plane(values: Plane, degrees: float) -> Plane:
    """Return a field turned about its centre, enlarged so that no corner stays empty."""
    enlarged = Image.fromarray(values).resize((IMAGE_SIZE * 3 // 2,) * 2, Image.Resampling.BILINEAR)
    rotated = enlarged.rotate(degrees, Image.Resampling.BILINEAR)
    start = IMAGE_SIZE // 4
    return np.asarray(rotated)[start : start + IMAGE_SIZE, start : start + IMAGE_SIZE]


def distance_from(centre: Point, stretch: float = 1.0, angle: float = 0.0) -> Plane:
    """Return how far each pixel is from a point; `stretch` makes the circles ellipses."""
    across, down = COLUMNS - np.float32(centre[0]), ROWS - np.float32(centre[1])
    cos, sin = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    along, beside = across * cos + down * sin, down * cos - across * sin
    far: Plane = np.sqrt(along**2 / stretch + beside**2 * stretch)
    return far


def smoothstep(values: Plane, low: float, high: float) -> Plane:
    """Return 0 below `low`, 1 above `high`, and a smooth way between."""
    t: Plane = np.clip((values - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def blot_depth(random: np.random.Generator, centre: Point, radius: float, rough: float) -> Plane:
    """Return how deep inside an irregular blot each pixel lies: 1 in its middle, 0 at its rim."""
    stretch = random.uniform(0.7, 1.5)
    far = distance_from(centre, stretch, random.uniform(0, math.pi)) / radius
    wobble = noise(random, 5, 5) * 0.6 + noise(random, 14, 14) * 0.4
    return 1 - far + rough * wobble


def draw_lines(paths: Sequence[tuple[Sequence[Point], float]]) -> Plane:
    """Return lines, each with its width in pixels, as a coverage."""
    canvas, draw = _canvas()
    for points, width in paths:
        draw.line(
            _oversample(points), fill=255, width=max(1, round(width * OVERSAMPLING)), joint="curve"
        )
    return _downsample(canvas)


def draw_polygon(points: Sequence[Point]) -> Plane:
    """Return a filled polygon as a coverage."""
    canvas, draw = _canvas()
    draw.polygon(_oversample(points), fill=255)
    return _downsample(canvas)


def _canvas() -> tuple[Image.Image, ImageDraw.ImageDraw]:
    canvas = Image.new("L", (IMAGE_SIZE * OVERSAMPLING, IMAGE_SIZE * OVERSAMPLING))
    return canvas, ImageDraw.Draw(canvas)


def _oversample(points: Sequence[Point]) -> list[Point]:
    return [(x * OVERSAMPLING, y * OVERSAMPLING) for x, y in points]


def _downsample(canvas: Image.Image) -> Plane:
    return np.asarray(canvas.reduce(OVERSAMPLING), dtype=np.float32) / 255


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


@dataclass(frozen=True)
class Surface:
    """Height in pixels, and the share of light that comes back in planes of red, green, blue."""

    height: Plane
    colour: Plane

    def with_relief(self, by: Plane) -> "Surface":
        """Return the surface with something on it, or with negative heights cut into it."""
        return Surface(self.height + by, self.colour)

    def with_tint(self, where: Plane, towards: Plane) -> "Surface":
        """Return the surface with another colour where `where` says 1, and none where it is 0."""
        return Surface(self.height, self.colour + (towards - self.colour) * where)


def colour(red: float, green: float, blue: float) -> Plane:
    """Return a colour that fits every pixel."""
    return np.array([red, green, blue], np.float32).reshape(3, 1, 1)


def gray(brightness: float) -> Plane:
    """Return a colour without colour."""
    return colour(brightness, brightness, brightness)


def blank_surface(random: np.random.Generator) -> Surface:
    """Return a surface that was made as it should be."""
    base = np.array(COLOURS[random.integers(len(COLOURS))]) * random.uniform(0.85, 1.12)
    base += random.uniform(-0.03, 0.03, 3)
    grain = FINISHES[random.integers(len(FINISHES))](random)
    cloud = noise(random, 3, 3) * random.uniform(0, 0.05) + noise(random, 9, 9) * 0.012
    shade = 1 + cloud + grain * random.uniform(0.01, 0.05)
    return Surface(grain * random.uniform(0.05, 0.22), colour(*base) * shade)


def _brushed(random: np.random.Generator) -> Plane:
    """Return fine straight marks in one direction."""
    marks = noise(random, 96, int(random.integers(2, 7))) + noise(random, 48, 3) * 0.6
    return rotate_plane(marks, random.uniform(0, 180))


def _cast(random: np.random.Generator) -> Plane:
    """Return a rough skin without direction."""
    return noise(random, 20, 20) * 0.6 + noise(random, 44, 44) + noise(random, 80, 80) * 0.5


def _milled(random: np.random.Generator) -> Plane:
    """Return the arcs that a turning tool leaves."""
    angle, far = random.uniform(0, 2 * math.pi), random.uniform(0.8, 4) * IMAGE_SIZE
    centre = (IMAGE_SIZE / 2 + far * math.cos(angle), IMAGE_SIZE / 2 + far * math.sin(angle))
    step = random.uniform(3.5, 8)
    wave: Plane = np.sin(
        distance_from(centre) * np.float32(2 * math.pi / step) + random.uniform(0, 6)
    )
    return wave * random.uniform(0.4, 0.9) + noise(random, 50, 50) * 0.4


def _painted(random: np.random.Generator) -> Plane:
    """Return the gentle waves of sprayed paint."""
    return noise(random, 26, 26) * random.uniform(0.3, 1.0)


FINISHES: tuple[Callable[[np.random.Generator], Plane], ...] = (_brushed, _cast, _milled, _painted)


def add_edge(random: np.random.Generator, surface: Surface, ragged: Plane | None) -> Surface:
    """Return the surface ending somewhere near one side, behind it whatever the part lies on.

    The edge is straight with a narrow bevel, unless `ragged` says how far it sticks out.
    """
    gone = COLUMNS - np.float32(IMAGE_SIZE * random.uniform(0.8, 0.93))
    if ragged is not None:
        gone = gone - ragged
    outside = smoothstep(gone, -0.6, 0.6)
    bevel = np.exp(-(((gone + 2.5) / 1.6) ** 2)) * random.uniform(0.05, 0.2)
    behind = random.uniform(0.04, 0.24) + noise(random, 4, 4) * 0.02
    quarters = int(random.integers(4))
    outside, bevel, behind = (np.rot90(each, quarters) for each in (outside, bevel, behind))
    shiny = surface.with_tint(bevel, gray(1))
    return Surface(shiny.height * (1 - outside), shiny.colour).with_tint(outside, behind)


def photograph(random: np.random.Generator, surface: Surface) -> Image.Image:
    """Return the surface in some light, a little blurred, noisy and not quite well exposed."""
    seen = surface.colour * _illumination(random, surface.height)
    warm = random.uniform(-0.05, 0.05)
    exposure = random.uniform(0.72, 1.25) * colour(1 + warm, 1, 1 - warm)
    contrast = random.uniform(0.75, 1.15)
    seen = (seen * exposure - 0.5) * contrast + 0.5
    sharp = _to_image(seen * 255)
    soft = sharp.filter(ImageFilter.GaussianBlur(random.uniform(0, 1.0)))
    grain = random.standard_normal((4, IMAGE_SIZE, IMAGE_SIZE), dtype=np.float32)
    grain = (grain[:3] + grain[3]) * random.uniform(0.8, 5.0)
    return _to_image(np.asarray(soft).transpose(2, 0, 1) + grain)


def _to_image(planes: Plane) -> Image.Image:
    pixels = np.clip(planes, 0, 255).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))


def _illumination(random: np.random.Generator, height: Plane) -> Plane:
    """Return how bright each pixel is: slopes towards the lamp are brighter, and so is its side."""
    angle = random.uniform(0, 2 * math.pi)
    towards = math.cos(angle), math.sin(angle)
    down: Plane = np.gradient(height, axis=0)
    across: Plane = np.gradient(height, axis=1)
    slope = across * towards[0] + down * towards[1]
    reach = random.uniform(0.4, 1.2) * IMAGE_SIZE
    lamp = tuple(IMAGE_SIZE / 2 + reach * each for each in towards)
    near: Plane = np.exp(-((distance_from((lamp[0], lamp[1])) / (1.3 * IMAGE_SIZE)) ** 2))
    even = random.uniform(0.6, 0.95)
    lit: Plane = np.clip(1 - slope * random.uniform(0.7, 1.3), 0.2, 2.2)
    return lit * (even + (1.1 - even) * near)
