"""The images of the demo: number n of a seed is always the same image of one class of defects.

A surface of metal or paint is square planes of numbers, which a camera in some light shows.
"""

import io
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

# One seed per purpose, so that no image serves two.
TRAINING_SEED, CALIBRATION_SEED, EVALUATION_SEED = 20_260, 20_261, 20_262
CALIBRATION_COUNT, EVALUATION_COUNT = 128, 1000

IMAGE_SIZE = 128
OVERSAMPLING = 2  # lines and polygons are drawn larger and shrunk, which smooths their edges

Plane = NDArray[np.floating]
Point = tuple[float, float]
Random = np.random.Generator

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


@cache
def pixel_grid(size: int) -> tuple[Plane, Plane]:
    """Return the row and the column of each pixel of a plane."""
    rows, columns = np.mgrid[0:size, 0:size].astype(np.float32)
    return rows, columns


def noise(random: Random, down: int, across: int, size: int) -> Plane:
    """Return smooth noise around 0 with this many bumps."""
    cells = random.random((down + 1, across + 1), dtype=np.float32) * 2 - 1
    return np.asarray(Image.fromarray(cells).resize((size, size), Image.Resampling.BICUBIC))


def distance_from(centre: Point, size: int, elongation: float = 1.0, angle: float = 0.0) -> Plane:
    """Return the distance of each pixel from a point; `elongation` makes the circles ellipses."""
    rows, columns = pixel_grid(size)
    across, down = columns - np.float32(centre[0]), rows - np.float32(centre[1])
    cos, sin = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    along, beside = across * cos + down * sin, down * cos - across * sin
    distance: Plane = np.sqrt(along**2 / elongation + beside**2 * elongation)
    return distance


