"""Boxes as files write them, checked against their pictures.

A box may stick out of its picture by one pixel or 0.5 % of the side, which rounding explains, and
is clipped. Boxes that stick out by more, or have no area inside the picture, are an error that
names them, unless they are under 1 % of all: then they are clipped or left out, and a note says so.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qconvert.core.errors import UsageError
from qconvert.images.listing import abbreviate
from qconvert.images.object_masks import ObjectMasks, RunLengths, Shape
from qconvert.images.truth import TrueBoxes

_SILENT_PIXELS, _SILENT_SHARE = 1.0, 0.005
_TOLERATED_SHARE = 0.01

Corners = tuple[float, float, float, float]
Size = tuple[int, int]


@dataclass(frozen=True)
class BoxRecord:
    """One marked object of the picture `image`; `place` is where the file says so.

    `shape` is its mask, where the file has one that can be read.
    """

    place: str
    image: int
    corners: Corners
    label: int
    crowd: bool = False
    area: float | None = None
    shape: Shape | None = None


@dataclass(frozen=True)
class CheckedBoxes:
    """The truth of each picture, None where a picture is unlabelled, and notes on the boxes."""

    truths: tuple[TrueBoxes | None, ...]
    notes: tuple[str, ...]


def check_boxes(
    source: str,
    records: Sequence[BoxRecord],
    sizes: Sequence[Size | None],
    labelled: Collection[int],
) -> CheckedBoxes:
    """Return the boxes by picture; a labelled picture without a box shows no object.

    `sizes` are those of the upright pictures, None of one that cannot be read.
    """
    corners = np.array([record.corners for record in records], np.float64).reshape(-1, 4)
    widest = float(np.finfo(np.float32).max)
    limits = np.array([sizes[record.image] or (widest, widest) for record in records])
    limits = np.tile(limits.reshape(-1, 2), 2)
    clipped = np.clip(corners, 0.0, limits).astype(np.float32)
    overhang = np.abs(corners - np.clip(corners, 0.0, limits))
    sticks_out = overhang > np.maximum(_SILENT_PIXELS, _SILENT_SHARE * limits)
    no_area = np.any(clipped[:, 2:] <= clipped[:, :2], axis=1)
    wrong = np.logical_or(no_area, np.any(sticks_out, axis=1))
    notes = _report_wrong(source, records, wrong, overhang, limits) if wrong.any() else ()
    clipped_area = np.prod(clipped[:, 2:] - clipped[:, :2], axis=1)
    area = np.array([record.area or 0.0 for record in records], np.float32)
    area = np.where(area > 0, area, clipped_area).astype(np.float32)
    rows: list[list[int]] = [[] for _ in sizes]
    for row, record in enumerate(records):
        if not no_area[row]:
            rows[record.image].append(row)
    classes = np.array([record.label for record in records], np.int32)
    crowd = np.array([record.crowd for record in records], np.bool_)
    lacking = _without_mask(records, sizes)
    has_masks = bool(records) and not lacking
    truths = [
        TrueBoxes(
            clipped[own],
            classes[own],
            crowd[own],
            area[own],
            masks=_masks_of(records, own, sizes[image]) if has_masks else None,
        )
        if image in labelled
        else None
        for image, own in enumerate(np.array(own, np.intp) for own in rows)
    ]
    return CheckedBoxes(tuple(truths), (*notes, *_note_on_masks(source, records, lacking)))


def _without_mask(records: Sequence[BoxRecord], sizes: Sequence[Size | None]) -> list[BoxRecord]:
    """Return the objects without a mask that fits their picture."""
    return [
        record
        for record in records
        if record.shape is None
        or (isinstance(record.shape, RunLengths) and record.shape.size != sizes[record.image])
    ]


def _masks_of(
    records: Sequence[BoxRecord], rows: NDArray[np.intp], size: Size | None
) -> ObjectMasks | None:
    if size is None:  # the picture cannot be read, and is never run
        return None
    shapes = [records[row].shape for row in rows.tolist()]
    return ObjectMasks(tuple(shape for shape in shapes if shape is not None), size)


def _note_on_masks(
    source: str, records: Sequence[BoxRecord], lacking: Sequence[BoxRecord]
) -> tuple[str, ...]:
    if not lacking or not any(record.shape is not None for record in records):
        return ()
    examples = "; ".join(abbreviate([record.place for record in lacking], 2))
    return (
        f"{len(lacking)} of {len(records)} objects of `{source}` have no mask that fits: masks are "
        f"not scored ({examples})",
    )


def _report_wrong(
    source: str,
    records: Sequence[BoxRecord],
    wrong: NDArray[np.bool_],
    overhang: NDArray[np.float64],
    limits: NDArray[np.float64],
) -> tuple[str, ...]:
    """Raise an error about boxes not within their pictures, or return the note on a few."""
    lines = []
    for row in np.flatnonzero(wrong).tolist():
        left, top, right, bottom = records[row].corners
        (width, height), out = limits[row, :2], overhang[row].max()
        problem = f"lies up to {out:.4g} px outside the {width:.0f}×{height:.0f} picture"
        if right <= left or bottom <= top:
            problem = "has no area"
        box = f"({left:.6g}, {top:.6g}) to ({right:.6g}, {bottom:.6g})"
        lines.append(f"{records[row].place}: the box {box} {problem}")
    count, total = len(lines), len(records)
    text = f"{count} of {total} boxes of `{source}` lie outside their pictures or have no area"
    if count >= _TOLERATED_SHARE * total:
        raise UsageError(
            text,
            details=abbreviate(lines),
            hint="correct or remove them; boxes are in pixels of the picture as it is shown, "
            "after its EXIF orientation",
        )
    examples = "; ".join(abbreviate(lines, 2))
    return (f"{text}: they are clipped, or left out where nothing remains ({examples})",)
