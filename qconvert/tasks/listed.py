"""Heads that end in non-maximum suppression: lists of boxes, scores and classes."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qconvert.tasks.boxes import Candidates, corners_of, list_objects, unit_of, with_prototypes
from qconvert.tasks.heads import (
    Arrays,
    Decoder,
    Head,
    Option,
    Sample,
    are_normalized,
    are_ordered,
    are_probabilities,
    batch_shape,
    unit_text,
)


def object_lists(
    arrays: Arrays,
    size: tuple[int, int],
    threshold: float,
    *,
    y_first: bool,
    normalized: bool,
    first_class: int,
    masks: bool = False,
) -> list[Candidates]:
    """Read boxes [N, K, 4], scores [N, K], classes [N, K] and, if there is one, a count [N].

    Lists without a first axis are those of one picture. With `y_first` the boxes are y1, x1, y2, x2.
    `first_class` is the number of the first class; lower ones are a background and are left out.
    The fourth array may be `masks` instead, of one picture: probabilities [K, 1, h, w] of the
    input's pixels.
    """
    # A map of its own for each object: one of them has the weight 1.
    prototypes = arrays[3].swapaxes(0, 1).astype(np.float32) - 0.5 if masks else None
    arrays = arrays[:3] if masks else arrays
    if arrays[0].ndim == 2:
        arrays = [array[None] for array in arrays]
    unit = unit_of(size, normalized)
    counts = np.full(len(arrays[0]), arrays[0].shape[1])
    if len(arrays) > 3:
        numbers = np.nan_to_num(arrays[3].reshape(-1), nan=np.inf)
        counts = np.clip(numbers, 0, counts).astype(np.intp)
    results = []
    for boxes, scores, classes, count in zip(*arrays[:3], counts, strict=True):
        corners = np.asarray(boxes[:count], np.float32)
        corners = (corners[:, [1, 0, 3, 2]] if y_first else corners) * unit
        numbers = np.asarray(classes[:count], np.float32) - first_class
        objects = ~(numbers < 0)
        own = np.eye(len(objects), dtype=np.float32)[objects] if masks else None
        results.append(
            list_objects(
                corners[objects], scores[:count][objects], numbers[objects], threshold, own
            )
        )
    return with_prototypes(results, prototypes)


def indexed_rows(arrays: Arrays, size: tuple[int, int], threshold: float) -> list[Candidates]:
    """Read rows [n, 7] of picture, x1, y1, x2, y2, class, score, up to the last picture with one."""
    rows = np.asarray(arrays[0], np.float32)
    rows = rows[np.isfinite(rows[:, 0])]
    pictures = int(rows[:, 0].max()) + 1 if len(rows) else 0
    parts = (rows[rows[:, 0] == picture] for picture in range(pictures))
    return [list_objects(part[:, 1:5], part[:, 6], part[:, 5], threshold) for part in parts]


def nms_indices(
    arrays: Arrays, size: tuple[int, int], threshold: float, *, boxes: str, normalized: bool
) -> list[Candidates]:
    """Read NonMaxSuppression's rows [n, 3] of picture, class and box, with its two inputs.

    These are boxes [N, A, 4], `xyxy` or `cxcywh`, and scores [N, classes, A].
    """
    unit = unit_of(size, normalized)
    results = []
    for picture in range(len(arrays[1])):
        rows = arrays[0][arrays[0][:, 0] == picture]
        places = np.asarray(arrays[1][picture][rows[:, 2]], np.float32) * unit
        if boxes == "cxcywh":
            places = corners_of(places[:, :2], places[:, 2:])
        scores = np.asarray(arrays[2][picture][rows[:, 1], rows[:, 2]], np.float32)
        results.append(list_objects(places, scores, rows[:, 1], threshold))
    return results


def fit_listed(sample: Sample) -> Head | None:
    """Return how finished lists are read: ONNX's indices, lists of objects, or rows of seven.

    Of two lists beside the boxes, the classes are the one of integers, or with `class` or `label`
    in its name, or of whole numbers; a third output with one number per picture is the count.
    Boxes are normalized if all are 2 or less, and y is first where they are named
    `detection_boxes`, as TensorFlow names them. The first class is 1 where the boxes have that name
    or no axis of pictures (torchvision), unless a class 0 occurs; else 0.
    """
    return _fit_indices(sample) or _fit_lists(sample) or _fit_indexed_rows(sample)


def _fit_indices(sample: Sample) -> Head | None:
    indices = [
        name for name, array in sample.select(2, integer=True).items() if array.shape[1] == 3
    ]
    outputs = sample.select(3)
    boxes = [name for name, array in outputs.items() if array.shape[2] == 4]
    if len(indices) != 1 or not boxes:
        return None
    for name in boxes:
        array = outputs[name]
        for other, scores in outputs.items():
            if other != name and (scores.shape[0], scores.shape[2]) == array.shape[:2]:
                form = "xyxy" if are_ordered(array) else "cxcywh"
                names = (indices[0], name, other)
                text = f"indices `{indices[0]}` of {form} boxes `{name}` and scores `{other}`"
                options: dict[str, Option] = {"boxes": form, "normalized": are_normalized(array)}
                classes = scores.shape[1]
                return Head("boxes", "nms_indices", names, text, options, classes=classes)
    return None


def _fit_lists(sample: Sample) -> Head | None:
    batched = sample.select(3)
    boxes = {name: array for name, array in batched.items() if array.shape[2] == 4}
    boxes = boxes or {
        name: array for name, array in sample.select(2).items() if array.shape[1] == 4
    }
    if len(boxes) != 1:
        return None
    ((name, array),) = boxes.items()
    lists = {
        other: values
        for other, values in sample.arrays.items()
        if other != name and values.shape == array.shape[:-1]
    }
    if len(lists) != 2:
        return None
    classes_name = _find_classes(lists)
    (scores_name,) = lists.keys() - {classes_name}
    if not are_probabilities(lists[scores_name]):
        return None
    # A batch of one box per picture has lists of the same shape as a count.
    counts = [
        other
        for other, values in sample.arrays.items()
        if array.ndim == 3 and other not in (name, *lists) and values.size == len(array)
    ]
    from_tensorflow = name.startswith("detection_boxes")
    numbers = lists[classes_name]
    starts_at_one = (from_tensorflow or array.ndim == 2) and not (numbers == 0).any()
    options: dict[str, Option] = {
        "y_first": from_tensorflow,
        "normalized": from_tensorflow or are_normalized(array),
        "first_class": int(starts_at_one),
    }
    masks = _full_masks(sample, len(array)) if array.ndim == 2 else []
    options |= {"masks": True} if masks else {}
    unit = "normalized" if from_tensorflow else unit_text(array)
    text = (
        f"boxes `{name}` {batch_shape(array)} {unit}, scores `{scores_name}`, "
        f"classes `{classes_name}` from {int(starts_at_one)}"
    )
    text += f", masks `{masks[0]}`" if masks else ""
    names = (name, scores_name, classes_name, *counts[:1], *masks[:1])
    return Head("boxes", "object_lists", names, text, options)


def _full_masks(sample: Sample, count: int) -> list[str]:
    """Return the outputs of a mask [count, 1, h, w] for each object, in pixels of the input."""
    shape = (count, 1, *sample.size[::-1])
    return [
        name
        for name, array in sample.select(4).items()
        if array.shape == shape and are_probabilities(array)
    ]


def _find_classes(lists: dict[str, NDArray[Any]]) -> str:
    def likelihood(name: str) -> tuple[bool, bool, bool, bool]:
        values, lower = lists[name], name.lower()
        whole = bool(np.all(values == np.round(values)))
        named = "class" in lower or "label" in lower
        return values.dtype.kind in "iu", named, "score" not in lower, whole

    # Of two equals the last: EfficientNMS returns scores before classes.
    return max(reversed(list(lists)), key=likelihood)


def _fit_indexed_rows(sample: Sample) -> Head | None:
    outputs = sample.select(2)
    if len(sample.arrays) != 1 or len(outputs) != 1:
        return None
    ((name, array),) = outputs.items()
    if array.shape[1] != 7:
        return None
    whole = array[:, [0, 5]]
    if np.any(whole != np.round(whole)) or np.any(whole < 0) or not are_probabilities(array[:, 6]):
        return None
    text = f"`{name}` {batch_shape(array)}: picture, box, class and score of each object"
    return Head("boxes", "indexed_rows", (name,), text)


BOXES = Decoder(
    "boxes",
    "detect",
    "boxes [N, K, 4] with scores [N, K], classes [N, K] and perhaps a count [N, 1] (EfficientNMS, "
    "TensorFlow); the same without N, perhaps with masks [K, 1, h, w] of the input (torchvision); the indices [n, 3] of NonMaxSuppression with "
    "its boxes [N, A, 4] and scores [N, C, A]; rows [n, 7] of picture, box, class, score",
    fit_listed,
)
