"""Outputs of detectors and segmenters are compared alike, in whatever batches they come."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from qconvert.backends.ort import open_cpu
from qconvert.core import onnx_io
from qconvert.core.errors import QConvertError, UsageError
from qconvert.core.tensors import RunModel, Tensors, run_padded
from qconvert.images import ImageChoice, open_images
from qconvert.images.listing import Images
from qconvert.images.preprocess import Preprocess
from qconvert.measure.accuracy import BASELINE, Accuracy
from qconvert.measure.comparison import Comparison, find_image_reading
from qconvert.tasks.reading import TaskRequest
from tests.tasks import square_networks, task_models
from tests.tasks.task_models import Scene, write_coco, write_masks, write_scenes

SPECS = onnx_io.inputs(task_models.embedder())
AS_IT_IS = Preprocess(resize="letterbox")


def scenes(count: int = 10, squares: int | None = None, empty_first: int = 0) -> list[Scene]:
    """Write scenes to `val`, the first of them without a square."""
    drawn = write_scenes(Path("val"), count, squares=squares)
    for number, scene in enumerate(write_scenes(Path("val"), empty_first, squares=0)):
        drawn[number] = scene
    return drawn


def labelled(count: int = 10, squares: int | None = None, empty_first: int = 0) -> Images:
    """Return scenes whose truth is COCO's JSON."""
    write_coco(Path("instances_val.json"), scenes(count, squares, empty_first))
    return opened()


def opened(path: str = "val", labels: Path | None = None) -> Images:
    return open_images(ImageChoice(Path(path), labels=labels), SPECS, AS_IT_IS)


def comparison_of(
    images: Images,
    reference: RunModel,
    engine: RunModel,
    batch: int = 4,
    fixed: int | None = None,
    request: TaskRequest | None = None,
) -> Comparison:
    """Compare two networks on images, as `evaluate` does."""
    comparison = Comparison(images, request or TaskRequest(), fixed)
    for part in images.batches(batch):
        runs = {BASELINE: reference, "engine": engine}
        outputs = {name: run_padded(run, part.feeds, fixed) for name, run in runs.items()}
        comparison.add(part, outputs)
    return comparison


def compared(images: Images, reference: RunModel, engine: RunModel, **more: Any) -> Accuracy:
    return comparison_of(images, reference, engine, **more).summarize("engine", "engine")


def without_output_errors(accuracy: Accuracy) -> Accuracy:
    """Leave out what compares whole outputs, which lists have no rows for."""
    return replace(accuracy, sqnr_db=None, cosine=None, notes=())


@pytest.mark.parametrize("batch", [1, 3, 10])
def test_batches_of_any_size_give_the_same_scores(batch: int) -> None:
    images = labelled()
    run = open_cpu(task_models.detector())
    scores = compared(images, run, run, batch=batch)
    assert scores == compared(images, run, run, batch=4)
    assert (scores.task, scores.primary, scores.labelled) == ("detect", "map", 10)
    assert scores.metrics["map"] > 0.7
    assert scores.change_pp == scores.half_width_pp == 0
    assert scores.agreement == 100
    assert scores.top1 is None


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("task", ["detector", "segmenter"])
def test_model_of_a_fixed_batch_scores_as_one_of_any(size: int, task: str) -> None:
    drawn = scenes()
    if task == "detector":
        write_coco(Path("instances_val.json"), drawn)
    else:
        write_masks(Path("masks"), drawn)
    images, network = opened(), getattr(task_models, task)
    fixed = open_cpu(network(size))
    scores = compared(images, fixed, fixed, batch=size, fixed=size)
    free = open_cpu(network())
    assert scores.metrics == pytest.approx(compared(images, free, free).metrics)
    assert scores.images == 10


NETWORKS: list[tuple[RunModel, int, int | None]] = [
    (square_networks.single_lists, 1, 1),
    (square_networks.indexed_rows, 4, 4),
    (square_networks.indexed_rows, 1, 1),
    (square_networks.indexed_rows, 4, None),
    (square_networks.filled_lists(), 4, 4),
    (square_networks.filled_lists(1 / 64), 4, None),
]


@pytest.mark.parametrize(("run", "batch", "fixed"), NETWORKS)
# With one square in each picture, lists have as many rows as a batch has pictures.
@pytest.mark.parametrize("squares", [None, 1])
def test_lists_of_objects_are_told_apart(
    run: RunModel, batch: int, fixed: int | None, squares: int | None
) -> None:
    images = labelled(10, squares)
    scores = compared(images, run, run, batch=batch, fixed=fixed)
    assert scores.metrics["map"] == pytest.approx(1)
    assert (scores.agreement, scores.labelled) == (100, 10)


@pytest.mark.parametrize("empty", [1, 4, 9])
@pytest.mark.parametrize("unit", [1.0, 1 / 64])
def test_unit_of_boxes_is_that_of_the_first_batch_with_objects(empty: int, unit: float) -> None:
    run = square_networks.filled_lists(unit)
    images = labelled(12, empty_first=empty)
    comparison = comparison_of(images, run, run, batch=2)
    assert comparison.summarize("engine", "engine").metrics["map"] == pytest.approx(1)
    baseline = comparison.summarize(BASELINE, "engine")
    (reading,) = (note for note in baseline.notes if note.startswith("task `detect`"))
    assert ("normalized" in reading) == (unit < 1)
    assert "no boxes" not in reading
    again = find_image_reading(images, TaskRequest(), run, 2, None)
    assert again is not None
    assert again.text in reading


