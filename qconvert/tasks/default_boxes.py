"""The anchors to which some heads relate their boxes, as torchvision lays them out."""

import numpy as np

from qconvert.tasks.boxes import Floats, cells_of, corners_of, limited_exp

ANCHORS = ("retinanet", "ssd300", "ssdlite320")
RETINANET_STRIDES = (8, 16, 32, 64, 128)


def anchors_of(kind: str, size: tuple[int, int]) -> Floats:
    """Return the anchors [A, 4] of `ANCHORS` for an input of a (width, height), row by row."""
    return retinanet_anchors(size) if kind == "retinanet" else ssd_anchors(kind, size)


def retinanet_anchors(size: tuple[int, int]) -> Floats:
    """Return torchvision's anchors [A, 4] of an input of a (width, height), row by row.

    A cell has nine, of three ratios of height to width and, in each, three scales; their sides are
    rounded, and their middle is the corner of the cell.
    """
    boxes = []
    for stride in RETINANET_STRIDES:
        scales = np.floor(4.0 * stride * 2.0 ** (np.arange(3) / 3))
        heights = (np.sqrt([0.5, 1.0, 2.0])[:, None] * scales).ravel()
        widths = (1 / np.sqrt([0.5, 1.0, 2.0])[:, None] * scales).ravel()
        sides = np.stack((widths, heights), axis=1)
        shapes = np.round(np.concatenate((-sides, sides), axis=1) / 2)
        rows, columns = -(-size[1] // stride), -(-size[0] // stride)
        # The stride of the grid that is there, which a size that 128 does not divide makes smaller.
        steps = np.array((size[0] // columns, size[1] // rows), np.float32)
        middles = np.tile(cells_of(rows, columns) * steps, 2)
        boxes.append((middles[:, None] + shapes).reshape(-1, 4))
    return np.concatenate(boxes).astype(np.float32)


def ssd_anchors(kind: str, size: tuple[int, int]) -> Floats:
    """Return the default boxes of an SSD (Liu et al., 2016).

    A cell has a square of the scale of its grid, one of the geometric mean with the next scale, and
    two boxes for each ratio; no side is longer than the input.
    """
    if kind == "ssd300":
        grids = (38, 19, 10, 5, 3, 1)
        sides = tuple(300 / step for step in (8, 16, 32, 64, 100, 300))
        scales = (0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05)
        ratios: tuple[tuple[int, ...], ...] = ((2,), (2, 3), (2, 3), (2, 3), (2,), (2,))
    else:
        grids = (20, 10, 5, 3, 2, 1)
        sides = tuple(float(grid) for grid in grids)
        scales = (0.2, 0.35, 0.5, 0.65, 0.8, 0.95, 1.0)
        ratios = ((2, 3),) * 6
    boxes = []
    for level, grid in enumerate(grids):
        scale, middle = scales[level], np.sqrt(scales[level] * scales[level + 1])
        shapes = [(scale, scale), (middle, middle)]
        for ratio in ratios[level]:
            wide = scale * np.sqrt(ratio), scale / np.sqrt(ratio)
            shapes += [wide, wide[::-1]]
        half = np.minimum(shapes, 1) / 2
        centres = (cells_of(grid, grid) + 0.5) / sides[level]
        corners = (centres[:, None] - half, centres[:, None] + half)
        boxes.append(np.concatenate(corners, axis=2).reshape(-1, 4))
    return np.asarray(np.concatenate(boxes) * np.array([*size, *size]), np.float32)


def apply_deltas(anchors: Floats, deltas: Floats, kind: str) -> Floats:
    """Return the boxes of deltas (dx, dy, dw, dh) in sides of their anchors, dw and dh as logs.

    SSD's deltas of the centre are ten times, those of the sides five times as large.
    """
    units = (1.0, 1.0) if kind == "retinanet" else (0.1, 0.2)
    sides = anchors[:, 2:] - anchors[:, :2]
    centres = anchors[:, :2] + 0.5 * sides + units[0] * deltas[:, :2] * sides
    return corners_of(centres, limited_exp(units[1] * deltas[:, 2:]) * sides)
