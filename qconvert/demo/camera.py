"""From a surface to a picture of it: where the light stands, and what the camera adds."""

import math

import numpy as np
from PIL import Image, ImageFilter

from qconvert.demo.shapes import SIZE, Array, distance
from qconvert.demo.surface import Surface, colour


def photograph(random: np.random.Generator, surface: Surface) -> Image.Image:
    """Return the surface in some light, a little blurred, noisy and not quite well exposed."""
    seen = surface.colour * _light(random, surface.height)
    warm = random.uniform(-0.05, 0.05)
    exposure = random.uniform(0.72, 1.25) * colour(1 + warm, 1, 1 - warm)
    contrast = random.uniform(0.75, 1.15)
    seen = (seen * exposure - 0.5) * contrast + 0.5
    sharp = _image(seen * 255)
    soft = sharp.filter(ImageFilter.GaussianBlur(random.uniform(0, 1.0)))
    grain = random.standard_normal((4, SIZE, SIZE), dtype=np.float32)
    grain = (grain[:3] + grain[3]) * random.uniform(0.8, 5.0)
    return _image(np.asarray(soft).transpose(2, 0, 1) + grain)


def _image(planes: Array) -> Image.Image:
    pixels = np.clip(planes, 0, 255).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))


def _light(random: np.random.Generator, height: Array) -> Array:
    """Return how bright each pixel is: slopes towards the lamp are brighter, and so is its side."""
    angle = random.uniform(0, 2 * math.pi)
    towards = math.cos(angle), math.sin(angle)
    down: Array = np.gradient(height, axis=0)
    across: Array = np.gradient(height, axis=1)
    slope = across * towards[0] + down * towards[1]
    reach = random.uniform(0.4, 1.2) * SIZE
    lamp = tuple(SIZE / 2 + reach * each for each in towards)
    near: Array = np.exp(-((distance((lamp[0], lamp[1])) / (1.3 * SIZE)) ** 2))
    even = random.uniform(0.6, 0.95)
    lit: Array = np.clip(1 - slope * random.uniform(0.7, 1.3), 0.2, 2.2)
    return lit * (even + (1.1 - even) * near)
