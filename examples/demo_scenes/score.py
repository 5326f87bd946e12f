"""Score an ONNX file of the demo on scenes that it was not trained on.

python examples/demo_scenes/score.py detect detector.onnx int8.onnx
python examples/demo_scenes/score.py segment segmenter.onnx
"""

import argparse
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from qconvert.backends.ort import open_cpu
from qconvert.core import onnx_io
from qconvert.demo import generator
from qconvert.demo.scenes import CLASSES, SCENE_SIZE, Scene, draw_scene
from qconvert.images.truth import TrueBoxes
from qconvert.tasks.boxes import select, suppress
from qconvert.tasks.detection_metrics import average_precision, match_image
from qconvert.tasks.segmentation_metrics import count_pixels, segmentation_scores

LOWEST_SCORE, IOU, DETECTIONS, BATCH = 0.001, 0.6, 100, 20
Outputs = dict[str, np.ndarray]


def main() -> None:
    """Print the metrics of each file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=("detect", "segment"))
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--count", type=int, default=generator.EVALUATION_COUNT)
    arguments = parser.parse_args()
    for model in arguments.models:
        print(f"{model}: {score(model, arguments.task, arguments.count)}")


def score(model: Path, task: str, count: int) -> str:
    """Return the metrics of a model on the first evaluation images, as a text."""
    run = open_cpu(onnx_io.load(model))
    scenes = (draw_scene(generator.EVALUATION_SEED, number) for number in range(count))
    return (score_boxes if task == "detect" else score_pixels)(run, scenes)


def score_boxes(run: Callable[[Outputs], Outputs], scenes: Iterator[Scene]) -> str:
    """Return COCO's metrics of a detector."""
    matches = []
    for scene, outputs in predictions(run, scenes):
        pairs = select(outputs["boxes"].clip(0, SCENE_SIZE), outputs["scores"], LOWEST_SCORE)
        kept = suppress(pairs.boxes, pairs.scores, pairs.classes, IOU, DETECTIONS)
        detected = pairs.boxes[kept], pairs.scores[kept], pairs.classes[kept]
        matches.append(match_image(*detected, true_boxes(scene)))
    scores = average_precision(matches)
    classes = zip(CLASSES, scores.class_ap50, strict=True)
    return (
        f"mAP@[.5:.95] {100 * scores.map:.2f} %, mAP@.5 {100 * scores.map50:.2f} %, "
        f"mAP@.75 {100 * scores.map75:.2f} %; AP@.5 of "
        + ", ".join(f"{name} {100 * value:.1f} %" for name, value in classes)
    )


def true_boxes(scene: Scene) -> TrueBoxes:
    """Return the defects of a scene as the metrics take them."""
    count = len(scene.defects)
    boxes = np.array([defect.box for defect in scene.defects], np.float32).reshape(count, 4)
    classes = np.array([defect.label for defect in scene.defects], np.int32)
    areas = np.array([defect.mask.sum() for defect in scene.defects], np.float32)
    return TrueBoxes(boxes, classes, np.zeros(count, np.bool_), areas)


def score_pixels(run: Callable[[Outputs], Outputs], scenes: Iterator[Scene]) -> str:
    """Return the metrics of a segmenter."""
    names = ("background", *CLASSES)
    counts = [
        count_pixels(scene.class_map(), outputs["logits"].argmax(0), len(names))
        for scene, outputs in predictions(run, scenes)
    ]
    scores = segmentation_scores(counts)
    classes = zip(names, scores.class_iou, strict=True)
    return (
        f"mIoU {100 * scores.miou:.2f} %, pixel accuracy {100 * scores.pixel_accuracy:.2f} %; "
        "IoU of " + ", ".join(f"{name} {100 * value:.1f} %" for name, value in classes)
    )


def predictions(
    run: Callable[[Outputs], Outputs], scenes: Iterator[Scene]
) -> Iterator[tuple[Scene, Outputs]]:
    """Yield each scene with the outputs of the network."""
    while batch := list(islice(scenes, BATCH)):
        pixels = np.stack([scene.decode() for scene in batch]).transpose(0, 3, 1, 2)
        outputs = run({"image": pixels.astype(np.float32) / 127.5 - 1})
        for index, scene in enumerate(batch):
            yield scene, {name: values[index] for name, values in outputs.items()}


if __name__ == "__main__":
    main()