def test_few_batches_wait_for_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qconvert.measure.comparison.MAX_OPEN_BATCHES", 3)
    run, images = square_networks.filled_lists(), labelled(12, empty_first=10)
    comparison = Comparison(images, TaskRequest())
    held = []
    for part in images.batches(1):
        comparison.add(part, {BASELINE: run(part.feeds)})
        held.append(len(comparison.held))
    assert held == [1, 2, 0] * 3 + [1, 0, 0]
    assert comparison.summarize(BASELINE, "engine").metrics["map"] == pytest.approx(1)


def test_no_detections_have_map_0_and_a_note() -> None:
    images, run = labelled(), square_networks.filled_lists()
    scores = compared(images, run, square_networks.silent(run))
    assert scores.metrics["map"] == 0
    assert scores.change_pp == pytest.approx(-100)
    assert "the engine detects nothing on any image" in scores.notes
    nothing = square_networks.silent(run)
    both = comparison_of(images, nothing, nothing)
    assert both.summarize("engine", "engine").metrics["map"] == 0
    assert both.summarize("engine", "engine").agreement is None
    notes = both.summarize(BASELINE, "engine").notes
    assert any("no boxes" in note for note in notes)


def test_boxes_that_are_not_finite_are_left_out_and_counted() -> None:
    images, run = labelled(), square_networks.filled_lists()

    def broken(feeds: Tensors) -> Tensors:
        outputs = run(feeds)
        outputs["boxes"][:, 0] = np.nan
        return outputs

    scores = compared(images, run, broken)
    assert 0 < scores.metrics["map"] < 1
    assert "10 boxes with NaN or infinity left out" in scores.notes


def test_label_that_the_model_does_not_have_is_refused() -> None:
    drawn = scenes()
    write_coco(
        Path("instances_val.json"), [replace(s, labels=s.labels + 3) for s in drawn], "abcdef"
    )
    run = open_cpu(task_models.detector())
    with pytest.raises(UsageError, match="is not a class of the model, which has 3"):
        compared(opened(), run, run)


def test_truth_without_objects_has_no_map() -> None:
    write_coco(
        Path("instances_val.json"),
        [replace(s, boxes=s.boxes[:0], labels=s.labels[:0]) for s in scenes()],
    )
    run = open_cpu(task_models.detector())
    scores = compared(opened(), run, run)
    assert (scores.metrics, scores.primary, scores.change_pp) == ({}, "", None)
    assert scores.agreement == 100
    assert any("no object" in note for note in scores.notes)


def test_mask_of_another_size_is_refused() -> None:
    drawn = scenes()
    write_masks(Path("masks"), drawn)
    Image.fromarray(drawn[7].mask[:32]).save("masks/0007.png")
    run = open_cpu(task_models.segmenter())
    with pytest.raises(QConvertError, match="0007"):
        compared(opened(), run, run)


def test_vectors_of_arrays_are_compared_in_a_short_last_batch() -> None:
    vectors = np.random.default_rng(0).standard_normal((10, 3, 64, 64), np.float32)
    np.savez("arrays.npz", image=vectors, labels=np.arange(10) % 2)
    run = open_cpu(task_models.embedder())
    scores = compared(opened("arrays.npz"), run, run, request=TaskRequest("embed"))
    assert (scores.primary, scores.labelled) == ("recall1", 10)
    assert scores.metrics["cosine"] == pytest.approx(1)


def test_outputs_that_no_decoder_fits_are_named_with_the_decoders() -> None:
    images = labelled()

    def odd(feeds: Tensors) -> Tensors:
        return {"odd": np.zeros((len(feeds["image"]), 5, 7, 11), np.float32)}

    with pytest.raises(UsageError, match="no decoder fits") as caught:
        compared(images, odd, odd)
    assert "output `odd`: float32 [4, 5, 7, 11]" in caught.value.details
    assert sum(line.startswith("`yolo` takes") for line in caught.value.details) == 1
    assert "--decode" in (caught.value.hint or "")


def test_detector_of_too_few_pictures_is_told_to_run_one_by_one() -> None:
    images = labelled()

    def of_one(feeds: Tensors) -> Tensors:
        return square_networks.single_lists({"image": feeds["image"][:1]})

    with pytest.raises(QConvertError, match="the outputs hold 1 pictures, the batch 4") as caught:
        compared(images, of_one, of_one)
    assert "--batch 1" in (caught.value.hint or "")


def test_scores_of_a_comparison_are_plain_values_of_json() -> None:
    images, run = labelled(), open_cpu(task_models.detector())
    scores = compared(images, run, run)
    assert json.loads(json.dumps(scores.metrics)) == scores.metrics
    assert len(scores.curve) == 101
