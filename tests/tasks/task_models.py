"""Small networks of each task, written as ONNX text, and the pictures that they read right.

A picture shows squares of red, green or blue, the classes 0, 1 and 2, on dark noise. The networks
average colours, so what they predict depends on the picture, and no training is needed.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from PIL import Image

from qconvert.graph.passes import infer_shapes
from qconvert.graph.patterns import constant_array
from tests.models import floats, from_text

SIDE, SQUARE, COLOURS = 64, 16, ("red", "green", "blue")
Floats = NDArray[np.float32]

# A head of YOLO v8: rows of cx, cy, w, h and three scores, of grids of the strides 8, 16 and 32.
DETECTOR = """
<ir_version: 10, opset_import: ["": 20]>
detector (float[BATCH, 3, 64, 64] image) => (float[BATCH, 7, 84] output0) {
    stem = Conv <pads: ints = [1, 1, 1, 1]> (image, stem_weight)
    all_features = Relu (stem)
    body = Conv <pads: ints = [1, 1, 1, 1]> (all_features, body_weight)
    features = Relu (body)
    fine = Conv <strides: ints = [8, 8]> (features, fine_weight, fine_bias)
    middle = Conv <strides: ints = [16, 16]> (features, middle_weight, middle_bias)
    coarse = Conv <strides: ints = [32, 32]> (features, coarse_weight, coarse_bias)
    fine_rows = Reshape (fine, shape)
    middle_rows = Reshape (middle, shape)
    coarse_rows = Reshape (coarse, shape)
    rows = Concat <axis: int = 2> (fine_rows, middle_rows, coarse_rows)
    sides, logits = Split <axis: int = 1> (rows, parts)
    boxes = Add (sides, grid)
    scores = Sigmoid (logits)
    output0 = Concat <axis: int = 1> (boxes, scores)
}
"""
# The class of each pixel, as scores of the background and three colours.
SEGMENTER = """
<ir_version: 10, opset_import: ["": 20]>
segmenter (float[BATCH, 3, 64, 64] image) => (float[BATCH, 4, 64, 64] out) {
    stem = Conv <pads: ints = [1, 1, 1, 1]> (image, stem_weight)
    features = Relu (stem)
    out = Conv (features, head_weight, head_bias)
}
"""
# A vector of eight numbers for each picture.
EMBEDDER = """
<ir_version: 10, opset_import: ["": 20]>
embedder (float[BATCH, 3, 64, 64] image) => (float[BATCH, 8] vector) {
    stem = Conv <pads: ints = [1, 1, 1, 1]> (image, stem_weight)
    features = Relu (stem)
    pooled = GlobalAveragePool (features)
    vector = Flatten (pooled)
}
"""


def detector(batch: str | int = "N", outlier: float = 1.0) -> ir.Model:
    """Return a detector of squares of 16 pixels on a grid of 16; its mAP is about 0.98.

    The brighter a square is, the surer its score, and the larger its box. `outlier` multiplies a
    feature that nothing depends on: a large one leaves no integers to the others.
    """
    stem, body = _stem(), np.zeros((8, 8, 3, 3), np.float32)
    stem[7] *= outlier
    body[:7, :7, 1, 1] = np.eye(7)
    weights: dict[str, NDArray[np.generic]] = {"stem_weight": stem, "body_weight": body}
    for name, stride in (("fine", 8), ("middle", 16), ("coarse", 32)):
        weights[f"{name}_weight"] = np.zeros((7, 8, stride, stride), np.float32)
        weights[f"{name}_bias"] = np.array([0, 0, 0, 0, -9, -9, -9], np.float32)
    share = 1 / SQUARE**2
    for label in range(3):
        weights["middle_weight"][4 + label, :3] = -5 * share
        weights["middle_weight"][4 + label, label] = 10 * share
    weights["middle_weight"][2:4, :3] = 2 * share
    weights["middle_bias"] = np.array([0, 0, -1.5, -1.5, -4, -4, -4], np.float32)
    constants: dict[str, NDArray[np.generic]] = {
        "shape": np.array([0, 7, -1], np.int64),
        "parts": np.array([4, 3], np.int64),
        "grid": _grid(),
    }
    return _named(from_text(DETECTOR.replace("BATCH", str(batch)), **weights, **constants))


# DETECTOR with a mask of each object: one prototype, where a pixel is bright, and a coefficient
# that is the same for all masks but for its size.
MASKED = """
    coefficient, others = Split <axis: int = 1> (boxes, first)
    output0 = Concat <axis: int = 1> (boxes, scores, coefficient)
    output1 = Conv (all_features, mask_weight, mask_bias)
}
"""


def instance_segmenter() -> ir.Model:
    """Return the detector with masks of the squares, in the form of YOLO."""
    plain = detector()
    text = DETECTOR.replace("BATCH", "N").replace("7, 84", "8, 84")
    text = text.replace("output0)", "output0, float[N, 1, 64, 64] output1)", 1)
    text = text[: text.index("    output0 = ")] + MASKED
    weights: dict[str, NDArray[np.generic]] = {
        name: np.asarray(constant_array(value)) for name, value in plain.graph.initializers.items()
    }
    weights |= {"first": np.array([1, 3], np.int64)}
    weights["mask_weight"] = np.array([1, 1, 1, 0, 0, 0, 0, 0], np.float32).reshape(1, 8, 1, 1)
    weights["mask_bias"] = np.array([-0.35], np.float32)
    return _named(from_text(text, **weights))


# The boxes of DETECTOR relative to a second input, as RT-DETR has it, without what it suppresses.
SIZED = """
    shares = Div (boxes, whole)
    size = Cast <to: int = 1> (orig_target_sizes)
    both = Concat <axis: int = 1> (size, size)
    column = Unsqueeze (both, last)
    placed = Mul (shares, column)
    output0 = Concat <axis: int = 1> (placed, scores)
}
"""


def sized_detector() -> ir.Model:
    """Return the detector with an input for the size of pictures, in which its boxes are."""
    plain = detector()
    text = DETECTOR.replace("BATCH", "N").replace(
        "image)", "image, int64[N, 2] orig_target_sizes)", 1
    )
    text = text[: text.index("    output0 = ")] + SIZED
    weights: dict[str, NDArray[np.generic]] = {
        name: np.asarray(constant_array(value)) for name, value in plain.graph.initializers.items()
    }
    weights |= {"whole": np.array(SIDE, np.float32), "last": np.array([2], np.int64)}
    return _named(from_text(text, **weights))


def segmenter(batch: str | int = "N") -> ir.Model:
    """Return a segmenter of squares, which is unsure at their edges."""
    head = np.zeros((4, 8, 1, 1), np.float32)
    for label in range(3):
        head[1 + label, :3, 0, 0] = -5
        head[1 + label, label, 0, 0] = 10
    bias = np.array([2.5, 0, 0, 0], np.float32)
    text = SEGMENTER.replace("BATCH", str(batch))
    return _named(from_text(text, stem_weight=_stem(), head_weight=head, head_bias=bias))


def embedder(batch: str | int = "N") -> ir.Model:
    """Return a network whose vectors are mean colours and five other means."""
    return _named(from_text(EMBEDDER.replace("BATCH", str(batch)), stem_weight=_stem()))


def _stem() -> Floats:
    """Return weights that pass the three colours on, and five random filters."""
    weights = 0.2 * floats(8, 3, 3, 3, seed=5)
    weights[:3] = 0
    weights[[0, 1, 2], [0, 1, 2]] = 1 / 9
    return weights.astype(np.float32)


def _grid() -> Floats:
    """Return the centres and sides of the cells, [1, 7 - 3, 84]."""
    rows = []
    for stride in (8, 16, 32):
        y, x = np.mgrid[: SIDE // stride, : SIDE // stride].reshape(2, -1)
        sides = np.full(len(x), stride)
        rows.append(np.stack(((x + 0.5) * stride, (y + 0.5) * stride, sides, sides)))
    return np.concatenate(rows, axis=1)[None].astype(np.float32)


def _named(model: ir.Model) -> ir.Model:
    model = infer_shapes(model)[0]
    for node in model.graph:
        node.name = node.outputs[0].name
    return model


@dataclass(frozen=True, eq=False)
class Scene:
    """A picture, its squares as left, top, right, bottom, and their classes."""

    pixels: NDArray[np.uint8]
    boxes: NDArray[np.int64]
    labels: NDArray[np.int64]

    @property
    def mask(self) -> NDArray[np.uint8]:
        """The class of each pixel: 0 is the background, the squares have 1 to 3."""
        mask = np.zeros((SIDE, SIDE), np.uint8)
        for (left, top, right, bottom), label in zip(self.boxes, self.labels, strict=True):
            mask[top:bottom, left:right] = 1 + label
        return mask


def draw_scene(seed: int, squares: int | None = None) -> Scene:
    """Return a scene of so many squares, of one to four without a number."""
    random = np.random.default_rng(seed)
    count = int(random.integers(1, 5)) if squares is None else squares
    cells = random.choice((SIDE // SQUARE) ** 2, count, replace=False)
    corners = np.stack((cells % 4, cells // 4), axis=1).astype(np.int64) * SQUARE
    labels = random.integers(0, 3, count)
    pixels = random.uniform(0, 0.15, (SIDE, SIDE, 3))
    for (left, top), label in zip(corners, labels, strict=True):
        square = pixels[top : top + SQUARE, left : left + SQUARE]
        square[..., label] = random.uniform(0.45, 1) + random.uniform(-0.05, 0, square.shape[:2])
    boxes = np.concatenate((corners, corners + SQUARE), axis=1)
    return Scene((255 * pixels).astype(np.uint8), boxes, labels)


def write_scenes(
    folder: Path, count: int, seed: int = 0, squares: int | None = None
) -> list[Scene]:
    """Write scenes as `folder/0000.png` and on, without their truth."""
    folder.mkdir(parents=True, exist_ok=True)
    scenes = [draw_scene(1000 * seed + number, squares) for number in range(count)]
    for number, scene in enumerate(scenes):
        Image.fromarray(scene.pixels).save(folder / f"{number:04}.png")
    return scenes


def write_coco(file: Path, scenes: Sequence[Scene], classes: Sequence[str] = COLOURS) -> Path:
    """Write the squares of scenes as COCO's JSON."""
    annotations = [
        {
            "id": 1 + 10 * image + number,
            "image_id": image,
            "category_id": int(label) + 1,
            "bbox": [*box[:2].tolist(), *(box[2:] - box[:2]).tolist()],
            "area": int(np.prod(box[2:] - box[:2])),
            "iscrowd": 0,
        }
        for image, scene in enumerate(scenes)
        for number, (box, label) in enumerate(zip(scene.boxes, scene.labels, strict=True))
    ]
    images = [
        {"id": image, "file_name": f"{image:04}.png", "width": SIDE, "height": SIDE}
        for image in range(len(scenes))
    ]
    categories = [{"id": number, "name": name} for number, name in enumerate(classes, 1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    file.write_text(json.dumps(content))
    return file


def write_masks(folder: Path, scenes: Sequence[Scene]) -> Path:
    """Write the masks of scenes."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, scene in enumerate(scenes):
        Image.fromarray(scene.mask).save(folder / f"{number:04}.png")
    return folder
