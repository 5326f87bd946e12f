"""The pictures of the demo: number so and so of a seed is always the same one."""

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from qconvert.demo.camera import photograph
from qconvert.demo.defects import CLASSES, DEFECTS
from qconvert.demo.surface import blank, with_edge

EDGES = 0.25  # so many of the pictures without a burr show an edge as well
QUALITY = 88


@dataclass(frozen=True)
class Picture:
    """An image, the number of its class, and a name that tells both to a person."""

    image: Image.Image
    label: int
    name: str

    def jpeg(self) -> bytes:
        """Return the file."""
        file = io.BytesIO()
        self.image.save(file, "JPEG", quality=QUALITY)
        return file.getvalue()

    def decoded(self) -> NDArray[np.uint8]:
        """Return the pixels as whoever reads the file sees them."""
        return np.asarray(Image.open(io.BytesIO(self.jpeg())))


def draw(seed: int, number: int) -> Picture:
    """Return a picture of a seed; its class follows from its number, so that all are as many."""
    random = np.random.default_rng((seed, number))
    label = number % len(CLASSES)
    kind = CLASSES[label]
    surface = blank(random)
    edge = random.random() < EDGES
    surface = DEFECTS[kind](random, surface)
    if edge and kind != "burr":
        surface = with_edge(random, surface, None)
    return Picture(photograph(random, surface), label, f"{number:04}-{kind}.jpg")
