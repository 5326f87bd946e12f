"""Pictures drawn for tests."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from qconvert.core.tensors import TensorSpec
from qconvert.images import ImageChoice, open_images
from qconvert.images.batches import Images
from qconvert.images.image_files import ReadOptions
from qconvert.images.preprocess import PRESETS, Preprocess

SPEC = TensorSpec("x", np.dtype("float32"), ("N", 3, 24, 24))
RED = (255, 0, 0)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """Return a picture that differs everywhere."""
    generator = np.random.default_rng(seed)
    return Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))


def folder(root: Path, *names: str, size: tuple[int, int] = (40, 30)) -> Path:
    """Write a different picture under each name and return the folder."""
    for seed, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        noise(*size, seed).save(root / name)
    return root


def numbered(root: Path, count: int) -> Path:
    """Write that many pictures, named in order."""
    return folder(root, *(f"{number:03}.png" for number in range(count)))


def opened(
    path: Path,
    reading: ReadOptions = ReadOptions(workers=2),  # noqa: B008
    preprocess: Preprocess = PRESETS["imagenet"],
    spec: TensorSpec = SPEC,
    **choice: Any,
) -> Images:
    """Open images for a small network."""
    return open_images(ImageChoice(path, **choice), [spec], preprocess, reading)


def arrays(images: Images, size: int = 4) -> NDArray[Any]:
    """Return everything the images feed, in one array."""
    return np.concatenate([next(iter(batch.feeds.values())) for batch in images.batches(size)])
