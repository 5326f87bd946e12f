"""Lays out what an own project has: a network, and pictures sorted into one folder a class."""

import shutil
from pathlib import Path

from qconvert.demo import generator
from qconvert.demo.demo_files import NETWORK
from qconvert.demo.generator import CLASSES, draw_image


def sort(folder, seed, count):
    """Draw the first pictures of a seed, each into the folder of its class."""
    for number in range(count):
        picture = draw_image(seed, number)
        place = folder / CLASSES[picture.label] / picture.name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(picture.jpeg())


sort(Path("pictures/calibration"), generator.CALIBRATION_SEED, 128)
sort(Path("pictures/evaluation"), generator.EVALUATION_SEED, 300)
Path("pictures/classes.txt").write_text("\n".join(CLASSES) + "\n")
shutil.copyfile(NETWORK, "network.onnx")
