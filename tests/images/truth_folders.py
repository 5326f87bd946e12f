"""Pictures with truth in every format, written to folders."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.images.image_folders import write_images

VOC_OBJECT = """<object><name>{name}</name><difficult>{difficult}</difficult><bndbox><xmin>{box[0]}
</xmin><ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"""


def write_pictures(root: Path, *names: str) -> Path:
    """Write pictures of 40×30 pixels and return their folder."""
    return write_images(root, *names, size=(40, 30))


def coco_content(boxes: Mapping[str, Sequence[tuple[int, list[float]]]]) -> dict[str, Any]:
    """Return COCO's lists for (category id, box) of each file, with categories 3, 7 and 9."""
    annotations = [
        {"id": 10 * image + number, "image_id": image, "category_id": category, "bbox": box}
        for image, marked in enumerate(boxes.values(), 1)
        for number, (category, box) in enumerate(marked)
    ]
    return {
        "images": [
            {"id": number, "file_name": name, "width": 40, "height": 30}
            for number, name in enumerate(boxes, 1)
        ],
        "annotations": annotations,
        "categories": [{"id": i, "name": n} for i, n in ((7, "dog"), (3, "cat"), (9, "bird"))],
    }


def write_json(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def write_text(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def voc_text(*objects: tuple[str, Sequence[float], int], size: str = "") -> str:
    """Return an annotation of objects as (name, corners, difficult)."""
    inside = "".join(
        VOC_OBJECT.format(name=name, box=box, difficult=difficult)
        for name, box, difficult in objects
    )
    return f"<annotation>{size}{inside}</annotation>"


def write_mask(path: Path, pixels: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path)
    return path
