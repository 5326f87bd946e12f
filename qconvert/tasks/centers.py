"""Heads that find objects at the peaks of a map: CenterNet and CenterFace."""

import numpy as np

from qconvert.tasks.boxes import Candidates, corners_of, limited_exp, peaks, select
from qconvert.tasks.heads import Arrays, Decoder, Head, Option, Sample, are_probabilities

FACE_LANDMARKS = 10
NMS_IOU = 0.5


def center_maps(
    arrays: Arrays, size: tuple[int, int], threshold: float, *, face: bool, logits: bool
) -> list[Candidates]:
    """Read maps of scores [N, classes, h, w], sizes [N, 2, h, w] and offsets [N, 2, h, w].

    CenterNet (Zhou et al., Objects as Points, 2019) gives the size and offset of a peak in cells,
    x before y. CenterFace (Xu et al., 2019) gives the logarithm of the size, y before x, and its
    offset counts from the middle of the cell.
    """
    results = []
    for heat, sides, offsets in zip(*arrays[:3], strict=True):
        height, width = heat.shape[1:]
        stride = np.array((size[0] / width, size[1] / height), np.float32)
        scores = np.asarray(heat, np.float32)
        scores = scores if face else peaks(scores)
        rows, columns = np.indices((height, width), np.float32)
        cells = np.stack((columns, rows), axis=2).reshape(-1, 2)
        lengths = np.asarray(sides, np.float32).reshape(2, -1).T
        shifts = np.asarray(offsets, np.float32).reshape(2, -1).T
        if face:
            lengths, shifts = limited_exp(lengths[:, ::-1]), shifts[:, ::-1] + np.float32(0.5)
        boxes = corners_of((cells + shifts) * stride, lengths * stride)
        results.append(select(boxes, scores.reshape(len(scores), -1).T, threshold, logits))
    return results


def fit_centers(sample: Sample) -> Head | None:
    """Return how maps of peaks are read: four axes and the same h and w for all.

    Two maps have two channels, sizes first unless a name with `off` or `reg` says otherwise; the
    scores are another one. A map of ten channels, five landmarks, tells CenterFace.
    """
    maps = sample.select(4)
    if len({array.shape[2:] for array in maps.values()}) != 1:
        return None
    pairs = [name for name, array in maps.items() if array.shape[1] == 2]
    landmarks = [name for name, array in maps.items() if array.shape[1] == FACE_LANDMARKS]
    face = len(landmarks) == 1 and len(maps) == 4
    scores = [name for name in maps if name not in pairs and not (face and name in landmarks)]
    if len(pairs) != 2 or len(scores) != 1:
        return None
    pairs.sort(key=lambda name: "off" in name.lower() or "reg" in name.lower())
    heat = maps[scores[0]]
    logits = not are_probabilities(heat)
    names = (scores[0], *pairs)
    options: dict[str, Option] = {"face": face, "logits": logits}
    kind = "CenterFace" if face else "CenterNet"
    text = f"{kind}: scores `{names[0]}`, sizes `{names[1]}`, offsets `{names[2]}`"
    iou = NMS_IOU if face else None
    return Head("centers", "center_maps", names, text, options, classes=heat.shape[1], iou=iou)


CENTERS = Decoder(
    "centers",
    "detect",
    "maps of one resolution: scores [N, C, h, w], sizes [N, 2, h, w] and offsets [N, 2, h, w] "
    "(CenterNet), and landmarks [N, 10, h, w] (CenterFace)",
    fit_centers,
)
