"""Create a project: a network, and images sorted into one folder for each class."""

import shutil
from pathlib import Path

from qconvert.demo import generator
from qconvert.demo.demo_files import NETWORK
from qconvert.demo.generator import CLASSES, draw_image


def sort(folder, seed, count):
    """Draw the first images of a seed, each into the folder of its class."""
    for number in range(count):
        image = draw_image(seed, number)
        path = folder / CLASSES[image.label] / image.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image.jpeg)


sort(Path("pictures/calibration"), generator.CALIBRATION_SEED, 128)
sort(Path("pictures/evaluation"), generator.EVALUATION_SEED, 300)
Path("pictures/classes.txt").write_text("\n".join(CLASSES) + "\n")
shutil.copyfile(NETWORK, "network.onnx")
