"""Heads of YOLO's family, from v5 to v26 and YOLOX; their formulas are those of the functions."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qconvert.core import number_format
from qconvert.tasks.boxes import (
    Candidates,
    Floats,
    candidate_rows,
    corners_of,
    grid_of,
    limited_exp,
    list_objects,
    lowest_score,
    rows_above,
    select,
    sigmoid,
    softmax,
    unit_of,
    with_prototypes,
)
from qconvert.tasks.heads import (
    Arrays,
    Decoder,
    Head,
    Option,
    Sample,
    are_normalized,
    are_probabilities,
    batch_shape,
    map_place,
    unit_text,
)

# The strides of heads, of which the grids together have as many cells as a head has rows.
STRIDES = (
    (8, 16, 32),
    (8, 16, 32, 64),
    (4, 8, 16, 32),
    (16, 32),
    (8, 16),
    (4, 8, 16),
    (8, 16, 32, 64, 128),
)
MAP_STRIDES = (4, 8, 16, 32, 64, 128)
ANCHORS_PER_CELL = (1, 3)
NMS_IOU = 0.7
MAX_FINISHED = 1000
BINS = 16
# Distances themselves, or distributions of 8 (NanoDet), 16 (v8) and 17 bins (v6).
BOX_CHANNELS = (4, 32, 64, 68)


def yolo(
    arrays: Arrays,
    size: tuple[int, int],
    threshold: float,
    *,
    classes: int,
    objectness: bool,
    normalized: bool,
    logits: bool,
) -> list[Candidates]:
    """Read rows of x, y, w, h, objectness if there is one, and a score per class.

    x and y are the centre, in pixels or `normalized` to the input. With `objectness` a score is the
    product of both probabilities. A second array are prototypes [k, h, w] of masks, whose k
    coefficients follow the scores.
    """
    results = []
    unit = unit_of(size, normalized)
    for picture in arrays[0]:
        values = np.asarray(picture, np.float32)
        if objectness:
            values, scores = joint_scores(values, classes, threshold, logits)
        else:
            scores = values[:, 4 : 4 + classes]
        boxes = corners_of(values[:, :2] * unit[:2], values[:, 2:4] * unit[:2])
        own = coefficients_of(values, 4 + objectness + classes, arrays)
        results.append(select(boxes, scores, threshold, logits and not objectness, own))
    return with_prototypes(results, arrays[1] if len(arrays) > 1 else None)


def coefficients_of(rows: Floats, start: int, arrays: Arrays) -> Floats | None:
    """Return the columns of masks from `start` on, None without a second array of prototypes."""
    return rows[:, start : start + arrays[1].shape[1]] if len(arrays) > 1 else None


def yolox(
    arrays: Arrays,
    size: tuple[int, int],
    threshold: float,
    *,
    classes: int,
    strides: tuple[int, ...],
    logits: bool,
) -> list[Candidates]:
    """Read rows of t_x, t_y, t_w, t_h, objectness, and a score per class, one row per cell.

    x = (t_x + column) * stride, w = exp(t_w) * stride; the rows are those of the grids in order.
    """
    cells, steps = grid_of(size, strides)
    results = []
    for picture in arrays[0]:
        values = np.asarray(picture, np.float32).copy()
        values[:, :2] = (values[:, :2] + cells) * steps
        values[:, 2:4] = limited_exp(values[:, 2:4]) * steps
        values, scores = joint_scores(values, classes, threshold, logits)
        results.append(select(corners_of(values[:, :2], values[:, 2:4]), scores, threshold))
    return results


def yolo_maps(
    arrays: Arrays,
    size: tuple[int, int],
    threshold: float,
    *,
    bins: int,
    strides: tuple[int, ...],
    logits: bool,
) -> list[Candidates]:
    """Read one map [4 * bins + classes, h, w] per stride, or two: of boxes, then of scores.

    Maps may be rows [h * w, channels] too. The distances of the left, top, right and bottom edge
    from the middle of a cell, in strides, are the means of distributions over 0 .. bins - 1 (Li et
    al., Generalized Focal Loss, 2020); with one bin they are the values themselves.
    """
    cells, steps = grid_of(size, strides)
    centres = (cells + 0.5) * steps
    values = np.arange(bins, dtype=np.float32)
    results = []
    for picture in range(len(arrays[0])):
        maps = [np.asarray(array[picture], np.float32) for array in arrays]
        maps = [part.T if part.ndim == 2 else part.reshape(len(part), -1) for part in maps]
        if len(arrays) == 2 * len(strides):
            edges, scores = np.hstack(maps[::2]).T, np.hstack(maps[1::2]).T
        else:
            joined = np.hstack(maps).T
            edges, scores = joined[:, : 4 * bins], joined[:, 4 * bins :]
        # Only their boxes are computed: a distribution takes much longer than a score.
        rows = candidate_rows(scores, lowest_score(threshold, logits))
        edges, scores = edges[rows], scores[rows]
        if bins > 1:
            edges = softmax(edges.reshape(-1, 4, bins)) @ values
        edges = edges * steps[rows]
        middle = centres[rows]
        boxes = np.concatenate((middle - edges[:, :2], middle + edges[:, 2:]), axis=1)
        results.append(select(boxes, scores, threshold, logits))
    return results


def finished_rows(
    arrays: Arrays, size: tuple[int, int], threshold: float, *, normalized: bool
) -> list[Candidates]:
    """Read rows of x1, y1, x2, y2, score, class; non-maximum suppression is done.

    A second array are prototypes [k, h, w] of masks, whose k coefficients follow.
    """
    unit = unit_of(size, normalized)
    results = []
    for picture in arrays[0]:
        rows = np.asarray(picture, np.float32)
        own = coefficients_of(rows, 6, arrays)
        results.append(list_objects(rows[:, :4] * unit, rows[:, 4], rows[:, 5], threshold, own))
    return with_prototypes(results, arrays[1] if len(arrays) > 1 else None)


def joint_scores(
    rows: Floats, classes: int, threshold: float, logits: bool
) -> tuple[Floats, Floats]:
    """Return the rows with an objectness above the threshold and their joint probabilities.

    Column 4 is the objectness; the scores of the classes follow. A row with a NaN is kept.
    """
    rows = rows[rows_above(rows[:, 4:5], lowest_score(threshold, logits))]
    objectness, scores = rows[:, 4:5], rows[:, 5 : 5 + classes]
    if logits:
        objectness, scores = sigmoid(objectness), sigmoid(scores)
    return rows, objectness * scores


def grid_strides(count: int, size: tuple[int, int]) -> tuple[int, ...] | None:
    """Return the strides of `STRIDES` whose grids have `count` cells together, if there are any."""
    for strides in STRIDES:
        cells = sum(-(-size[0] // stride) * -(-size[1] // stride) for stride in strides)
        if cells == count:
            return strides
    return None


@dataclass(frozen=True)
class _Rows:
    """The one output with a row per box, if it is one: its name, its axes and its grid."""

    name: str
    values: NDArray[np.float32]
    swapped: bool
    strides: tuple[int, ...]
    anchors: int


def fit_yolo(sample: Sample) -> Head | None:
    """Return how a head of YOLO's family is read, decided by these rules in order.

    1. [N, K, 6 or more] with at most 1000 rows, of which column 4 holds probabilities and column 5
       whole numbers, is finished.
    2. [N, A, X] or [N, X, A], where A is the number of cells of the grids of `STRIDES`, or three
       times that: with three rows per cell (v5, v7), and with rows first (v6, YOLOX), column 4 is
       an objectness, unless the truth has as many classes as that makes scores; with columns
       first (v8 and later) there is none.
    3. Maps of two or more strides, as `yolo_maps` reads them: of the two maps of a stride the first
       with as many channels as boxes can have is that of the boxes.
    """
    return _fit_finished(sample) or _fit_rows(sample) or _fit_maps(sample)


def _fit_finished(sample: Sample) -> Head | None:
    outputs = sample.select(3)
    if len(outputs) != 1:
        return None
    ((name, array),) = outputs.items()
    if array.shape[2] < 6 or array.shape[1] > MAX_FINISHED:
        return None
    if array.shape[2] > 6 and map_place(array, sample.size) is not None:
        return None
    scores, classes = array[..., 4], array[..., 5]
    finite = classes[np.isfinite(classes)]
    if not are_probabilities(scores) or np.any(finite != np.round(finite)) or np.any(finite < 0):
        return None
    normalized = are_normalized(array[..., :4])
    text = f"`{name}` {batch_shape(array)}: finished boxes, {unit_text(array[..., :4])}"
    names: tuple[str, ...] = (name,)
    prototypes = _find_prototypes(sample)
    if prototypes is not None and array.shape[2] == 6 + prototypes.count:
        names = (name, prototypes.name)
        text += prototypes.text
    return Head("yolo", "finished_rows", names, text, {"normalized": normalized})


@dataclass(frozen=True)
class _Prototypes:
    """The output of the prototypes of masks [N, count, h, w]."""

    name: str
    count: int

    @property
    def text(self) -> str:
        return f"; masks from {number_format.count(self.count, 'prototype')} `{self.name}`"


def _find_prototypes(sample: Sample) -> _Prototypes | None:
    """Return the output of prototypes: the only one of four axes, a map of the input."""
    outputs = sample.select(4)
    if len(outputs) != 1:
        return None
    ((name, array),) = outputs.items()
    place = map_place(array, sample.size)
    if place is None or place.channels_last:
        return None
    return _Prototypes(name, array.shape[1])


def _find_rows(sample: Sample) -> _Rows | None:
    outputs = sample.select(3)
    if len(outputs) != 1:
        return None
    ((name, array),) = outputs.items()
    fits = []
    for swapped, count, columns in ((False, *array.shape[1:]), (True, *array.shape[:0:-1])):
        for anchors in ANCHORS_PER_CELL:
            strides = grid_strides(count // anchors, sample.size) if columns >= 5 else None
            if strides is not None and count % anchors == 0:
                fits.append((count, swapped, strides, anchors))
    if not fits and sample.forced and min(array.shape[1:]) >= 5:
        fits = [(max(array.shape[1:]), array.shape[1] < array.shape[2], (), 1)]
    if not fits:
        return None
    _, swapped, strides, anchors = max(fits)
    values = array.swapaxes(1, 2) if swapped else array
    return _Rows(name, np.asarray(values, np.float32), swapped, strides, anchors)


def _fit_rows(sample: Sample) -> Head | None:
    rows = _find_rows(sample)
    if rows is None:
        return None
    columns = rows.values.shape[2]
    objectness = columns > 5 and (rows.anchors > 1 or not rows.swapped)
    # Columns first have no objectness: a class less in the truth is one that the truth lacks.
    if objectness and sample.classes is not None:
        objectness = columns - 4 != sample.classes
    first = 5 if objectness else 4
    logits = not are_probabilities(rows.values[..., 4])
    classes = columns - first
    prototypes = _find_prototypes(sample)
    if not logits:
        # Masks' coefficients, keypoints and angles follow; they are no probabilities.
        fits = [are_probabilities(rows.values[..., column]) for column in range(first, columns)]
        classes = fits.index(False) if False in fits else classes
    if not classes:
        return None
    sides = rows.values[..., 2:4]
    cells = bool((sides[np.isfinite(sides)] < 0).any())
    if cells and not (objectness and rows.strides and rows.anchors == 1):
        return None
    ignored = columns - first - classes
    if cells or (prototypes is not None and prototypes.count != ignored):
        prototypes = None
    text = f"`{rows.name}` {batch_shape(sample.arrays[rows.name])}: {classes} classes"
    text += ", objectness" * objectness + ", logits" * logits
    if ignored:
        text += prototypes.text if prototypes else f"; {ignored} further columns are not read"
    options: dict[str, Option] = {"classes": classes, "logits": logits}
    if cells:
        options["strides"] = rows.strides
        text += f"; boxes relative to cells of the strides {rows.strides}"
    else:
        options |= {"objectness": objectness, "normalized": are_normalized(rows.values[..., :4])}
    return Head(
        "yolo",
        "yolox" if cells else "yolo",
        (rows.name, prototypes.name) if prototypes else (rows.name,),
        text,
        options,
        swapped=rows.swapped,
        classes=classes,
        iou=NMS_IOU,
    )


@dataclass(frozen=True)
class _Level:
    """The outputs of one stride, and how many channels each has."""

    stride: int
    names: tuple[str, ...]
    channels: tuple[int, ...]


def _find_levels(sample: Sample) -> list[_Level]:
    """Return the outputs of each stride, finest first, if all outputs belong to one."""
    outputs = sample.select(4) | sample.select(3)
    levels: dict[int, list[tuple[str, int]]] = {}
    for name, array in outputs.items():
        stride = _stride_of(array, sample.size)
        channels = array.shape[1] if array.ndim == 4 else array.shape[2]
        if stride is None:
            return []
        # One channel is the sum of the scores, as some exports have it.
        if channels > 1 or array.ndim == 3:
            levels.setdefault(stride, []).append((name, channels))
    return [_Level(stride, *zip(*levels[stride], strict=True)) for stride in sorted(levels)]


def _stride_of(array: NDArray[np.floating], size: tuple[int, int]) -> int | None:
    for stride in MAP_STRIDES:
        grid = -(-size[1] // stride), -(-size[0] // stride)
        if array.shape[2:] == grid or (array.ndim == 3 and array.shape[1] == grid[0] * grid[1]):
            return stride
    return None


def _fit_maps(sample: Sample) -> Head | None:
    levels = _find_levels(sample)
    channels = {level.channels for level in levels}
    if len(levels) < 2:
        return None
    if len(channels) > 1:  # perhaps the two maps of a stride are not in the same order everywhere
        levels = [_sorted_level(level) for level in levels]
        channels = {level.channels for level in levels}
    if len(channels) > 1:
        return None
    sizes = channels.pop()
    if len(sizes) == 1:
        bins, classes = BINS, sizes[0] - 4 * BINS
        # 255 = 3 * (5 + 80): three anchors of v5 and v7, which are not read.
        if classes < 1 or (sizes[0] == 255 and sample.classes != classes):
            return None
        scores = [sample.arrays[level.names[0]][:, 4 * BINS :] for level in levels]
    elif len(sizes) == 2 and not set(sizes).isdisjoint(BOX_CHANNELS):
        if sizes[0] not in BOX_CHANNELS:
            levels = [_Level(level.stride, level.names[::-1], sizes[::-1]) for level in levels]
        bins, classes = levels[0].channels[0] // 4, levels[0].channels[1]
        scores = [sample.arrays[level.names[1]] for level in levels]
    else:
        return None
    logits = not all(are_probabilities(array) for array in scores)
    names = tuple(name for level in levels for name in level.names)
    strides = tuple(level.stride for level in levels)
    options: dict[str, Option] = {"bins": bins, "strides": strides, "logits": logits}
    text = f"{', '.join(f'`{name}`' for name in names)}: {classes} classes, strides {strides}"
    return Head("yolo", "yolo_maps", names, text, options, classes=classes, iou=NMS_IOU)


def _sorted_level(level: _Level) -> _Level:
    pairs = sorted(zip(level.channels, level.names, strict=True))
    channels, names = zip(*pairs, strict=True)
    return _Level(level.stride, names, channels)


YOLO = Decoder(
    "yolo",
    "detect",
    "one output [N, 4 + C, A] (v8 to v13) or [N, A, 5 + C] (v5, v6, v7, YOLOX), where A counts the "
    "cells of strides 8, 16, 32; [N, K, 6] with boxes, scores and classes (v10, v26); or one map "
    "[N, 64 + C, h, w] per stride, or two, [N, 4, 32, 64 or 68, h, w] and [N, C, h, w] (PicoDet), "
    "also as rows [N, h * w, C]; masks of objects are read where all rows have k coefficients more and "
    "another output is [N, k, h, w]",
    fit_yolo,
)
