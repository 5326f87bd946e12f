"""Pictures of predictions that changed: FP32's boxes or masks on the left, the engine's on the right."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from qconvert.core import tensors
from qconvert.images import image_files
from qconvert.images.listing import IMAGE_SUFFIXES, Images
from qconvert.measure.accuracy import Accuracy
from qconvert.measure.evidence import Thumbnail
from qconvert.run.context import JobContext
from qconvert.run.prediction_runs import PredictionRuns
from qconvert.tasks.detection_agreement import MIN_SCORE, agreement
from qconvert.tasks.predictions import ClassMap, Detections

MAX_VARIANTS, PICTURES_OF_VARIANT = 2, 6
PANEL, GAP = 320, 8
SHARED_COLOUR, LOST_COLOUR, NEW_COLOUR = (80, 200, 120), (230, 40, 60), (255, 150, 0)
MASK_OPACITY, OBJECT_OPACITY = 0.5, 0.4


def draw_changed_predictions(
    runs: PredictionRuns,
    images: Images,
    scores: Mapping[str, Accuracy],
    folder: Path,
    context: JobContext,
) -> tuple[Thumbnail, ...]:
    """Draw the pictures that agree least into a folder, for INT8 before other precisions.

    The names of the files are relative to it. Classifiers have none.
    """
    changed = {
        name: [row.image for row in accuracy.pictures if is_file_of_picture(row.image)]
        for name, accuracy in scores.items()
        if accuracy.pictures and name in runs.engines
    }
    order = sorted(filter(changed.get, changed), key=lambda n: runs.engines[n].precision != "int8")
    if not order:
        return ()
    run_reference, size = runs.open(""), runs.fixed_batch
    reading = runs.choose_reading(images, context)
    if reading is None or reading.task.name not in ("detect", "segment"):
        return ()
    places = {name: index for index, name in enumerate(images.names)}
    drawn: list[Thumbnail] = []
    for variant in order[:MAX_VARIANTS]:
        run = runs.open(variant)
        for name in changed[variant][:PICTURES_OF_VARIANT]:
            batch = next(iter(images.select([places[name]]).batches(1)))
            before, after = (
                reading.read(outputs, batch.frames, 1, size)[0]
                for outputs in (
                    tensors.run_padded(predict, batch.feeds, size)
                    for predict in (run_reference, run)
                )
            )
            picture = _draw(images.root / name, before, after, images.classes.names)
            file = f"{variant}-{len(drawn):02}.jpg"
            picture.save(folder / file, quality=82)
            drawn.append(Thumbnail(name, file, variant))
    return tuple(drawn)


def is_file_of_picture(name: str) -> bool:
    """Whether an image is a file and not a row of an array."""
    return name.lower().endswith(IMAGE_SUFFIXES)


def _draw(
    file: Path, before: Detections | ClassMap, after: Detections | ClassMap, classes: Sequence[str]
) -> Image.Image:
    data = image_files.read_image_bytes(file)
    picture = image_files.load_pixels(image_files.open_header(data), "RGB")
    scale = PANEL / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    small = picture.resize(size, Image.Resampling.BICUBIC)
    panels = [small.copy(), small.copy()]
    if isinstance(before, Detections) and isinstance(after, Detections):
        shared = agreement(before, after)
        sides = ((before, shared.lost, LOST_COLOUR), (after, shared.new, NEW_COLOUR))
        for number, (detections, alone, colour) in enumerate(sides):
            panels[number] = _shade_objects(small, detections, alone, colour)
            _draw_boxes(panels[number], detections, scale, alone, colour, classes)
    elif isinstance(before, ClassMap) and isinstance(after, ClassMap):
        panels = [_blend(small, prediction) for prediction in (before, after)]
    whole = Image.new("RGB", (2 * size[0] + GAP, size[1]), (255, 255, 255))
    for number, panel in enumerate(panels):
        whole.paste(panel, (number * (size[0] + GAP), 0))
    return whole


def _shade_objects(
    panel: Image.Image, detections: Detections, alone: Sequence[int], colour: tuple[int, int, int]
) -> Image.Image:
    """Return a copy of the panel under the masks of the detections, if they have any."""
    if detections.masks is None:
        return panel.copy()
    pixels = np.array(panel, np.float32)
    frame = detections.masks.frame
    for index in np.flatnonzero(detections.scores >= MIN_SCORE).tolist():
        mask = detections.masks.draw(index).on_picture((frame.width, frame.height))
        image = Image.fromarray(mask.astype(np.uint8))
        inside = np.asarray(image.resize(panel.size, Image.Resampling.NEAREST)) > 0
        ink = np.array(colour if index in alone else SHARED_COLOUR, np.float32)
        pixels[inside] += OBJECT_OPACITY * (ink - pixels[inside])
    return Image.fromarray(pixels.round().astype(np.uint8))


def _draw_boxes(
    panel: Image.Image,
    detections: Detections,
    scale: float,
    alone: Sequence[int],
    colour: tuple[int, int, int],
    classes: Sequence[str],
) -> None:
    pen = ImageDraw.Draw(panel)
    for index in np.flatnonzero(detections.scores >= MIN_SCORE).tolist():
        left, top, right, bottom = (scale * detections.boxes[index]).tolist()
        ink, width = (colour, 3) if index in alone else (SHARED_COLOUR, 1)
        pen.rectangle((left, top, right, bottom), outline=ink, width=width)
        number = int(detections.classes[index])
        name = classes[number] if number < len(classes) else str(number)
        label = f"{name} {detections.scores[index]:.2f}"
        place = (left, max(0.0, top - 11))
        pen.rectangle(pen.textbbox(place, label), fill=ink)
        pen.text(place, label, fill=(0, 0, 0))


def _blend(panel: Image.Image, prediction: ClassMap) -> Image.Image:
    """Return the panel under the colours of the classes; class 0 and what was not seen stay clear."""
    classes = prediction.to_picture()
    image = Image.fromarray(np.clip(classes, 0, 255).astype(np.uint8))
    numbers = np.asarray(image.resize(panel.size, Image.Resampling.NEAREST))
    pixels = np.asarray(panel, np.float32)
    opacity = (numbers[..., None] > 0) * MASK_OPACITY
    mixed = pixels * (1 - opacity) + _palette()[numbers] * opacity
    return Image.fromarray(mixed.round().astype(np.uint8))


def _palette() -> NDArray[np.float32]:
    """Return a colour for each of 256 classes, neighbours far apart."""
    hues = (np.arange(256) * 0.381966) % 1
    channels = np.abs((hues[:, None] * 6 + np.array([0, 4, 2])) % 6 - 3) - 1
    return np.asarray(255 * np.clip(channels, 0, 1), np.float32)