def smoothstep(values: Plane, low: float, high: float) -> Plane:
    """Return 0 below `low`, 1 above `high`, and a smooth transition between."""
    t: Plane = np.clip((values - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def blot_depth(random: Random, centre: Point, size: int, radius: float, rough: float) -> Plane:
    """Return how deep inside an irregular blot each pixel lies: 1 in its middle, 0 at its rim."""
    elongation = random.uniform(0.7, 1.5)
    distance = distance_from(centre, size, elongation, random.uniform(0, math.pi)) / radius
    coarse, fine = noise(random, 5, 5, size), noise(random, 14, 14, size)
    return 1 - distance + rough * (coarse * 0.6 + fine * 0.4)


def draw_lines(paths: Sequence[tuple[Sequence[Point], float]], size: int) -> Plane:
    """Return the coverage of lines, each with its width in pixels; width 0 fills a polygon."""
    canvas = Image.new("L", (size * OVERSAMPLING, size * OVERSAMPLING))
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


@dataclass(frozen=True)
class Surface:
    """Height in pixels, and the reflected share of red, green and blue light.

    `coverage` has one plane for each defect of a closed outline: 1 where it is, 0 where it is not.
    """

    height: Plane
    colour: Plane
    coverage: tuple[Plane, ...] = ()

    @property
    def size(self) -> int:
        """The number of rows, and of columns."""
        return len(self.height)

    def with_relief(self, height: Plane) -> "Surface":
        """Return the surface with height added; negative heights cut into it."""
        return replace(self, height=self.height + height)

    def with_tint(self, tint: Plane | float, opacity: Plane) -> "Surface":
        """Return the surface with another colour, or a gray, blended over it."""
        return replace(self, colour=self.colour + (tint - self.colour) * opacity)

    def with_defect(self, coverage: Plane) -> "Surface":
        """Return the surface with a note of where one more defect is."""
        return replace(self, coverage=(*self.coverage, coverage))


def blank_surface(random: Random, size: int = IMAGE_SIZE) -> Surface:
    """Return a surface without a defect."""
    base = np.array(COLOURS[random.integers(len(COLOURS))]) * random.uniform(0.85, 1.12)
    base += random.uniform(-0.03, 0.03, 3)
    grain = _finish(random, size)
    cloud = noise(random, 3, 3, size) * random.uniform(0, 0.05) + noise(random, 9, 9, size) * 0.012
    shade = 1 + cloud + grain * random.uniform(0.01, 0.05)
    return Surface(grain * random.uniform(0.05, 0.22), colour(*base) * shade)


def _finish(random: Random, size: int) -> Plane:
    kind = ("brushed", "cast", "milled", "painted")[random.integers(4)]
    if kind == "brushed":  # straight marks in one direction, enlarged so that no corner stays empty
        marks = (
            noise(random, 96, int(random.integers(2, 7)), size) + noise(random, 48, 3, size) * 0.6
        )
        image = Image.fromarray(marks)
        image = image.resize((size * 3 // 2,) * 2, Image.Resampling.BILINEAR)
        image = image.rotate(random.uniform(0, 180), Image.Resampling.BILINEAR)
        inner = slice(size // 4, size // 4 + size)
        return np.asarray(image)[inner, inner]
    if kind == "cast":
        return (
            noise(random, 20, 20, size) * 0.6
            + noise(random, 44, 44, size)
            + noise(random, 80, 80, size) * 0.5
        )
    if kind == "painted":
        return noise(random, 26, 26, size) * random.uniform(0.3, 1.0)
    angle, radius = random.uniform(0, 2 * math.pi), random.uniform(0.8, 4) * size
    step = random.uniform(3.5, 8)
    phase = distance_from(_offset((size / 2, size / 2), angle, radius), size) * np.float32(
        2 * math.pi / step
    ) + random.uniform(0, 6)
    arcs: Plane = np.sin(phase)
    return arcs * random.uniform(0.4, 0.9) + noise(random, 50, 50, size) * 0.4


def add_edge(random: Random, surface: Surface, ragged: Plane | None) -> Surface:
    """Return the surface ending near one side in a bevelled edge, with a background behind it.

    The edge is straight unless `ragged` gives how far it sticks out.
    """
    size = surface.size
    beyond = pixel_grid(size)[1] - np.float32(size * random.uniform(0.8, 0.93))
    if ragged is not None:
        beyond = beyond - ragged
    outside = smoothstep(beyond, -0.6, 0.6)
    bevel = np.exp(-(((beyond + 2.5) / 1.6) ** 2)) * random.uniform(0.05, 0.2)
    background = random.uniform(0.04, 0.24) + noise(random, 4, 4, size) * 0.02
    turns = int(random.integers(4))
    outside, bevel, background = (np.rot90(plane, turns) for plane in (outside, bevel, background))
    shiny = surface.with_tint(1.0, bevel)
    level = replace(shiny, height=shiny.height * (1 - outside))
    return level.with_tint(background, outside)


def photograph(random: Random, surface: Surface) -> Image.Image:
    """Return the surface in some light, a little blurred, noisy and imperfectly exposed."""
    # Brighter on slopes towards the lamp, and on its side.
    size = surface.size
    angle = random.uniform(0, 2 * math.pi)
    cos, sin = math.cos(angle), math.sin(angle)
    slope = np.gradient(surface.height, axis=1) * cos + np.gradient(surface.height, axis=0) * sin
    reach = random.uniform(0.4, 1.2) * size
    lamp_distance = distance_from(_offset((size / 2, size / 2), angle, reach), size)
    proximity = np.exp(-((lamp_distance / (1.3 * size)) ** 2))
    ambient = random.uniform(0.6, 0.95)
    lit = np.clip(1 - slope * random.uniform(0.7, 1.3), 0.2, 2.2)
    pixels = surface.colour * (lit * (ambient + (1.1 - ambient) * proximity))
    warmth = random.uniform(-0.05, 0.05)
    exposure = random.uniform(0.72, 1.25) * colour(1 + warmth, 1, 1 - warmth)
    contrast = random.uniform(0.75, 1.15)
    pixels = (pixels * exposure - 0.5) * contrast + 0.5
    blur = ImageFilter.GaussianBlur(random.uniform(0, 1.0))
    blurred = np.asarray(_to_image(pixels * 255).filter(blur)).transpose(2, 0, 1)
    grain = random.standard_normal((4, size, size), dtype=np.float32)
    return _to_image(blurred + (grain[:3] + grain[3]) * random.uniform(0.8, 5.0))


def _to_image(planes: Plane) -> Image.Image:
    pixels = np.clip(planes, 0, 255).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))


@dataclass(frozen=True)
class DemoImage:
    """The bytes of an image file, the number of its class, and a file name that tells both."""

    jpeg: bytes
    label: int
    name: str

    def decode(self) -> NDArray[np.uint8]:
        """Return the pixels as a reader of the file sees them."""
        return np.asarray(Image.open(io.BytesIO(self.jpeg)))


def draw_image(seed: int, number: int) -> DemoImage:
    """Return an image of a seed; its class follows from its number, so classes are balanced."""
    random = np.random.default_rng((seed, number))
    label = number % len(CLASSES)
    surface = blank_surface(random)
    has_edge = random.random() < 0.25
    surface = DEFECTS[CLASSES[label]](random, surface)
    if has_edge and CLASSES[label] != "burr":
        surface = add_edge(random, surface, None)
    file = io.BytesIO()
    photograph(random, surface).save(file, "JPEG", quality=88)
    return DemoImage(file.getvalue(), label, f"{number:04}-{CLASSES[label]}.jpg")


def write_images(
    folder: Path, seed: int, count: int, progress: Callable[[int], None] = lambda done: None
) -> None:
    """Draw the first images of a seed into a folder, with their labels."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    # Most of the work holds Python's lock; more threads would wait for each other.
    with ThreadPoolExecutor(2) as pool:
        for done, image in enumerate(pool.map(partial(draw_image, seed), range(count)), 1):
            (folder / image.name).write_bytes(image.jpeg)
            rows.append(f"{image.name},{CLASSES[image.label]}\n")
            progress(done)
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES), encoding="utf-8")
    (folder / "labels.csv").write_text("file,label\n" + "".join(rows), encoding="utf-8")


def plain(random: Random, surface: Surface) -> Surface:
    """Leave the surface as it is."""
    return surface


def scratch(random: Random, surface: Surface) -> Surface:
    """Cut one or two long thin grooves, bright or dark."""
    for _ in range(random.integers(1, 3)):
        surface = groove(random, surface)
    return surface


def groove(random: Random, surface: Surface) -> Surface:
    """Cut one long thin groove."""
    start, angle = random_point(random, surface.size, 0.2), random.uniform(0, 2 * math.pi)
    length, bend = random.uniform(45, 110), random.uniform(-9, 9)
    path = []
    for t in np.linspace(-0.5, 0.5, 12):
        point = _offset(start, angle, length * t)
        path.append(_offset(point, angle + math.pi / 2, bend * (1 - 4 * t * t)))
    line = draw_lines([(path, random.uniform(0.8, 1.8))], surface.size)
    surface = surface.with_relief(line * -random.uniform(0.3, 0.7))
    tone = float(random.choice((0.05, 0.95)))
    return surface.with_tint(tone, line * random.uniform(0.2, 0.5)).with_defect(line)


def crack(random: Random, surface: Surface) -> Surface:
    """Add a jagged dark line that forks."""

    def jagged(point: Point, angle: float, steps: int | np.integer) -> list[Point]:
        points = [point]
        for _ in range(steps):
            turned = angle + random.uniform(-0.9, 0.9)
            points.append(_offset(points[-1], turned, random.uniform(3, 8)))
        return points

    angle = random.uniform(0, 2 * math.pi)
    start = _offset(random_point(random, surface.size, 0.15), angle, -25)
    trunk = jagged(start, angle, random.integers(8, 16))
    width = random.uniform(0.9, 1.9)
    paths = [(trunk, width)]
    for _ in range(random.integers(1, 4)):
        fork = trunk[random.integers(2, len(trunk) - 2)]
        turn = angle + random.choice((-1, 1)) * random.uniform(0.5, 1.1)
        paths.append((jagged(fork, turn, random.integers(3, 7)), width * 0.6))
    gap = draw_lines(paths, surface.size)
    surface = surface.with_relief(gap * -0.4).with_tint(0.03, gap * random.uniform(0.3, 0.8))
    return surface.with_defect(gap)


def dent(random: Random, surface: Surface) -> Surface:
    """Press a soft hollow that only its shading shows."""
    size = surface.size
    radius, centre = random.uniform(11, 26), random_point(random, size, 0.25)
    distance = distance_from(centre, size, random.uniform(0.7, 1.4), random.uniform(0, math.pi))
    hollow = 1 - smoothstep(distance, radius * random.uniform(-0.3, 0.35), radius)
    surface = surface.with_relief(hollow * -radius * random.uniform(0.06, 0.16))
    return surface.with_defect(hollow)


def pit(random: Random, surface: Surface) -> Surface:
    """Sink small dark holes all over the surface."""
    return pits(random, surface, partial(random_point, random, surface.size, 0.08))


def pits(random: Random, surface: Surface, next_point: Callable[[], Point]) -> Surface:
    """Sink small dark holes at the points that `next_point` returns; together they are a defect."""
    coverage = np.zeros_like(surface.height)
    for _ in range(random.integers(3, 13)):
        radius = random.uniform(1.3, 3.4)
        distance = distance_from(next_point(), surface.size)
        hole = 1 - smoothstep(distance, radius * 0.5, radius * 1.2)
        surface = surface.with_relief(hole * -radius * 0.3)
        surface = surface.with_tint(0.03, hole * random.uniform(0.35, 0.8))
        coverage = np.maximum(coverage, hole)
    return surface.with_defect(coverage)


def stain(random: Random, surface: Surface) -> Surface:
    """Leave a dried film, often with a darker rim."""
    size = surface.size
    centre = random_point(random, size, 0.25)
    depth = blot_depth(random, centre, size, random.uniform(16, 36), 0.35)
    film = smoothstep(depth, 0, random.uniform(0.08, 0.25))
    rim = np.exp(-(((depth - 0.1) / 0.07) ** 2)) * random.uniform(0, 0.12)
    tint = surface.colour * colour(*random.uniform(0.35, 0.8) * random.uniform(0.85, 1.15, 3))
    opacity = np.clip(film * random.uniform(0.22, 0.6) + rim, 0, 1)
    return surface.with_tint(tint, opacity).with_defect(film)


def rust(random: Random, surface: Surface) -> Surface:
    """Grow crumbly brown spots."""
    brown = _brown(random)
    for _ in range(random.integers(1, 4)):
        surface = _rust_spot(random, surface, brown)
    return surface


def rust_spot(random: Random, surface: Surface) -> Surface:
    """Grow one crumbly brown spot."""
    return _rust_spot(random, surface, _brown(random))


def _brown(random: Random) -> Plane:
    return np.array([0.42, 0.23, 0.12]) * random.uniform(0.7, 1.3) + random.uniform(-0.03, 0.03, 3)


def _rust_spot(random: Random, surface: Surface, brown: Plane) -> Surface:
    size = surface.size
    centre = random_point(random, size, 0.2)
    depth = blot_depth(random, centre, size, random.uniform(9, 26), 0.5)
    depth = depth + noise(random, 40, 40, size) * random.uniform(0.25, 0.5)
    crust = smoothstep(depth, 0.05, 0.5)
    surface = surface.with_relief(crust * noise(random, 60, 60, size) * 0.5)
    speckle = colour(*brown) * (1 + noise(random, 50, 50, size) * 0.25)
    return surface.with_tint(speckle, crust * random.uniform(0.3, 0.85)).with_defect(crust)


def spatter(random: Random, surface: Surface) -> Surface:
    """Add shining drops of weld metal all over the surface."""
    return drops(random, surface, partial(random_point, random, surface.size, 0.08))


def drops(random: Random, surface: Surface, next_point: Callable[[], Point]) -> Surface:
    """Add drops at the points that `next_point` returns; together they are one defect."""
    coverage = np.zeros_like(surface.height)
    for _ in range(random.integers(3, 11)):
        radius, centre = random.uniform(2.0, 4.6), next_point()
        elongation, angle = random.uniform(0.8, 1.25), random.uniform(0, 3)
        distance = distance_from(centre, surface.size, elongation, angle)
        drop = np.sqrt(np.clip(1 - (distance / radius) ** 2, 0, 1))
        shadow = 1 - smoothstep(distance, radius, radius * 1.7)
        surface = surface.with_tint(0.03, shadow * random.uniform(0.08, 0.25))
        surface = surface.with_relief(drop * radius * random.uniform(0.35, 0.8))
        steel = random.uniform(0.5, 0.8)
        metal = np.clip(drop * 2, 0, 1)
        surface = surface.with_tint(steel, metal * 0.6)
        coverage = np.maximum(coverage, metal)
    return surface.with_defect(coverage)


def burr(random: Random, surface: Surface) -> Surface:
    """End the surface in a badly cut edge with slivers that stick out."""
    size = surface.size
    across = noise(random, int(random.integers(16, 40)), 1, size)[:, size // 2]
    ragged = across * random.uniform(1.2, 3.2)
    rows = np.arange(size, dtype=np.float32)
    for _ in range(random.integers(2, 8)):
        row, width = random.uniform(6, size - 6), random.uniform(1.5, 4.5)
        sliver = np.clip(1 - np.abs(rows - row) / width, 0, 1)
        ragged = ragged + sliver * random.uniform(2, 8)
    return add_edge(random, surface, ragged[:, None])


def peel(random: Random, surface: Surface) -> Surface:
    """Break off a flake of the coat that has sharp corners."""
    size = surface.size
    centre, radius = random_point(random, size, 0.25), random.uniform(13, 27)
    corners = int(random.integers(6, 12))
    turns = (np.arange(corners) + random.uniform(0, 0.8, corners)) * (2 * math.pi / corners)
    outline = [_offset(centre, turn, radius * random.uniform(0.55, 1.15)) for turn in turns]
    flake = draw_lines([(outline, 0)], size)
    primer = random.uniform(0.25, 0.85) + random.uniform(-0.04, 0.04, 3)
    coat = colour(*primer) * (1 + noise(random, 30, 30, size) * 0.06)
    surface = surface.with_relief(flake * -random.uniform(0.3, 0.9))
    return surface.with_tint(coat, flake * random.uniform(0.4, 0.9)).with_defect(flake)


DEFECTS: dict[str, Callable[[Random, Surface], Surface]] = {
    defect.__name__: defect
    for defect in (plain, scratch, crack, dent, pit, stain, rust, spatter, burr, peel)
}
CLASSES = tuple(DEFECTS)


def random_point(random: Random, size: int, margin: float) -> Point:
    """Return a point that keeps this share of the image as a margin."""
    low, high = size * margin, size * (1 - margin)
    return random.uniform(low, high), random.uniform(low, high)


def _offset(point: Point, angle: float, distance: float) -> Point:
    return point[0] + distance * math.cos(angle), point[1] + distance * math.sin(angle)
