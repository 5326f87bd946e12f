"""Noisy images of four classes: stripes, checks, dots and rings, in two random colours."""

import math

import numpy as np
from PIL import Image

CLASSES = ("stripes", "checks", "dots", "rings")
SIZE = 32


def draw(random, label):
    """Return an image of a class as an array of bytes."""
    step = 2 * math.pi / random.uniform(6, 10)
    y, x = np.mgrid[:SIZE, :SIZE] * step
    up, left = random.uniform(0, 2 * math.pi, 2)
    middle = random.uniform(8, SIZE - 8, 2) * step
    shade = (
        lambda: np.sin(x + left),
        lambda: np.sign(np.sin(x + left) * np.sin(y + up)),
        lambda: np.sign(np.sin(x + left) + np.sin(y + up) - 1),
        lambda: np.sin(np.hypot(x - middle[0], y - middle[1])),
    )[label]()
    one, other = random.uniform(0, 255, (2, 3))
    while abs(one - other).max() < 80:
        other = random.uniform(0, 255, 3)
    image = one + (other - one) * (shade[..., None] + 1) / 2
    return np.clip(image + random.normal(0, 8, image.shape), 0, 255).astype(np.uint8)


def draw_all(seed, count):
    """Return images of all classes in turn, and the class of each."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % len(CLASSES)
    return np.stack([draw(random, label) for label in labels]), labels


def save(folder, seed, count):
    """Write images into a folder, and their classes into `labels.csv`."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = ["file,label"]
    for number, (image, label) in enumerate(zip(*draw_all(seed, count), strict=True)):
        Image.fromarray(image).save(folder / f"{number:03}.png")
        rows.append(f"{number:03}.png,{CLASSES[label]}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    (folder / "classes.txt").write_text("\n".join(CLASSES) + "\n")
