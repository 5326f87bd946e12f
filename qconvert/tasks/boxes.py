"""Arithmetic of boxes and scores: NumPy alone, so that `package` can write this file into scripts.

Boxes are float32 [n, 4], xyxy. Everything here takes the arrays of one picture.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Integers = NDArray[np.int32]
Indices = NDArray[np.intp]

# NMS sees at most this many pairs of a box and a class of one picture, those of the highest score.
MAX_CANDIDATES = 1000
# NMS decides about this many boxes at a time.
BLOCK = 64
# exp() of more than this is wider than any picture.
MAX_EXPONENT = 20.0


@dataclass(frozen=True, eq=False)
class Candidates:
    """Boxes in pixels of the network's input, by falling score; `dropped` ones were not finite.

    The mask of a box is the sum of the `prototypes` [k, h, w] of its picture, weighed by its
    `coefficients` [n, k]; both are None where the network has no masks.
    """

    boxes: Floats
    scores: Floats
    classes: Integers
    dropped: int = 0
    coefficients: Floats | None = None
    prototypes: Floats | None = None


def with_prototypes(
    results: list[Candidates], prototypes: NDArray[np.generic] | None
) -> list[Candidates]:
    """Return the candidates of pictures with the prototypes [N, k, h, w] of each, if there are any."""
    if prototypes is None:
        return results
    pairs = zip(results, np.asarray(prototypes, np.float32), strict=True)
    return [
        Candidates(own.boxes, own.scores, own.classes, own.dropped, own.coefficients, maps)
        for own, maps in pairs
    ]


def sigmoid(values: Floats) -> Floats:
    """Return 1 / (1 + exp(-x)) without overflow."""
    return np.asarray(0.5 * np.tanh(0.5 * values) + 0.5, np.float32)


def softmax(values: Floats) -> Floats:
    """Return the softmax along the last axis."""
    shifted = np.exp(values - values.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True), np.float32)


def limited_exp(values: Floats) -> Floats:
    """Return exp(x), which cannot overflow."""
    return np.asarray(np.exp(np.minimum(values, MAX_EXPONENT)), np.float32)


def corners_of(centres: Floats, sizes: Floats) -> Floats:
    """Return the xyxy boxes of centres [n, 2] and sizes [n, 2], both x before y."""
    half = 0.5 * sizes
    return np.concatenate((centres - half, centres + half), axis=1)


def unit_of(size: tuple[int, int], normalized: bool) -> Floats:
    """Return what boxes [n, 4] are multiplied by to be pixels of an input of a (width, height)."""
    return np.array((*size, *size) if normalized else (1, 1, 1, 1), np.float32)


def cells_of(height: int, width: int) -> Floats:
    """Return the (x, y) of each cell of a grid, row by row."""
    y, x = np.divmod(np.arange(height * width, dtype=np.float32), np.float32(width))
    return np.stack((x, y), axis=1)


def grid_of(size: tuple[int, int], strides: tuple[int, ...]) -> tuple[Floats, Floats]:
    """Return the cells of the grids of an input of a (width, height), and the stride of each."""
    grids = [cells_of(-(-size[1] // stride), -(-size[0] // stride)) for stride in strides]
    steps = [
        np.full((len(cells), 1), stride, np.float32)
        for cells, stride in zip(grids, strides, strict=True)
    ]
    return np.concatenate(grids), np.concatenate(steps)


def lowest_score(threshold: float, logits: bool) -> float:
    """Return the threshold of scores whose probabilities have this one."""
    return float(np.log(threshold / (1 - threshold))) if logits else threshold


def rows_above(scores: Floats, lowest: float) -> Indices:
    """Return the rows of [n, classes] that can have a candidate; one with a NaN is among them."""
    return np.flatnonzero(~(scores <= lowest).all(axis=1))


def list_objects(
    boxes: Floats,
    scores: Floats,
    classes: NDArray[np.generic],
    threshold: float,
    coefficients: Floats | None = None,
) -> Candidates:
    """Return finished objects of a score above the threshold, by falling score."""
    boxes, scores = np.asarray(boxes, np.float32), np.asarray(scores, np.float32)
    numbers = np.asarray(classes, np.float32)
    finite = np.isfinite(boxes).all(axis=1) & np.isfinite(scores) & np.isfinite(numbers)
    kept = np.flatnonzero(finite)
    kept = kept[scores[kept] > threshold]
    kept = kept[np.argsort(-scores[kept], kind="stable")]
    dropped = len(finite) - int(np.count_nonzero(finite))
    own = None if coefficients is None else coefficients[kept]
    return Candidates(boxes[kept], scores[kept], numbers[kept].astype(np.int32), dropped, own)


def select(
    boxes: Floats,
    scores: Floats,
    threshold: float,
    logits: bool = False,
    coefficients: Floats | None = None,
) -> Candidates:
    """Return the pairs of a box and a class with the highest scores of [n, classes].

    With `logits` the scores become probabilities by the sigmoid; the threshold is a probability
    either way. Equal scores keep the order of boxes, then of classes. Boxes of which a coordinate
    or a score is not finite are dropped.
    """
    finite = np.asarray(np.isfinite(boxes).all(axis=1))
    if not np.isfinite(scores).all():
        finite &= np.isfinite(scores).all(axis=1)
    dropped = len(finite) - int(np.count_nonzero(finite))
    if dropped:
        boxes, scores = boxes[finite], scores[finite]
        coefficients = None if coefficients is None else coefficients[finite]
    pairs = best_pairs(scores, lowest_score(threshold, logits))
    rows, classes = np.divmod(pairs, max(scores.shape[1], 1))
    values = np.asarray(scores[rows, classes], np.float32)
    order = np.argsort(-values, kind="stable")
    rows, classes, values = rows[order], classes[order], values[order]
    values = sigmoid(values) if logits else values
    own = None if coefficients is None else coefficients[rows]
    return Candidates(boxes[rows], values, classes.astype(np.int32), dropped, own)


def best_pairs(scores: Floats, threshold: float) -> Indices:
    """Return the flat indices, ascending, of the `MAX_CANDIDATES` highest scores above a threshold.

    Of equal scores at the end, the first are chosen.
    """
    count, classes = scores.shape
    if scores.flags.c_contiguous:
        pairs = np.flatnonzero(scores > threshold)
    else:
        # The other order in memory, as in [classes, n]: a copy would take longer than all the rest.
        table = scores.T
        column, row = np.divmod(np.flatnonzero(table > threshold), max(count, 1))
        pairs = row * classes + column
    if len(pairs) > MAX_CANDIDATES:
        values = scores[np.divmod(pairs, classes)]
        last = np.partition(values, -MAX_CANDIDATES)[-MAX_CANDIDATES]
        above = pairs[values > last]
        equal = np.sort(pairs[values == last])
        pairs = np.concatenate((above, equal[: MAX_CANDIDATES - len(above)]))
    return np.sort(pairs)


def candidate_rows(scores: Floats, threshold: float) -> Indices:
    """Return the rows, ascending, of the best pairs of [n, classes], and those that are not finite."""
    rows = best_pairs(scores, threshold) // max(scores.shape[1], 1)
    finite = np.isfinite(scores)
    if not finite.all():
        rows = np.concatenate((rows, np.flatnonzero(~finite.all(axis=1))))
    return np.unique(rows)


def overlap_matrix(first: Floats, second: Floats, iou: float) -> NDArray[np.bool_]:
    """Return whether the boxes [n, 4] and [m, 4] overlap by more than an IoU, as [n, m]."""
    one = np.array(first.T, np.float32, order="C")[:, :, None]
    other = np.array(second.T, np.float32, order="C")
    # In place: half of the time would go into memory for what is in between.
    shared = np.minimum(one[2], other[2]) - np.maximum(one[0], other[0])
    height = np.minimum(one[3], other[3]) - np.maximum(one[1], other[1])
    np.maximum(shared, 0, out=shared)
    np.maximum(height, 0, out=height)
    shared *= height
    union = (one[2] - one[0]) * (one[3] - one[1]) + (other[2] - other[0]) * (other[3] - other[1])
    union -= shared
    # Multiplied out: nothing is divided by an area of zero.
    union *= np.float32(iou)
    return np.asarray(shared > union)


def suppress(boxes: Floats, scores: Floats, classes: Integers, iou: float, limit: int) -> Indices:
    """Return the indices that non-maximum suppression keeps, by falling score, at most `limit`.

    A box is suppressed if one of the same class and a higher score, itself kept, overlaps it by
    more than `iou`; of equal scores the first counts as higher.
    """
    order = np.argsort(-scores, kind="stable")
    boxes, classes = boxes[order], classes[order]
    kept = np.zeros(0, np.intp)

    def rivals(first: Indices, second: Indices) -> NDArray[np.bool_]:
        overlap = overlap_matrix(boxes[first], boxes[second], iou)
        overlap &= classes[first][:, None] == classes[second]
        return overlap

    for start in range(0, len(order), BLOCK):
        block = np.arange(start, min(start + BLOCK, len(order)))
        block = block[~rivals(kept, block).any(axis=0)]
        among = np.triu(rivals(block, block), 1)
        alive = np.ones(len(block), np.bool_)
        for index in np.flatnonzero(among.any(axis=1)):
            if alive[index]:
                alive &= ~among[index]
        kept = np.concatenate((kept, block[alive]))
        if len(kept) >= limit:
            break
    return order[kept[:limit]]


def peaks(scores: Floats) -> Floats:
    """Return maps [n, h, w] with only the values that are highest among their eight neighbours."""
    padded = np.pad(scores, ((0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
    height, width = scores.shape[1:]
    shifted = (
        padded[:, top : top + height, left : left + width] for top in range(3) for left in range(3)
    )
    highest = np.maximum.reduce(list(shifted))
    return np.where(scores < highest, np.float32(-np.finfo(np.float32).max), scores)
