"""Images of printed text, for networks that read: noise would not exercise them."""

import string
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

LETTERS = string.ascii_letters + string.digits
LEAST, MOST = 18, 30


def lines(generator: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return images [count, channels, height, width] of random words, from -1 to 1."""
    count, channels, height, width = shape
    pages = [_page(generator, height, width) for _ in range(count)]
    grey = np.stack([np.asarray(page, np.float32) for page in pages])[:, np.newaxis]
    return np.repeat(grey / 127.5 - 1, channels, 1)


def _page(generator: np.random.Generator, height: int, width: int) -> Image.Image:
    page = Image.new("L", (width, height), int(generator.integers(180, 256)))
    pen = ImageDraw.Draw(page)
    top = 4
    while top + LEAST < height:
        size = int(min(height - top - 4, generator.integers(LEAST, MOST)))
        font: Any = ImageFont.load_default(size)
        letters = generator.choice(list(LETTERS), 2 * width // size - 1)
        pen.text((6, top), "".join(letters), int(generator.integers(0, 80)), font)
        top += 2 * size
    return page
