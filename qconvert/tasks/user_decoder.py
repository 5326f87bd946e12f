"""A decoder of the user's own: `package.module:function`."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np

from qconvert.core.errors import QConvertError
from qconvert.core.tensors import Tensors
from qconvert.core.user_code import call_function, import_function
from qconvert.images.frames import Frame
from qconvert.tasks.boxes import list_objects
from qconvert.tasks.heads import Decoder, Head, Sample, Task
from qconvert.tasks.predictions import ClassMap, Prediction, detections_of

USER_LAYOUT = "user"
PURPOSE = (
    "function(outputs, frames) returns for each picture (boxes, scores, classes), with boxes "
    "[n, 4] as x1, y1, x2, y2 in pixels of the network's input, or the classes [h, w] of its pixels"
)


def is_function(name: str) -> bool:
    """Return whether this is the name of a function and not of a decoder."""
    return ":" in name


def fit_function(name: str, sample: Sample) -> tuple[Decoder, Head]:
    """Return the decoder and the head of a function; its task is what it returns for the sample."""
    head = Head(name, USER_LAYOUT, tuple(sample.outputs), f"the function `{name}`")
    frames = [Frame(*sample.size, *sample.size)] * sample.count
    predictions = decode_by_function(sample.outputs, head, frames)
    task: Task = "segment" if any(isinstance(p, ClassMap) for p in predictions) else "detect"
    return Decoder(name, task, PURPOSE, lambda _: head), head


def decode_by_function(outputs: Tensors, head: Head, frames: Sequence[Frame]) -> list[Prediction]:
    """Return what the function makes of a batch; anything else than it should return is refused."""
    results = call_function(head.decoder, _function(head.decoder), dict(outputs), tuple(frames))
    if not isinstance(results, Sequence) or len(results) != len(frames):
        count = (
            f"{len(results)} results" if isinstance(results, Sequence) else type(results).__name__
        )
        raise QConvertError(
            f"`{head.decoder}()` returned {count} for {len(frames)} pictures", hint=PURPOSE
        )
    return [_prediction(result, frame, head) for result, frame in zip(results, frames, strict=True)]


@cache
def _function(name: str) -> Callable[..., Any]:
    return import_function(name, PURPOSE)


def _prediction(result: object, frame: Frame, head: Head) -> Prediction:
    if isinstance(result, np.ndarray) and result.ndim == 2 and result.dtype.kind in "iu":
        return ClassMap(result, frame)
    try:
        boxes, scores, classes = (np.asarray(part) for part in result)  # type: ignore[attr-defined]
        shapes = boxes.shape, scores.shape, classes.shape
        kinds = boxes.dtype.kind + scores.dtype.kind + classes.dtype.kind
    except (TypeError, ValueError):
        kinds = ""
    if len(kinds) != 3 or not set(kinds) <= set("iuf"):
        raise QConvertError(
            f"`{head.decoder}()` returned a {type(result).__name__} for a picture", hint=PURPOSE
        )
    count = scores.size
    if scores.ndim != 1 or boxes.size != 4 * count or classes.shape != (count,):
        raise QConvertError(
            f"`{head.decoder}()` returned boxes, scores and classes of the shapes "
            f"{', '.join(str(list(shape)) for shape in shapes)}",
            hint=PURPOSE,
        )
    objects = list_objects(boxes.reshape(count, 4), scores, classes, head.threshold)
    return detections_of(objects, frame, head.limit)
