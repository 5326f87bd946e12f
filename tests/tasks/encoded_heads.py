"""Outputs of detectors that see exactly the objects that a test chose."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qconvert.core.tensors import Tensors
from qconvert.images.frames import Frame
from qconvert.tasks.boxes import cells_of, grid_of, sigmoid
from qconvert.tasks.default_boxes import anchors_of

SIZE = (96, 64)
CLASSES = 5
STRIDES = (8, 16, 32)
QUIET = 1e-5

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Objects:
    """Objects of one picture: boxes in its pixels, scores that fall, classes; and its frame."""

    boxes: Array
    scores: Array
    classes: Array
    frame: Frame

    @property
    def input_boxes(self) -> Array:
        """The boxes in pixels of the input."""
        return self.frame.to_input(self.boxes).astype(np.float64)


FRAMES = (
    Frame(192, 100, *SIZE, (0.5, 0.5), (0.0, 7.0)),
    Frame(120, 90, *SIZE, (0.8, 0.8), (0.0, -4.0)),
    Frame(60, 200, *SIZE, (96 / 60, 64 / 200)),
)


def random_objects(frame: Frame, count: int, seed: int) -> Objects:
    """Return objects in a row of places, that do not overlap and are inside the input."""
    generator = np.random.default_rng(seed)
    visible = frame.to_picture([[2, 9, SIZE[0] - 2, SIZE[1] - 9]])[0]
    width, height = visible[2:] - visible[:2]
    left = visible[0] + width * (np.arange(count) + 0.2 * generator.random(count)) / max(count, 1)
    top = visible[1] + height * 0.4 * generator.random(count)
    right = left + width / max(count, 1) * (0.3 + 0.4 * generator.random(count))
    bottom = top + height * (0.2 + 0.3 * generator.random(count))
    boxes = np.stack((left, top, right, bottom), axis=1)
    scores = np.sort(0.2 + 0.7 * generator.random(count))[::-1]
    return Objects(boxes, scores, generator.integers(0, CLASSES, count), frame)


def batch_of(pictures: int, counts: Sequence[int] = (4, 0, 7)) -> list[Objects]:
    """Return that many pictures with objects, in turn with each frame."""
    return [
        random_objects(FRAMES[index % 3], counts[index % 3], seed=index)
        for index in range(pictures)
    ]


def centred(boxes: Array) -> Array:
    """Return xyxy boxes as centre and size."""
    low, high = boxes[:, :2], boxes[:, 2:]
    return np.concatenate(((low + high) / 2, high - low), axis=1)


def logits_of(probabilities: Array) -> Array:
    """Return the logits of probabilities."""
    clipped = np.clip(probabilities, 1e-7, 1 - 1e-7)
    return np.asarray(np.log(clipped / (1 - clipped)))


def dense(batch: Sequence[Objects], count: int, boxes: Callable[[Array], Array]) -> Array:
    """Return rows [N, count, 4 + CLASSES] of boxes and probabilities, in a random order."""
    output = np.zeros((len(batch), count, 4 + CLASSES))
    for index, objects in enumerate(batch):
        generator = np.random.default_rng(index)
        corners = generator.random((count, 4)) * 20
        corners[:, 2:] += corners[:, :2] + 3
        scores = generator.random((count, CLASSES)) * QUIET
        rows = generator.permutation(count)[: len(objects.boxes)]
        corners[rows] = objects.input_boxes
        scores[rows, objects.classes] = objects.scores
        output[index] = np.concatenate((boxes(corners), scores), axis=1)
    return output


ANCHORS = len(grid_of(SIZE, STRIDES)[0])


def yolo_v8(batch: Sequence[Objects]) -> Tensors:
    return {"output0": dense(batch, ANCHORS, centred).transpose(0, 2, 1).astype(np.float32)}


def yolo_v8_half(batch: Sequence[Objects]) -> Tensors:
    # Shares of the input, as TensorFlow's exports have them.
    rows = dense(batch, ANCHORS, lambda boxes: centred(boxes) / np.tile(SIZE, 2))
    return {"output0": rows.transpose(0, 2, 1).astype(np.float32)}


def yolo_pose(batch: Sequence[Objects]) -> Tensors:
    rows = dense(batch, ANCHORS, centred)
    keypoints = np.random.default_rng(0).random((*rows.shape[:2], 6)) * 90
    return {"output0": np.concatenate((rows, keypoints), 2).transpose(0, 2, 1).astype(np.float32)}


def yolo_segments(batch: Sequence[Objects]) -> Tensors:
    outputs = with_masks(dense(batch, ANCHORS, centred))
    return outputs | {"output0": outputs["output0"].transpose(0, 2, 1)}


def with_masks(rows: Array) -> Tensors:
    """Return rows with 8 coefficients of masks, and their prototypes."""
    generator = np.random.default_rng(0)
    coefficients = generator.standard_normal((*rows.shape[:2], 8))
    prototypes = generator.standard_normal((len(rows), 8, 16, 24))
    output = np.concatenate((rows, coefficients), axis=2)
    return {"output0": output.astype(np.float32), "output1": prototypes.astype(np.float32)}


def with_objectness(rows: Array, objectness: float = 0.97) -> Array:
    """Return rows whose scores are products with this objectness."""
    column = np.full((*rows.shape[:2], 1), objectness)
    return np.concatenate((rows[..., :4], column, rows[..., 4:] / objectness), axis=2)


def yolo_v5(batch: Sequence[Objects]) -> Tensors:
    rows = with_objectness(dense(batch, 3 * ANCHORS, centred))
    grids = np.zeros((len(batch), 3, 8, 12, 10), np.float32)
    return {"output0": rows.astype(np.float32), "train": grids}


def yolo_v5_segments(batch: Sequence[Objects]) -> Tensors:
    return with_masks(with_objectness(dense(batch, 3 * ANCHORS, centred)))


def yolo_v6(batch: Sequence[Objects]) -> Tensors:
    return {"outputs": with_objectness(dense(batch, ANCHORS, centred), 1.0).astype(np.float32)}


def yolox(batch: Sequence[Objects]) -> Tensors:
    cells, steps = grid_of(SIZE, STRIDES)
    rows = with_objectness(dense(batch, ANCHORS, centred))
    rows[..., :2] = rows[..., :2] / steps - cells
    rows[..., 2:4] = np.log(rows[..., 2:4] / steps)
    return {"output": rows.astype(np.float32)}


def yolo_finished(batch: Sequence[Objects]) -> Tensors:
    output = np.zeros((len(batch), 50, 6), np.float32)
    for index, objects in enumerate(batch):
        count = len(objects.boxes)
        output[index, :count, :4] = objects.input_boxes
        output[index, :count, 4] = objects.scores
        output[index, :count, 5] = objects.classes
    return {"output0": output}


def yolo_finished_segments(batch: Sequence[Objects]) -> Tensors:
    return with_masks(yolo_finished(batch)["output0"])


def maps(batch: Sequence[Objects], bins: int) -> list[tuple[Array, Array]]:
    """Return for each stride the map of distances and that of logits; every object in one cell."""
    levels = []
    start = 0
    cells, steps = grid_of(SIZE, STRIDES)
    for stride in STRIDES:
        height, width = SIZE[1] // stride, SIZE[0] // stride
        count = height * width
        edges = np.zeros((len(batch), count, 4, bins))
        scores = np.full((len(batch), count, CLASSES), -12.0)
        for index, objects in enumerate(batch):
            for box, score, number in zip(
                objects.input_boxes, objects.scores, objects.classes, strict=True
            ):
                middles = (cells + 0.5) * steps
                inside = (middles > box[:2]).all(axis=1) & (middles < box[2:]).all(axis=1)
                row = np.flatnonzero(inside)[0]
                if not start <= row < start + count:
                    continue
                middle = middles[row]
                distances = np.concatenate((middle - box[:2], box[2:] - middle)) / stride
                edges[index, row - start] = spread(distances, bins)
                scores[index, row - start, number] = logits_of(score)
        shape = (len(batch), -1, height, width)
        levels.append(
            (
                edges.reshape(len(batch), count, -1).transpose(0, 2, 1).reshape(shape),
                scores.transpose(0, 2, 1).reshape(shape),
            )
        )
        start += count
    return levels


def spread(distances: Array, bins: int) -> Array:
    """Return logits of distributions over 0 .. bins - 1 with these means, or the distances."""
    if bins == 1:
        return distances[:, None]
    low = np.floor(distances).astype(int)
    probabilities = np.full((4, bins), 1e-12)
    probabilities[np.arange(4), low] = 1 - (distances - low)
    probabilities[np.arange(4), low + 1] += distances - low
    return np.asarray(np.log(probabilities))


def yolo_dfl_maps(batch: Sequence[Objects]) -> Tensors:
    joined = [np.concatenate(pair, axis=1).astype(np.float32) for pair in maps(batch, 16)]
    # The order of a file's outputs does not matter.
    return {f"level{index}": joined[index] for index in (2, 0, 1)}


def yolo_paired_maps(batch: Sequence[Objects]) -> Tensors:
    outputs: Tensors = {}
    for index, (edges, scores) in enumerate(maps(batch, 1)):
        outputs[f"class{index}"] = sigmoid(scores.astype(np.float32))
        outputs[f"box{index}"] = edges.astype(np.float32)
    return outputs


def picodet(batch: Sequence[Objects]) -> Tensors:
    # All scores come before all boxes, and maps are rows.
    levels = maps(batch, 8)
    outputs: Tensors = {}
    for part in (1, 0):
        for index, level in enumerate(levels):
            values = level[part].astype(np.float32).reshape(len(batch), level[part].shape[1], -1)
            values = values.transpose(0, 2, 1)
            outputs[f"map{part}{index}"] = values if part == 0 else sigmoid(values)
    return outputs


def demo(batch: Sequence[Objects]) -> Tensors:
    rows = dense(batch, ANCHORS, lambda boxes: boxes).astype(np.float32)
    return {"boxes": rows[..., :4], "scores": rows[..., 4:]}


def ssd_swapped(batch: Sequence[Objects]) -> Tensors:
    outputs = demo(batch)
    return {name: array.transpose(0, 2, 1) for name, array in outputs.items()}


def darknet(batch: Sequence[Objects]) -> Tensors:
    rows = dense(batch, 300, lambda boxes: boxes / np.tile(SIZE, 2)).astype(np.float32)
    return {"confs": rows[..., 4:], "boxes": rows[:, :, None, :4]}


def ssd_background(batch: Sequence[Objects]) -> Tensors:
    rows = dense(batch, 200, centred).astype(np.float32)
    background = 1 - rows[..., 4:].sum(axis=2, keepdims=True)
    return {
        "boxes": rows[..., :4] / np.array([*SIZE, *SIZE], np.float32),
        "scores": np.concatenate((background, rows[..., 4:]), axis=2),
    }


def ssd_logits(batch: Sequence[Objects]) -> Tensors:
    outputs = ssd_background(batch)
    logits = np.log(np.clip(outputs["scores"], 1e-12, 1)) + 3
    return {"boxes": outputs["boxes"], "scores": logits.astype(np.float32)}


def deltas_of(batch: Sequence[Objects], kind: str, scale: tuple[float, float]) -> Array:
    """Return rows of deltas, relative to the anchors of a kind, and probabilities."""
    anchors = anchors_of(kind, SIZE).astype(np.float64)
    rows = dense(batch, len(anchors), centred)
    centres, sides = np.split(centred(anchors), 2, axis=1)
    rows[..., :2] = (rows[..., :2] - centres) / sides / scale[0]
    rows[..., 2:4] = np.log(rows[..., 2:4] / sides) / scale[1]
    return rows


def retinanet(batch: Sequence[Objects]) -> Tensors:
    rows = deltas_of(batch, "retinanet", (1, 1)).astype(np.float32)
    return {"cls_logits": logits_of(rows[..., 4:]), "bbox_regression": rows[..., :4]}


def ssd300(batch: Sequence[Objects]) -> Tensors:
    rows = deltas_of(batch, "ssd300", (0.1, 0.2)).astype(np.float32)
    background = 1 - rows[..., 4:].sum(axis=2, keepdims=True)
    probabilities = np.concatenate((background, rows[..., 4:]), axis=2)
    logits = np.log(np.clip(probabilities, 1e-12, 1)) + 3
    return {"bbox_regression": rows[..., :4], "cls_logits": logits}


def detr(batch: Sequence[Objects]) -> Tensors:
    rows = dense(batch, 100, lambda boxes: centred(boxes) / np.tile(SIZE, 2))
    none = 1 - rows[..., 4:].sum(axis=2, keepdims=True)
    probabilities = np.concatenate((rows[..., 4:], none), axis=2)
    return {
        "logits": np.log(np.clip(probabilities, 1e-12, 1)).astype(np.float32) + 5,
        "pred_boxes": rows[..., :4].astype(np.float32),
    }


def rt_detr(batch: Sequence[Objects]) -> Tensors:
    rows = dense(batch, 300, lambda boxes: centred(boxes) / np.tile(SIZE, 2))
    return {
        "logits": logits_of(rows[..., 4:]).astype(np.float32),
        "pred_boxes": rows[..., :4].astype(np.float32),
    }


def rt_detr_joined(batch: Sequence[Objects]) -> Tensors:
    rows = dense(batch, 300, lambda boxes: centred(boxes) / np.tile(SIZE, 2))
    return {"output0": rows.astype(np.float32)}


def lists(batch: Sequence[Objects], rows: int = 20) -> tuple[Array, Array, Array, Array]:
    """Return boxes [N, rows, 4], scores, classes and counts; the rest of the lists is not zero."""
    boxes = np.full((len(batch), rows, 4), 7, np.float32)
    scores = np.full((len(batch), rows), 0.9, np.float32)
    classes = np.full((len(batch), rows), 1, np.int32)
    for index, objects in enumerate(batch):
        count = len(objects.boxes)
        boxes[index, :count] = objects.input_boxes
        scores[index, :count] = objects.scores
        classes[index, :count] = objects.classes
    return boxes, scores, classes, np.array([[len(objects.boxes)] for objects in batch], np.int32)


def efficient_nms(batch: Sequence[Objects]) -> Tensors:
    boxes, scores, classes, counts = lists(batch)
    return {"num_dets": counts, "det_boxes": boxes, "det_scores": scores, "det_classes": classes}


def d_fine(batch: Sequence[Objects]) -> Tensors:
    boxes, scores, classes, counts = lists(batch)
    scores = np.where(np.arange(20) < counts, scores, 0)
    return {"labels": classes.astype(np.int64), "boxes": boxes, "scores": scores}


def tensorflow(batch: Sequence[Objects]) -> Tensors:
    boxes, scores, classes, counts = lists(batch)
    return {
        "detection_boxes": boxes[..., [1, 0, 3, 2]]
        / np.array([*SIZE[::-1], *SIZE[::-1]], np.float32),
        "detection_classes": classes.astype(np.float32) + 1,
        "detection_scores": scores,
        "num_detections": counts[:, 0].astype(np.float32),
    }


def torchvision_lists(batch: Sequence[Objects]) -> Tensors:
    (objects,) = batch
    return {
        "boxes": objects.input_boxes.astype(np.float32),
        "labels": objects.classes.astype(np.int64) + 1,
        "scores": objects.scores.astype(np.float32),
    }


def torchvision_masks(batch: Sequence[Objects]) -> Tensors:
    lists_of_picture = torchvision_lists(batch)
    count = len(np.asarray(lists_of_picture["scores"]))
    masks = np.random.default_rng(0).random((count, 1, *SIZE[::-1])).astype(np.float32)
    return lists_of_picture | {"masks": masks}


def yolo_v7_rows(batch: Sequence[Objects]) -> Tensors:
    rows = [
        [index, *box, number, score]
        for index, objects in enumerate(batch)
        for box, score, number in zip(
            objects.input_boxes, objects.scores, objects.classes, strict=True
        )
    ]
    return {"output": np.array(rows, np.float32).reshape(-1, 7)}


def onnx_nms(batch: Sequence[Objects]) -> Tensors:
    rows = dense(batch, 60, lambda boxes: boxes).astype(np.float32)
    scores = rows[..., 4:].transpose(0, 2, 1)
    return {
        "selected": np.argwhere(scores > 0.1).astype(np.int64),
        "boxes": rows[..., :4],
        "scores": np.ascontiguousarray(scores),
    }


def peak_maps(batch: Sequence[Objects], classes: int) -> tuple[Array, Array, Array]:
    """Return scores, sizes and offsets of maps of stride 4; sizes and offsets are x before y."""
    height, width = SIZE[1] // 4, SIZE[0] // 4
    heat = np.full((len(batch), classes, height, width), QUIET)
    sizes = np.ones((len(batch), 2, height, width))
    offsets = np.zeros((len(batch), 2, height, width))
    cells = cells_of(height, width)
    for index, objects in enumerate(batch):
        boxes = centred(objects.input_boxes)
        for box, score, number in zip(boxes, objects.scores, objects.classes, strict=True):
            column, row = np.floor(box[:2] / 4).astype(int)
            heat[index, number % classes, row, column] = score
            sizes[index, :, row, column] = box[2:] / 4
            offsets[index, :, row, column] = box[:2] / 4 - cells[row * width + column]
    return heat, sizes, offsets


def center_net(batch: Sequence[Objects]) -> Tensors:
    heat, sizes, offsets = peak_maps(batch, CLASSES)
    # What is no peak is left out, though it is above the threshold.
    heat = np.maximum(heat, np.pad(heat, ((0, 0), (0, 0), (0, 0), (1, 0)))[..., :-1] * 0.8)
    outputs = {"hm": logits_of(heat), "reg": offsets, "wh": sizes}
    return {name: array.astype(np.float32) for name, array in outputs.items()}


def center_face(batch: Sequence[Objects]) -> Tensors:
    heat, sizes, offsets = peak_maps(batch, 1)
    outputs = {
        "537": heat,
        "538": np.log(sizes[:, ::-1]),
        "539": offsets[:, ::-1] - 0.5,
        "540": np.zeros((len(batch), 10, *heat.shape[2:])),
    }
    return {name: array.astype(np.float32) for name, array in outputs.items()}


# For each family its decoder, the function that reads it, and outputs.
HEADS: dict[str, tuple[str, str, Callable[[Sequence[Objects]], Tensors]]] = {
    "v8": ("yolo", "yolo", yolo_v8),
    "v8, normalized": ("yolo", "yolo", yolo_v8_half),
    "v8, keypoints": ("yolo", "yolo", yolo_pose),
    "v8, masks": ("yolo", "yolo", yolo_segments),
    "v5": ("yolo", "yolo", yolo_v5),
    "v5, masks": ("yolo", "yolo", yolo_v5_segments),
    "v6": ("yolo", "yolo", yolo_v6),
    "YOLOX": ("yolo", "yolox", yolox),
    "v10": ("yolo", "finished_rows", yolo_finished),
    "v26, masks": ("yolo", "finished_rows", yolo_finished_segments),
    "maps of distributions": ("yolo", "yolo_maps", yolo_dfl_maps),
    "maps of distances": ("yolo", "yolo_maps", yolo_paired_maps),
    "PicoDet": ("yolo", "yolo_maps", picodet),
    "demo": ("ssd", "box_scores", demo),
    "columns first": ("ssd", "box_scores", ssd_swapped),
    "v4": ("ssd", "box_scores", darknet),
    "background": ("ssd", "box_scores", ssd_background),
    "softmax": ("ssd", "box_scores", ssd_logits),
    "RetinaNet": ("ssd", "box_scores", retinanet),
    "SSD300": ("ssd", "box_scores", ssd300),
    "DETR": ("detr", "queries", detr),
    "RT-DETR": ("detr", "queries", rt_detr),
    "RT-DETR, one output": ("detr", "queries", rt_detr_joined),
    "EfficientNMS": ("boxes", "object_lists", efficient_nms),
    "D-FINE": ("boxes", "object_lists", d_fine),
    "TensorFlow": ("boxes", "object_lists", tensorflow),
    "torchvision": ("boxes", "object_lists", torchvision_lists),
    "torchvision, masks": ("boxes", "object_lists", torchvision_masks),
    "v7": ("boxes", "indexed_rows", yolo_v7_rows),
    "NonMaxSuppression": ("boxes", "nms_indices", onnx_nms),
    "CenterNet": ("centers", "center_maps", center_net),
    "CenterFace": ("centers", "center_maps", center_face),
}
