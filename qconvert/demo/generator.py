"""Which pictures are for what: three seeds, so that no picture serves two purposes."""

import io
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from qconvert.demo.drawing import (
    IMAGE_SIZE,
    Point,
    Surface,
    add_edge,
    blank_surface,
    blot_depth,
    colour,
    distance_from,
    draw_lines,
    draw_polygon,
    gray,
    noise,
    photograph,
    smoothstep,
)

TRAINING_SEED, CALIBRATION_SEED, EVALUATION_SEED = 20_260, 20_261, 20_262
CALIBRATION_COUNT, EVALUATION_COUNT = 128, 1000


Random = np.random.Generator
BLACK = gray(0.03)


def plain(random: Random, surface: Surface) -> Surface:
    """Return the surface as it is."""
    return surface


def scratch(random: Random, surface: Surface) -> Surface:
    """Return it with one or two long thin grooves, bright or dark."""
    for _ in range(random.integers(1, 3)):
        start, angle = _random_point(random, 0.2), random.uniform(0, 2 * math.pi)
        length, bend = random.uniform(45, 110), random.uniform(-9, 9)
        path = []
        for t in np.linspace(-0.5, 0.5, 12):
            along, beside = length * t, bend * (1 - 4 * t * t)
            path.append(
                _offset_point(_offset_point(start, angle, along), angle + math.pi / 2, beside)
            )
        groove = draw_lines([(path, random.uniform(0.8, 1.8))])
        surface = surface.with_relief(groove * -random.uniform(0.3, 0.7))
        tone = gray(random.choice((0.05, 0.95)))
        surface = surface.with_tint(groove * random.uniform(0.2, 0.5), tone)
    return surface


def crack(random: Random, surface: Surface) -> Surface:
    """Return it with a jagged dark line that forks."""
    angle = random.uniform(0, 2 * math.pi)
    trunk = _jagged_path(
        random,
        _offset_point(_random_point(random, 0.15), angle, -25),
        angle,
        random.integers(8, 16),
    )
    width = random.uniform(0.9, 1.9)
    paths = [(trunk, width)]
    for _ in range(random.integers(1, 4)):
        fork = trunk[random.integers(2, len(trunk) - 2)]
        turn = angle + random.choice((-1, 1)) * random.uniform(0.5, 1.1)
        paths.append((_jagged_path(random, fork, turn, random.integers(3, 7)), width * 0.6))
    gap = draw_lines(paths)
    return surface.with_relief(gap * -0.4).with_tint(gap * random.uniform(0.3, 0.8), BLACK)


def dent(random: Random, surface: Surface) -> Surface:
    """Return it pressed in: a soft hollow that is seen by its shading alone."""
    radius = random.uniform(11, 26)
    far = distance_from(
        _random_point(random, 0.25), random.uniform(0.7, 1.4), random.uniform(0, math.pi)
    )
    hollow = 1 - smoothstep(far, radius * random.uniform(-0.3, 0.35), radius)
    return surface.with_relief(hollow * -radius * random.uniform(0.06, 0.16))


def pit(random: Random, surface: Surface) -> Surface:
    """Return it with small dark holes."""
    for _ in range(random.integers(3, 13)):
        radius = random.uniform(1.3, 3.4)
        hole = 1 - smoothstep(
            distance_from(_random_point(random, 0.08)), radius * 0.5, radius * 1.2
        )
        surface = surface.with_relief(hole * -radius * 0.3)
        surface = surface.with_tint(hole * random.uniform(0.35, 0.8), BLACK)
    return surface


def stain(random: Random, surface: Surface) -> Surface:
    """Return it with something dried on it: a darker film, often with a darker rim."""
    depth = blot_depth(random, _random_point(random, 0.25), random.uniform(16, 36), 0.35)
    film = smoothstep(depth, 0, random.uniform(0.08, 0.25))
    rim = np.exp(-(((depth - 0.1) / 0.07) ** 2)) * random.uniform(0, 0.12)
    tint = surface.colour * colour(*random.uniform(0.35, 0.8) * random.uniform(0.85, 1.15, 3))
    return surface.with_tint(np.clip(film * random.uniform(0.22, 0.6) + rim, 0, 1), tint)


def rust(random: Random, surface: Surface) -> Surface:
    """Return it with crumbly brown spots around one or more hearts."""
    brown = np.array([0.42, 0.23, 0.12]) * random.uniform(0.7, 1.3) + random.uniform(-0.03, 0.03, 3)
    for _ in range(random.integers(1, 4)):
        depth = blot_depth(random, _random_point(random, 0.2), random.uniform(9, 26), 0.5)
        depth = depth + noise(random, 40, 40) * random.uniform(0.25, 0.5)
        crust = smoothstep(depth, 0.05, 0.5)
        surface = surface.with_relief(crust * noise(random, 60, 60) * 0.5)
        speckle = colour(*brown) * (1 + noise(random, 50, 50) * 0.25)
        surface = surface.with_tint(crust * random.uniform(0.3, 0.85), speckle)
    return surface


