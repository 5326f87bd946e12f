"""Lays out what an own project has: a network, and pictures sorted into one folder a class."""

import shutil
from pathlib import Path

from qconvert.demo import seeds
from qconvert.demo.defects import CLASSES
from qconvert.demo.pictures import draw
from qconvert.demo.scene import NETWORK


def sort(folder, seed, count):
    """Draw the first pictures of a seed, each into the folder of its class."""
    for number in range(count):
        picture = draw(seed, number)
        place = folder / CLASSES[picture.label] / picture.name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(picture.jpeg())


sort(Path("pictures/calibration"), seeds.CALIBRATION, 128)
sort(Path("pictures/evaluation"), seeds.EVALUATION, 300)
Path("pictures/classes.txt").write_text("\n".join(CLASSES) + "\n")
shutil.copyfile(NETWORK, "network.onnx")
