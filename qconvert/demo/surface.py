"""A piece of metal or paint before anything happened to it: its relief and its colours."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from qconvert.demo.shapes import COLUMNS, SIZE, Array, distance, noise, ramp, turned

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

    height: Array
    colour: Array

    def raised(self, by: Array) -> "Surface":
        """Return the surface with something on it, or with negative heights cut into it."""
        return Surface(self.height + by, self.colour)

    def tinted(self, where: Array, towards: Array) -> "Surface":
        """Return the surface with another colour where `where` says 1, and none where it is 0."""
        return Surface(self.height, self.colour + (towards - self.colour) * where)


def colour(red: float, green: float, blue: float) -> Array:
    """Return a colour that fits every pixel."""
    return np.array([red, green, blue], np.float32).reshape(3, 1, 1)


def gray(brightness: float) -> Array:
    """Return a colour without colour."""
    return colour(brightness, brightness, brightness)


def blank(random: np.random.Generator) -> Surface:
    """Return a surface that was made as it should be."""
    base = np.array(COLOURS[random.integers(len(COLOURS))]) * random.uniform(0.85, 1.12)
    base += random.uniform(-0.03, 0.03, 3)
    grain = FINISHES[random.integers(len(FINISHES))](random)
    cloud = noise(random, 3, 3) * random.uniform(0, 0.05) + noise(random, 9, 9) * 0.012
    shade = 1 + cloud + grain * random.uniform(0.01, 0.05)
    return Surface(grain * random.uniform(0.05, 0.22), colour(*base) * shade)


def _brushed(random: np.random.Generator) -> Array:
    """Return fine straight marks in one direction."""
    marks = noise(random, 96, int(random.integers(2, 7))) + noise(random, 48, 3) * 0.6
    return turned(marks, random.uniform(0, 180))


def _cast(random: np.random.Generator) -> Array:
    """Return a rough skin without direction."""
    return noise(random, 20, 20) * 0.6 + noise(random, 44, 44) + noise(random, 80, 80) * 0.5


def _milled(random: np.random.Generator) -> Array:
    """Return the arcs that a turning tool leaves."""
    angle, far = random.uniform(0, 2 * math.pi), random.uniform(0.8, 4) * SIZE
    centre = (SIZE / 2 + far * math.cos(angle), SIZE / 2 + far * math.sin(angle))
    step = random.uniform(3.5, 8)
    wave: Array = np.sin(distance(centre) * np.float32(2 * math.pi / step) + random.uniform(0, 6))
    return wave * random.uniform(0.4, 0.9) + noise(random, 50, 50) * 0.4


def _painted(random: np.random.Generator) -> Array:
    """Return the gentle waves of sprayed paint."""
    return noise(random, 26, 26) * random.uniform(0.3, 1.0)


FINISHES: tuple[Callable[[np.random.Generator], Array], ...] = (_brushed, _cast, _milled, _painted)


def with_edge(random: np.random.Generator, surface: Surface, ragged: Array | None) -> Surface:
    """Return the surface ending somewhere near one side, behind it whatever the part lies on.

    The edge is straight with a narrow bevel, unless `ragged` says how far it sticks out.
    """
    gone = COLUMNS - np.float32(SIZE * random.uniform(0.8, 0.93))
    if ragged is not None:
        gone = gone - ragged
    outside = ramp(gone, -0.6, 0.6)
    bevel = np.exp(-(((gone + 2.5) / 1.6) ** 2)) * random.uniform(0.05, 0.2)
    behind = random.uniform(0.04, 0.24) + noise(random, 4, 4) * 0.02
    quarters = int(random.integers(4))
    outside, bevel, behind = (np.rot90(each, quarters) for each in (outside, bevel, behind))
    shiny = surface.tinted(bevel, gray(1))
    return Surface(shiny.height * (1 - outside), shiny.colour).tinted(outside, behind)