def spatter(random: Random, surface: Surface) -> Surface:
    """Return it with drops of weld metal that stand out and shine."""
    for _ in range(random.integers(3, 11)):
        radius = random.uniform(2.0, 4.6)
        far = distance_from(
            _random_point(random, 0.08), random.uniform(0.8, 1.25), random.uniform(0, 3)
        )
        drop = np.sqrt(np.clip(1 - (far / radius) ** 2, 0, 1))
        shadow = 1 - smoothstep(far, radius, radius * 1.7)
        surface = surface.with_tint(shadow * random.uniform(0.08, 0.25), BLACK)
        surface = surface.with_relief(drop * radius * random.uniform(0.35, 0.8))
        steel = gray(random.uniform(0.5, 0.8))
        surface = surface.with_tint(np.clip(drop * 2, 0, 1) * 0.6, steel)
    return surface


def burr(random: Random, surface: Surface) -> Surface:
    """Return it ending in an edge that was cut badly: ragged, with slivers that stick out."""
    across = noise(random, int(random.integers(16, 40)), 1)[:, IMAGE_SIZE // 2]
    ragged = across * random.uniform(1.2, 3.2)
    for _ in range(random.integers(2, 8)):
        at, wide = random.uniform(6, IMAGE_SIZE - 6), random.uniform(1.5, 4.5)
        rows = np.arange(IMAGE_SIZE, dtype=np.float32)
        sliver = np.clip(1 - np.abs(rows - at) / wide, 0, 1)
        ragged = ragged + sliver * random.uniform(2, 8)
    return add_edge(random, surface, ragged[:, None])


def peel(random: Random, surface: Surface) -> Surface:
    """Return it with its coat come off in a flake that has sharp corners."""
    centre, radius = _random_point(random, 0.25), random.uniform(13, 27)
    corners = int(random.integers(6, 12))
    turns = (np.arange(corners) + random.uniform(0, 0.8, corners)) * (2 * math.pi / corners)
    outline = [_offset_point(centre, turn, radius * random.uniform(0.55, 1.15)) for turn in turns]
    flake = draw_polygon(outline)
    under = random.uniform(0.25, 0.85) + random.uniform(-0.04, 0.04, 3)
    coat = colour(*under) * (1 + noise(random, 30, 30) * 0.06)
    cut = surface.with_relief(flake * -random.uniform(0.3, 0.9))
    return cut.with_tint(flake * random.uniform(0.4, 0.9), coat)


DEFECTS: dict[str, Callable[[Random, Surface], Surface]] = {
    each.__name__: each
    for each in (plain, scratch, crack, dent, pit, stain, rust, spatter, burr, peel)
}
CLASSES = tuple(DEFECTS)


def _random_point(random: Random, margin: float) -> Point:
    """Return a place, so much of the picture away from its sides."""
    low, high = IMAGE_SIZE * margin, IMAGE_SIZE * (1 - margin)
    return random.uniform(low, high), random.uniform(low, high)


def _offset_point(point: Point, angle: float, by: float) -> Point:
    return point[0] + by * math.cos(angle), point[1] + by * math.sin(angle)


def _jagged_path(
    random: Random, start: Point, angle: float, steps: int | np.integer
) -> list[Point]:
    points = [start]
    for _ in range(steps):
        bent = angle + random.uniform(-0.9, 0.9)
        points.append(_offset_point(points[-1], bent, random.uniform(3, 8)))
    return points


EDGE_SHARE = 0.25  # so many of the pictures without a burr show an edge as well
JPEG_QUALITY = 88


@dataclass(frozen=True)
class DemoImage:
    """An image, the number of its class, and a name that tells both to a person."""

    image: Image.Image
    label: int
    name: str

    def encode_jpeg(self) -> bytes:
        """Return the file."""
        file = io.BytesIO()
        self.image.save(file, "JPEG", quality=JPEG_QUALITY)
        return file.getvalue()

    def decode(self) -> NDArray[np.uint8]:
        """Return the pixels as whoever reads the file sees them."""
        return np.asarray(Image.open(io.BytesIO(self.encode_jpeg())))


def draw_image(seed: int, number: int) -> DemoImage:
    """Return a picture of a seed; its class follows from its number, so that all are as many."""
    random = np.random.default_rng((seed, number))
    label = number % len(CLASSES)
    kind = CLASSES[label]
    surface = blank_surface(random)
    edge = random.random() < EDGE_SHARE
    surface = DEFECTS[kind](random, surface)
    if edge and kind != "burr":
        surface = add_edge(random, surface, None)
    return DemoImage(photograph(random, surface), label, f"{number:04}-{kind}.jpg")


LABELS_FILE, CLASSES_FILE = "labels.csv", "classes.txt"
THREADS = 2  # most of the work holds Python's lock; more of them would wait for each other


def write_images(
    folder: Path, seed: int, count: int, progress: Callable[[int], None] | None = None
) -> None:
    """Draw the first pictures of a seed into a folder, with their labels beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []

    def put(number: int) -> DemoImage:
        picture = draw_image(seed, number)
        (folder / picture.name).write_bytes(picture.encode_jpeg())
        return picture

    with ThreadPoolExecutor(THREADS) as pool:
        for done, picture in enumerate(pool.map(put, range(count)), 1):
            rows.append(f"{picture.name},{CLASSES[picture.label]}\n")
            if progress is not None:
                progress(done)
    (folder / CLASSES_FILE).write_text("".join(f"{name}\n" for name in CLASSES), encoding="utf-8")
    (folder / LABELS_FILE).write_text("file,label\n" + "".join(rows), encoding="utf-8")
