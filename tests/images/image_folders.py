"""Folders of noise images, and helpers that open them."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from qconvert.core.tensors import TensorSpec
from qconvert.images import ImageChoice, open_images
from qconvert.images.listing import Images
from qconvert.images.preprocess import PRESETS, Preprocess

SPEC = TensorSpec("x", np.dtype("float32"), ("N", 3, 24, 24))
RED = (255, 0, 0)


def noise_image(width: int, height: int, seed: int = 0) -> Image.Image:
    """Return an image of random pixels."""
    generator = np.random.default_rng(seed)
    return Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))


def write_images(root: Path, *names: str, size: tuple[int, int] = (40, 30)) -> Path:
    """Write a different image under each name and return the folder."""
    for seed, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        noise_image(*size, seed).save(root / name)
    return root


def write_numbered(root: Path, count: int) -> Path:
    """Write that many images, named in order."""
    return write_images(root, *(f"{number:03}.png" for number in range(count)))


def open_for_test(
    path: Path, preprocess: Preprocess = PRESETS["imagenet"], spec: TensorSpec = SPEC, **choice: Any
) -> Images:
    """Open images for a small network."""
    return open_images(ImageChoice(path, **{"threads": 2, **choice}), [spec], preprocess)


def all_rows(images: Images, size: int = 4) -> NDArray[Any]:
    """Return the feeds of all images as one array."""
    return np.concatenate([next(iter(batch.feeds.values())) for batch in images.batches(size)])
