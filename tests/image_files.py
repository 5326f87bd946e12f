"""Folders of small image files that tests write."""

from pathlib import Path

import numpy as np
from PIL import Image


def draw_images(folder: Path, count: int, size: int = 12) -> Path:
    """Write `count` noisy images, each with its own brightness."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        generator = np.random.default_rng(number)
        pixels = generator.integers(0, 60 + 5 * (number % 30), (size, size, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number:04}.png")
    return folder
