"""Detectors of the squares of `task_models`, as functions to lists of objects of every form."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qconvert.core.tensors import RunModel, Tensors
from tests.tasks.task_models import SIDE, SQUARE

MOST = 4


@dataclass(frozen=True, eq=False)
class Squares:
    """Corners in pixels, classes and scores."""

    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    scores: NDArray[np.float32]


def see_squares(image: NDArray[Any]) -> Squares:
    """Return the squares of a picture [3, 64, 64] with values from 0 to 1."""
    blocks = image.reshape(3, SIDE // SQUARE, SQUARE, SIDE // SQUARE, SQUARE).mean(axis=(2, 4))
    rows, columns = np.nonzero(blocks.max(axis=0) > 0.3)
    corners = np.stack((columns, rows), axis=1) * SQUARE
    boxes = np.concatenate((corners, corners + SQUARE), axis=1).astype(np.float32)
    colours = blocks[:, rows, columns]
    scores = colours.max(axis=0).astype(np.float32)
    return Squares(boxes, colours.argmax(axis=0), scores)


def single_lists(feeds: Tensors) -> Tensors:
    """Return torchvision's lists of one picture, [n, 4], [n] and [n]."""
    (image,) = feeds["image"]
    squares = see_squares(image)
    return {"boxes": squares.boxes, "labels": 1 + squares.labels, "scores": squares.scores}


def indexed_rows(feeds: Tensors) -> Tensors:
    """Return rows [n, 7] of picture, box, class, score."""
    rows = [np.zeros((0, 7), np.float32)]
    for number, image in enumerate(feeds["image"]):
        squares = see_squares(image)
        pictures = np.full(len(squares.labels), number)
        columns = (pictures, *squares.boxes.T, squares.labels, squares.scores)
        rows.append(np.stack(columns, axis=1).astype(np.float32))
    return {"rows": np.concatenate(rows)}


def filled_lists(unit: float = 1.0) -> Callable[[Tensors], Tensors]:
    """Return a function to lists [N, 4, 4], [N, 4] and [N, 4], with zeros where they end."""

    def run(feeds: Tensors) -> Tensors:
        count = len(feeds["image"])
        boxes = np.zeros((count, MOST, 4), np.float32)
        scores = np.zeros((count, MOST), np.float32)
        classes = np.zeros((count, MOST), np.int64)
        for number, image in enumerate(feeds["image"]):
            squares = see_squares(image)
            length = len(squares.labels)
            boxes[number, :length] = squares.boxes * unit
            scores[number, :length] = squares.scores
            classes[number, :length] = squares.labels
        return {"boxes": boxes, "scores": scores, "classes": classes}

    return run


def silent(run: RunModel) -> RunModel:
    """Return the network without boxes and without scores above zero."""

    def run_silently(feeds: Tensors) -> Tensors:
        return {name: array * 0 for name, array in run(feeds).items()}

    return run_silently
