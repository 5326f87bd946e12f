"""What can be wrong with a surface; every class is a function that does it to a good one."""

import math
from collections.abc import Callable

import numpy as np

from qconvert.demo.shapes import SIZE, Point, blot, distance, lines, noise, polygon, ramp
from qconvert.demo.surface import Surface, colour, gray, with_edge

Random = np.random.Generator
BLACK = gray(0.03)


def plain(random: Random, surface: Surface) -> Surface:
    """Return the surface as it is."""
    return surface


def scratch(random: Random, surface: Surface) -> Surface:
    """Return it with one or two long thin grooves, bright or dark."""
    for _ in range(random.integers(1, 3)):
        start, angle = _place(random, 0.2), random.uniform(0, 2 * math.pi)
        length, bend = random.uniform(45, 110), random.uniform(-9, 9)
        path = []
        for t in np.linspace(-0.5, 0.5, 12):
            along, beside = length * t, bend * (1 - 4 * t * t)
            path.append(_moved(_moved(start, angle, along), angle + math.pi / 2, beside))
        groove = lines([(path, random.uniform(0.8, 1.8))])
        surface = surface.raised(groove * -random.uniform(0.3, 0.7))
        tone = gray(random.choice((0.05, 0.95)))
        surface = surface.tinted(groove * random.uniform(0.2, 0.5), tone)
    return surface


def crack(random: Random, surface: Surface) -> Surface:
    """Return it with a jagged dark line that forks."""
    angle = random.uniform(0, 2 * math.pi)
    trunk = _jagged(random, _moved(_place(random, 0.15), angle, -25), angle, random.integers(8, 16))
    width = random.uniform(0.9, 1.9)
    paths = [(trunk, width)]
    for _ in range(random.integers(1, 4)):
        fork = trunk[random.integers(2, len(trunk) - 2)]
        turn = angle + random.choice((-1, 1)) * random.uniform(0.5, 1.1)
        paths.append((_jagged(random, fork, turn, random.integers(3, 7)), width * 0.6))
    gap = lines(paths)
    return surface.raised(gap * -0.4).tinted(gap * random.uniform(0.3, 0.8), BLACK)


def dent(random: Random, surface: Surface) -> Surface:
    """Return it pressed in: a soft hollow that is seen by its shading alone."""
    radius = random.uniform(11, 26)
    far = distance(_place(random, 0.25), random.uniform(0.7, 1.4), random.uniform(0, math.pi))
    hollow = 1 - ramp(far, radius * random.uniform(-0.3, 0.35), radius)
    return surface.raised(hollow * -radius * random.uniform(0.06, 0.16))


def pit(random: Random, surface: Surface) -> Surface:
    """Return it with small dark holes."""
    for _ in range(random.integers(3, 13)):
        radius = random.uniform(1.3, 3.4)
        hole = 1 - ramp(distance(_place(random, 0.08)), radius * 0.5, radius * 1.2)
        surface = surface.raised(hole * -radius * 0.3)
        surface = surface.tinted(hole * random.uniform(0.35, 0.8), BLACK)
    return surface


def stain(random: Random, surface: Surface) -> Surface:
    """Return it with something dried on it: a darker film, often with a darker rim."""
    depth = blot(random, _place(random, 0.25), random.uniform(16, 36), 0.35)
    film = ramp(depth, 0, random.uniform(0.08, 0.25))
    rim = np.exp(-(((depth - 0.1) / 0.07) ** 2)) * random.uniform(0, 0.12)
    tint = surface.colour * colour(*random.uniform(0.35, 0.8) * random.uniform(0.85, 1.15, 3))
    return surface.tinted(np.clip(film * random.uniform(0.22, 0.6) + rim, 0, 1), tint)


