"""The Python of a package: it runs the engine, computes what this tool does, and needs none of it.

Pictures are prepared by the same steps as in `images`, with the same roundings.
"""

from string import Template

from qconvert.backends.outside import Loading
from qconvert.feeds import fixed_batch
from qconvert.images.preprocess import Preprocess
from qconvert.serving.session_script import quoted, session
from qconvert.serving.shipment import Pictures, Shipment

HEAD = Template('''\
"""Runs $name: python run.py $what..."""

import sys
import tomllib
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

HERE = Path(__file__).parent
''')

READ = Template('''\
HOW = tomllib.loads((HERE / "preprocess.toml").read_text(encoding="utf-8"))


def read(file):
    """Return a picture as the model takes it."""
    image = ImageOps.exif_transpose(Image.open(file))
    if image.mode[:1] in "IF":
        sys.exit(f"{file}: more than 8 bits a channel")
    image, made = image.convert("$mode"), (HOW["width"], HOW["height"])
    scaled = $scaled
    if any(whole $unfit part for whole, part in zip(scaled, made)):
        sys.exit(f"{file}: {image.width}x{image.height} does not fit")
    # Only the part of the picture is resized that the crop leaves.
    by = [whole / part for whole, part in zip(image.size, scaled)]
    left, top = (round((whole - part) / 2) for whole, part in zip(scaled, made))
    right = min((left + made[0]) * by[0], image.width)
    bottom = min((top + made[1]) * by[1], image.height)
    method = Image.Resampling[HOW["interpolation"].upper()]
    image = image.resize(made, method, (left * by[0], top * by[1], right, bottom))
    pixels = np.asarray(image, np.float32).reshape(made[1], made[0], -1)$order
    mean, std = np.float32(HOW["mean"]), np.float32(HOW["std"])
    pixels = (pixels / np.float32(HOW["divisor"]) - mean) / std
    return pixels$layout[None].astype(HOW["type"])


''')

SCORES = Template("""\
for file in sys.argv[1:]:
    scores = session.run([$output], $feeds)[0][0].ravel()
    for at in scores.argsort()[::-1][:5]:
        print(f"{file}: $class {scores[at]:.6g}")
""")

OTHERS = Template("""\
for file in sys.argv[1:]:
    for output, answer in zip(session.get_outputs(), session.run(None, $feeds)):
        print(f"{file}: {output.name} {answer.shape}, {answer.min():.6g} to {answer.max():.6g}")
""")

CLASSES = 'CLASSES = (HERE / "classes.txt").read_text(encoding="utf-8").splitlines()\n'


def script(shipment: Shipment, found: Loading) -> str:
    """Return the program."""
    kind = "PICTURE" if shipment.pictures is not None else "ARRAYS.npz"
    parts = [HEAD.substitute(name=shipment.name, what=kind)]
    if shipment.pictures is None:
        parts[0] = parts[0].replace("import tomllib\n", "")
        parts[0] = parts[0].replace("from PIL import Image, ImageOps\n", "")
    else:
        parts.append(_read(shipment.pictures))
    parts.append(session(shipment.engine, found))
    parts.append(CLASSES if shipment.classes else "")
    parts.append("\n" + _answer(shipment))
    return "".join(parts)


def _read(pictures: Pictures) -> str:
    done, target = pictures.preprocess, pictures.target
    return READ.substitute(
        mode="L" if target.channels == 1 else "RGB",
        scaled=_scaled(done),
        unfit="!=" if done.crop == "none" else "<",
        order="[..., ::-1]" if done.colours == "bgr" else "",
        layout=".transpose(2, 0, 1)" if target.layout == "nchw" else "",
    )


def _scaled(done: Preprocess) -> str:
    if isinstance(done.resize, int):
        return '[int(HOW["resize"] * side / min(image.size)) for side in image.size]'
    return 'HOW["resize"]' if isinstance(done.resize, tuple) else "image.size"


def _answer(shipment: Shipment) -> str:
    scores, size = shipment.scores, fixed_batch(shipment.inputs) or 1
    picture = "read(file)" if size == 1 else f"np.repeat(read(file), {size}, 0)"
    feeds = "dict(np.load(file))"
    if shipment.pictures is not None:
        feeds = f'{{HOW["input"]: {picture}}}'
    if scores is None or shipment.pictures is None:
        return OTHERS.substitute(feeds=feeds)
    name = "{CLASSES[at]}" if shipment.classes else "class {at}"
    return SCORES.substitute({"output": quoted(scores.name), "feeds": feeds, "class": name})
