"""The demo's detector and segmenter are small, complete and accurate, also in INT8."""

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest

from qconvert.backends.ort import open_cpu
from qconvert.core import onnx_io
from qconvert.core.cache import file_sha256, open_default
from qconvert.core.config import Config
from qconvert.core.errors import UsageError
from qconvert.demo import demo_files, generator, scenes
from qconvert.demo.demo_files import NETWORKS, Task
from qconvert.demo.scenes import CLASSES, SCENE_SIZE, Scene, draw_scene
from qconvert.images.preprocess import PRESETS, Preprocess
from qconvert.images.truth import TrueBoxes
from qconvert.run import context
from qconvert.sources import onnx_file
from qconvert.tasks.boxes import select, suppress
from qconvert.tasks.decoders import find_decoder
from qconvert.tasks.detection_metrics import DetectionScores, average_precision, match_image
from qconvert.tasks.heads import Sample
from tests.conftest import Outcome

COUNT = generator.EVALUATION_COUNT
TASKS: tuple[Task, ...] = ("detect", "segment")
GRID_POINTS = (SCENE_SIZE // 8) ** 2
OUTPUTS: dict[Task, dict[str, tuple[int, ...]]] = {
    "detect": {"boxes": (GRID_POINTS, 4), "scores": (GRID_POINTS, len(CLASSES))},
    "segment": {"logits": (len(CLASSES) + 1, SCENE_SIZE, SCENE_SIZE)},
}


@cache
def evaluation_scene(number: int) -> Scene:
    """Return a scene of the evaluation, drawn once."""
    return draw_scene(generator.EVALUATION_SEED, number)


def predict(model: Path, numbers: range) -> dict[str, np.ndarray]:
    """Return the outputs of a model for scenes of the evaluation."""
    pixels = np.stack([evaluation_scene(number).decode() for number in numbers])
    feeds = {"image": pixels.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1}
    return open_cpu(onnx_io.load(model))(feeds)


@pytest.mark.parametrize("task", TASKS)
def test_network_is_one_small_valid_file_with_a_dynamic_batch(task: Task) -> None:
    path = NETWORKS[task]
    assert path.stat().st_size <= 2_500_000
    onnx.checker.check_model(str(path), full_check=True)
    model = onnx_io.load(path)
    (image,) = onnx_io.inputs(model)
    assert image.shape == ("batch", 3, SCENE_SIZE, SCENE_SIZE)
    shapes = {output.name: output.shape for output in onnx_io.outputs(model)}
    assert shapes == {name: ("batch", *shape) for name, shape in OUTPUTS[task].items()}
    operators = {node.op_type for node in model.graph}
    assert not operators & {"BatchNormalization", "NonMaxSuppression", "TopK", "Exp"}


@pytest.mark.parametrize("task", TASKS)
def test_network_carries_its_preprocessing(task: Task) -> None:
    source = onnx_file.load(str(NETWORKS[task]), Config().export, trust=False)
    preprocess = Preprocess.from_dict(context.fitted_preprocessing(source, Config().preprocess))
    assert (preprocess.resize, preprocess.crop) == ((SCENE_SIZE, SCENE_SIZE), "none")
    inception = PRESETS["inception"]
    assert (preprocess.mean, preprocess.std) == (inception.mean, inception.std)


@pytest.mark.parametrize(
    ("task", "metric", "low", "high"), [("detect", "mAP@.5", 85, 98), ("segment", "mIoU", 75, 95)]
)
def test_description_matches_the_file(task: Task, metric: str, low: float, high: float) -> None:
    text = NETWORKS[task].with_suffix(".md").read_text(encoding="utf-8")
    assert file_sha256(NETWORKS[task]) in text
    match = re.search(rf"{re.escape(metric)} ([\d.]+) %", text)
    assert match is not None
    assert low <= float(match[1]) <= high


@pytest.mark.parametrize(("task", "decoder"), [("detect", "ssd"), ("segment", "mask")])
def test_outputs_are_read_without_options(task: Task, decoder: str) -> None:
    outputs = predict(NETWORKS[task], range(3))
    chosen, _ = find_decoder(Sample(outputs, (SCENE_SIZE, SCENE_SIZE)))
    assert (chosen.name, chosen.task) == (decoder, task)


def test_boxes_are_those_of_the_defects() -> None:
    numbers = range(12)
    outputs = predict(NETWORKS["detect"], numbers)
    overlaps = []
    for index, number in enumerate(numbers):
        pairs = select(outputs["boxes"][index], outputs["scores"][index], 0.25)
        kept = suppress(pairs.boxes, pairs.scores, pairs.classes, 0.6, 100)
        for defect in evaluation_scene(number).defects:
            alike = kept[pairs.classes[kept] == defect.label]
            overlaps.append(max((iou(defect.box, pairs.boxes[one]) for one in alike), default=0.0))
    assert np.median(overlaps) > 0.75


def iou(one: np.ndarray, other: np.ndarray) -> float:
    low, high = np.maximum(one[:2], other[:2]), np.minimum(one[2:], other[2:])
    shared = float(np.prod(np.maximum(high - low, 0)))
    areas = [float(np.prod(box[2:] - box[:2])) for box in (one, other)]
    return shared / (sum(areas) - shared)


@pytest.mark.parametrize("task", TASKS)
def test_demo_folder_of_a_task_holds_its_network_and_truth(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = demo_files.DemoImages("calibration", generator.CALIBRATION_SEED, 6)
    monkeypatch.setattr(demo_files, "CALIBRATION_IMAGES", images)
    evaluation = demo_files.DemoImages("evaluation", generator.EVALUATION_SEED, 5)
    reports: list[str] = []
    for _ in range(2):  # the second time, everything is there
        demo_files.prepare_demo(
            Path("demo"), open_default(), lambda step: reports.append(step.text), evaluation, task
        )
    assert (Path("demo") / NETWORKS[task].name).read_bytes() == NETWORKS[task].read_bytes()
    for name, count in (("calibration", 6), ("evaluation", 5)):
        folder = Path("demo") / name
        assert len(list((folder / "images").iterdir())) == count
        if task == "detect":
            assert (folder / "annotations.json").is_file()
        else:
            assert len(list((folder / "masks").iterdir())) == count
            assert (folder / "classes.txt").read_text().split() == ["background", *CLASSES]
    with pytest.raises(UsageError, match="the demo of another version"):
        demo_files.prepare_demo(Path("demo"), open_default(), lambda step: None, evaluation)


@pytest.mark.long
@pytest.mark.timeout(900)  # slow hosts share their cores with other tests
def test_detector_loses_less_than_half_a_point_in_int8(
    tmp_path: Path, qconvert: Callable[..., Outcome]
) -> None:
    scenes.write_images(tmp_path, generator.CALIBRATION_SEED, 128, "detect")
    outcome = qconvert(
        "quantize", NETWORKS["detect"], "--images", tmp_path / "images", "-o", "int8.onnx"
    )
    assert outcome.code == 0, outcome.err
    before, after = (detection_scores(model) for model in (NETWORKS["detect"], Path("int8.onnx")))
    assert before.map is not None
    assert before.map50 is not None
    assert after.map is not None
    assert 0.85 <= before.map50 <= 0.98
    assert after.map > before.map - 0.005


def detection_scores(model: Path) -> DetectionScores:
    """Return COCO's metrics of a detector on scenes of the evaluation."""
    outputs, matches = predict(model, range(COUNT)), []
    for index, (boxes, scores) in enumerate(zip(outputs["boxes"], outputs["scores"], strict=True)):
        pairs = select(boxes.clip(0, SCENE_SIZE), scores, 0.001)
        kept = suppress(pairs.boxes, pairs.scores, pairs.classes, 0.6, 100)
        objects = evaluation_scene(index).defects
        truth = TrueBoxes(
            np.array([defect.box for defect in objects], np.float32).reshape(-1, 4),
            np.array([defect.label for defect in objects], np.int32),
            np.zeros(len(objects), np.bool_),
            np.array([defect.mask.sum() for defect in objects], np.float32),
        )
        detected = pairs.boxes[kept], pairs.scores[kept], pairs.classes[kept]
        matches.append(match_image(*detected, truth))
    return average_precision(matches)