def rust(random: Random, surface: Surface) -> Surface:
    """Return it with crumbly brown spots around one or more hearts."""
    brown = np.array([0.42, 0.23, 0.12]) * random.uniform(0.7, 1.3) + random.uniform(-0.03, 0.03, 3)
    for _ in range(random.integers(1, 4)):
        depth = blot(random, _place(random, 0.2), random.uniform(9, 26), 0.5)
        depth = depth + noise(random, 40, 40) * random.uniform(0.25, 0.5)
        crust = ramp(depth, 0.05, 0.5)
        surface = surface.raised(crust * noise(random, 60, 60) * 0.5)
        speckle = colour(*brown) * (1 + noise(random, 50, 50) * 0.25)
        surface = surface.tinted(crust * random.uniform(0.3, 0.85), speckle)
    return surface


def spatter(random: Random, surface: Surface) -> Surface:
    """Return it with drops of weld metal that stand out and shine."""
    for _ in range(random.integers(3, 11)):
        radius = random.uniform(2.0, 4.6)
        far = distance(_place(random, 0.08), random.uniform(0.8, 1.25), random.uniform(0, 3))
        drop = np.sqrt(np.clip(1 - (far / radius) ** 2, 0, 1))
        shadow = 1 - ramp(far, radius, radius * 1.7)
        surface = surface.tinted(shadow * random.uniform(0.08, 0.25), BLACK)
        surface = surface.raised(drop * radius * random.uniform(0.35, 0.8))
        steel = gray(random.uniform(0.5, 0.8))
        surface = surface.tinted(np.clip(drop * 2, 0, 1) * 0.6, steel)
    return surface


def burr(random: Random, surface: Surface) -> Surface:
    """Return it ending in an edge that was cut badly: ragged, with slivers that stick out."""
    across = noise(random, int(random.integers(16, 40)), 1)[:, SIZE // 2]
    ragged = across * random.uniform(1.2, 3.2)
    for _ in range(random.integers(2, 8)):
        at, wide = random.uniform(6, SIZE - 6), random.uniform(1.5, 4.5)
        rows = np.arange(SIZE, dtype=np.float32)
        sliver = np.clip(1 - np.abs(rows - at) / wide, 0, 1)
        ragged = ragged + sliver * random.uniform(2, 8)
    return with_edge(random, surface, ragged[:, None])


def peel(random: Random, surface: Surface) -> Surface:
    """Return it with its coat come off in a flake that has sharp corners."""
    centre, radius = _place(random, 0.25), random.uniform(13, 27)
    corners = int(random.integers(6, 12))
    turns = (np.arange(corners) + random.uniform(0, 0.8, corners)) * (2 * math.pi / corners)
    outline = [_moved(centre, turn, radius * random.uniform(0.55, 1.15)) for turn in turns]
    flake = polygon(outline)
    under = random.uniform(0.25, 0.85) + random.uniform(-0.04, 0.04, 3)
    coat = colour(*under) * (1 + noise(random, 30, 30) * 0.06)
    cut = surface.raised(flake * -random.uniform(0.3, 0.9))
    return cut.tinted(flake * random.uniform(0.4, 0.9), coat)


DEFECTS: dict[str, Callable[[Random, Surface], Surface]] = {
    each.__name__: each
    for each in (plain, scratch, crack, dent, pit, stain, rust, spatter, burr, peel)
}
CLASSES = tuple(DEFECTS)


def _place(random: Random, margin: float) -> Point:
    """Return a place, so much of the picture away from its sides."""
    low, high = SIZE * margin, SIZE * (1 - margin)
    return random.uniform(low, high), random.uniform(low, high)


def _moved(point: Point, angle: float, by: float) -> Point:
    return point[0] + by * math.cos(angle), point[1] + by * math.sin(angle)


def _jagged(random: Random, start: Point, angle: float, steps: int | np.integer) -> list[Point]:
    points = [start]
    for _ in range(steps):
        bent = angle + random.uniform(-0.9, 0.9)
        points.append(_moved(points[-1], bent, random.uniform(3, 8)))
    return points
