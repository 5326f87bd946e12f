"""Heads with one output of boxes and one of scores: SSD, RetinaNet and DETR's family."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qconvert.tasks.boxes import Candidates, corners_of, list_objects, select, softmax, unit_of
from qconvert.tasks.default_boxes import ANCHORS, anchors_of, apply_deltas
from qconvert.tasks.heads import (
    Arrays,
    Decoder,
    Head,
    Option,
    Sample,
    ScoreKind,
    are_normalized,
    are_ordered,
    are_probabilities,
    batch_shape,
    map_place,
    score_kind,
)
from qconvert.tasks.listed import fit_listed

NMS_IOU = 0.5
MAX_QUERIES = 1000


def box_scores(
    arrays: Arrays,
    size: tuple[int, int],
    threshold: float,
    *,
    boxes: str,
    normalized: bool,
    activation: str,
    background: str,
) -> list[Candidates]:
    """Read boxes [N, A, 4] and scores [N, A, classes].

    `boxes` are `xyxy`, `cxcywh`, or name the anchors of their deltas: `retinanet`, `ssd300`,
    `ssdlite320`. The `activation` of the scores is `none`, `sigmoid` or `softmax`, their
    `background` `none`, `first` or `last`.
    """
    unit = unit_of(size, normalized)
    anchors = None if boxes in ("xyxy", "cxcywh") else anchors_of(boxes, size)
    results = []
    for place, raw in zip(*arrays, strict=True):
        corners = np.asarray(place, np.float32).reshape(-1, 4) * unit
        if anchors is not None:
            corners = apply_deltas(anchors, corners, boxes)
        elif boxes == "cxcywh":
            corners = corners_of(corners[:, :2], corners[:, 2:])
        scores = np.asarray(raw, np.float32)
        scores = softmax(scores) if activation == "softmax" else scores
        skipped = int(background == "first"), scores.shape[1] - int(background == "last")
        logits = activation == "sigmoid"
        results.append(select(corners, scores[:, slice(*skipped)], threshold, logits))
    return results


def queries(
    arrays: Arrays, size: tuple[int, int], threshold: float, *, activation: str, background: str
) -> list[Candidates]:
    """Read boxes [N, Q, 4], centre and size normalized to the input, and scores [N, Q, classes].

    Alone, an array [N, Q, 4 + classes] is both. Under a softmax a query is an object of its best
    class (Carion et al., DETR, 2020); under sigmoids of all its classes above the threshold.
    """
    joined = len(arrays) == 1
    unit = unit_of(size, True)[:2]
    results = []
    for picture in range(len(arrays[0])):
        values = np.asarray(arrays[0][picture], np.float32)
        scores = values[:, 4:] if joined else np.asarray(arrays[1][picture], np.float32)
        boxes = corners_of(values[:, :2] * unit, values[:, 2:4] * unit)
        scores = softmax(scores) if activation == "softmax" else scores
        scores = scores[:, int(background == "first") :]
        scores = scores[:, : scores.shape[1] - int(background == "last")]
        if background == "none":
            results.append(select(boxes, scores, threshold, activation == "sigmoid"))
        else:
            best = scores.argmax(axis=1)
            results.append(list_objects(boxes, scores.max(axis=1), best, threshold))
    return results


@dataclass(frozen=True)
class _Pair:
    """An output of boxes and one of scores for the same rows."""

    names: tuple[str, str]
    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    swapped: bool


def _find_pair(sample: Sample) -> _Pair | None:
    """Return the outputs [N, A, 4] or [N, A, 1, 4] and [N, A, C], or with axes 1 and 2 exchanged.

    Of two outputs that could be the boxes, it is the one with `box` in its name, else the first.
    """
    outputs = dict(sample.select(3))
    for name, array in sample.select(4).items():
        if array.shape[2:] == (1, 4):
            outputs[name] = array[:, :, 0]
    for swapped in (False, True):
        arrays = {
            name: array.swapaxes(1, 2) if swapped else array for name, array in outputs.items()
        }
        boxes = [name for name, array in arrays.items() if array.shape[2] == 4]
        boxes.sort(key=lambda name: "box" not in name.lower())
        for name in boxes:
            rows = arrays[name].shape[:2]
            scores = [
                other
                for other, array in arrays.items()
                if other != name and array.shape[:2] == rows
            ]
            if len(scores) == 1:
                pair = (name, scores[0])
                boxes_array, score_array = (np.asarray(arrays[part], np.float32) for part in pair)
                return _Pair(pair, boxes_array, score_array, swapped)
    return None


def fit_ssd(sample: Sample) -> Head | None:
    """Return how boxes and scores of the same rows are read, decided by these rules.

    The boxes are corners if none ends before it begins, else centres and sizes if no size is below
    0, else deltas of the anchors in `ANCHORS` of which there are as many. They are pixels unless all
    are 2 or less. What the scores are, `score_kind` decides.
    """
    pair = _find_pair(sample)
    if pair is None or pair.scores.shape[2] < 1:
        return None
    finite = pair.boxes[np.isfinite(pair.boxes).all(axis=2)]
    if are_ordered(pair.boxes):
        form = "xyxy"
    elif (finite[:, 2:] >= 0).all():
        form = "cxcywh"
    else:
        rows = pair.boxes.shape[1]
        forms = [name for name in ANCHORS if len(anchors_of(name, sample.size)) == rows]
        if not forms:
            return None
        form = forms[0]
    kind = score_kind(pair.scores)
    classes = pair.scores.shape[2] - kind.backgrounds
    normalized = form not in ANCHORS and are_normalized(pair.boxes)
    options: dict[str, Option] = {
        "boxes": form,
        "normalized": normalized,
        "activation": kind.activation,
        "background": kind.background,
    }
    unit = " normalized" if normalized else " in pixels"
    boxes = f"deltas of {form}'s anchors" if form in ANCHORS else f"{form} boxes{unit}"
    text = f"{_pair_text(sample, pair)}: {boxes}, {_score_text(kind, classes)}"
    return Head(
        "ssd",
        "box_scores",
        pair.names,
        text,
        options,
        swapped=pair.swapped,
        classes=classes,
        iou=NMS_IOU,
    )


def fit_detr(sample: Sample) -> Head | None:
    """Return how a DETR is read: at most 1000 boxes, all from 0 to 1, that cannot be corners.

    A background comes last; if it is first, this is an SSD. What the scores are, `score_kind`
    decides. Labels, boxes and scores are read as `boxes` does.
    """
    pair = _find_pair(sample)
    if pair is None:
        return _fit_joined(sample) or (fit_listed(sample) if sample.forced else None)
    if pair.boxes.shape[1] > MAX_QUERIES or not are_probabilities(pair.boxes):
        return None
    kind = score_kind(pair.scores)
    if not sample.forced and (are_ordered(pair.boxes) or kind.background == "first"):
        return None
    classes = pair.scores.shape[2] - kind.backgrounds
    options: dict[str, Option] = {"activation": kind.activation, "background": kind.background}
    text = f"{_pair_text(sample, pair)}: {_score_text(kind, classes)}"
    return Head("detr", "queries", pair.names, text, options, swapped=pair.swapped, classes=classes)


def _fit_joined(sample: Sample) -> Head | None:
    """Fit one output [N, Q, 4 + C], as Ultralytics' RT-DETR has it."""
    outputs = sample.select(3)
    if len(outputs) != 1:
        return None
    ((name, array),) = outputs.items()
    boxes = array[..., :4]
    if array.shape[1] > MAX_QUERIES or array.shape[2] < 5 or not are_probabilities(array):
        return None
    if not sample.forced and (are_ordered(boxes) or map_place(array, sample.size) is not None):
        return None
    classes = array.shape[2] - 4
    text = f"`{name}` {batch_shape(array)}: {classes} classes"
    options: dict[str, Option] = {"activation": "none", "background": "none"}
    return Head("detr", "queries", (name,), text, options, classes=classes)


def _pair_text(sample: Sample, pair: _Pair) -> str:
    return " and ".join(f"`{name}` {batch_shape(sample.arrays[name])}" for name in pair.names)


def _score_text(kind: ScoreKind, classes: int) -> str:
    scores = "probabilities" if kind.activation == "none" else f"logits of a {kind.activation}"
    background = "no background" if kind.background == "none" else f"background {kind.background}"
    return f"{classes} classes, {scores}, {background}"


SSD = Decoder(
    "ssd",
    "detect",
    "boxes [N, A, 4] and scores [N, A, C]: xyxy or centre and size, in pixels or normalized, or "
    "the deltas of torchvision's RetinaNet, SSD300 or SSDlite320; scores with or without a background",
    fit_ssd,
)
DETR = Decoder(
    "detr",
    "detect",
    "scores [N, Q, C] and boxes [N, Q, 4], centre and size normalized, or both in [N, Q, 4 + C]; "
    "labels, boxes and scores as RT-DETR and D-FINE export them",
    fit_detr,
)
