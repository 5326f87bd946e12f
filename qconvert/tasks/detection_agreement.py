"""How far the detections of an engine agree with those of FP32, without labels.

Detections count from a score on that both sides use. A box of one side may match one of the other
down to half that score: a box is not lost because its score fell from just above to just below.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

MIN_SCORE, MIN_OVERLAP = 0.25, 0.5
# The square of a lower score counts for nothing.
LOWEST_SCORE = 0.05
# Of the score from which boxes count, the share down to which they may match one that does.
_HYSTERESIS = 0.5

Indices = NDArray[np.intp]


class DetectedBoxes(Protocol):
    """The detections of a picture: boxes [n, 4] left, top, right, bottom, scores and classes."""

    @property
    def boxes(self) -> NDArray[np.float32]:
        """The corners of each."""

    @property
    def scores(self) -> NDArray[np.float32]:
        """How sure the network is of each."""

    @property
    def classes(self) -> NDArray[np.int32]:
        """The class of each."""


@dataclass(frozen=True)
class PictureAgreement:
    """The boxes of a picture that FP32 and the engine share.

    `boxes` counts those of both sides, `matched` how many of them have a partner. `lost` are the
    indices of FP32's boxes without one, `new` those of the engine's. `lost_score` is the highest
    score of all these boxes, 0 where there are none.
    """

    matched: int
    boxes: int
    lost: tuple[int, ...] = ()
    new: tuple[int, ...] = ()
    lost_score: float = 0.0

    @property
    def share(self) -> float | None:
        """The share of boxes with a partner; None where neither side has a box."""
        return self.matched / self.boxes if self.boxes else None


@dataclass(frozen=True)
class SharedScores:
    """The squared scores of FP32's boxes, of the engine's, and what both share."""

    shared: float
    before: float
    after: float


def agreement(
    reference: DetectedBoxes, detections: DetectedBoxes, min_score: float = MIN_SCORE
) -> PictureAgreement:
    """Match the detections of a picture with FP32's, one to one, at IoU .5 and the same class.

    Pairs of which both scores reach `min_score` come first, then the others; within both, pairs
    that overlap more come first. A pair of two boxes that count adds 2 to `matched`, a pair of one
    that counts and one of at least half the score adds 1.
    """
    sides = reference, detections
    candidates = [np.flatnonzero(side.scores >= _HYSTERESIS * min_score) for side in sides]
    counts = [side.scores[rows] >= min_score for side, rows in zip(sides, candidates, strict=True)]
    old, new = (side.boxes[rows] for side, rows in zip(sides, candidates, strict=True))
    overlaps = box_overlaps(old, new)
    same_class = (
        reference.classes[candidates[0]][:, None] == detections.classes[candidates[1]][None, :]
    )
    weights = counts[0][:, None].astype(np.int64) + counts[1]
    rows, columns = np.nonzero((overlaps >= MIN_OVERLAP) & same_class & (weights > 0))
    order = np.lexsort((columns, rows, -overlaps[rows, columns], -weights[rows, columns]))
    rows, columns = _one_to_one(rows[order], columns[order])
    matched = int(weights[rows, columns].sum())
    free = [np.ones(len(side), np.bool_) for side in candidates]
    free[0][rows] = free[1][columns] = False
    alone = [
        rows[is_free & counted]
        for rows, is_free, counted in zip(candidates, free, counts, strict=True)
    ]
    scores = [side.scores[rows] for side, rows in zip(sides, alone, strict=True)]
    return PictureAgreement(
        matched=matched,
        boxes=int(counts[0].sum() + counts[1].sum()),
        lost=tuple(alone[0].tolist()),
        new=tuple(alone[1].tolist()),
        lost_score=float(max((score.max() for score in scores if score.size), default=0.0)),
    )


def shared_scores(reference: DetectedBoxes, detections: DetectedBoxes) -> SharedScores:
    """Return the squared scores of a picture's detections, and what both sides share of them.

    Two boxes of a class share the square of the lower score, times the share of the IoU thresholds
    from .5 to 1 that their overlap reaches. They pair one to one, those that share most first.
    """
    sides = [
        (side.boxes[rows], side.classes[rows], np.square(side.scores[rows], dtype=np.float64))
        for side in (reference, detections)
        for rows in [np.flatnonzero(side.scores >= LOWEST_SCORE)]
    ]
    (old, old_classes, before), (new, new_classes, after) = sides
    reached = np.clip((box_overlaps(old, new) - MIN_OVERLAP) / (1 - MIN_OVERLAP), 0.0, 1.0)
    values = np.where(
        old_classes[:, None] == new_classes, reached * np.minimum(before[:, None], after), 0.0
    )
    rows, columns = np.nonzero(values)
    order = np.lexsort((columns, rows, -values[rows, columns]))
    pairs = _one_to_one(rows[order], columns[order])
    return SharedScores(float(values[pairs].sum()), float(before.sum()), float(after.sum()))


def _one_to_one(rows: Indices, columns: Indices) -> tuple[Indices, Indices]:
    """Return those of the pairs, the first first, that share no box with one before."""
    kept, used = list[int](), (set[int](), set[int]())
    for index, (row, column) in enumerate(zip(rows.tolist(), columns.tolist(), strict=True)):
        if row not in used[0] and column not in used[1]:
            used[0].add(row)
            used[1].add(column)
            kept.append(index)
    return rows[kept], columns[kept]


def total_agreement(pictures: Iterable[PictureAgreement]) -> float | None:
    """Return the share of the boxes of all pictures that have a partner; None without boxes."""
    boxes = matched = 0
    for picture in pictures:
        boxes += picture.boxes
        matched += picture.matched
    return matched / boxes if boxes else None


def changed_pictures(pictures: Sequence[PictureAgreement]) -> tuple[int, ...]:
    """Return the pictures in which a box has no partner, those that lost the surest box first."""
    changed = [index for index, picture in enumerate(pictures) if picture.lost or picture.new]
    changed.sort(key=lambda index: (-pictures[index].lost_score, index))
    return tuple(changed)


def box_overlaps(boxes: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the IoU of each box with each of the others, 0 where a box has no area."""
    one, other = boxes.astype(np.float64)[:, None], others.astype(np.float64)[None]
    sides = np.minimum(one[..., 2:], other[..., 2:]) - np.maximum(one[..., :2], other[..., :2])
    shared = np.prod(np.maximum(sides, 0.0), axis=-1)
    areas = [np.prod(side[..., 2:] - side[..., :2], axis=-1) for side in (one, other)]
    union = areas[0] + areas[1] - shared
    overlaps: NDArray[np.float64] = np.divide(
        shared, union, out=np.zeros_like(shared), where=shared > 0
    )
    return overlaps
