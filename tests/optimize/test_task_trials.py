"""What a trial of a search records of detectors, and what a budget counts as lost."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from qconvert.core.errors import UsageError
from qconvert.core.tensors import Tensors
from qconvert.images.frames import Frame
from qconvert.images.listing import ImageEntry
from qconvert.images.truth import TrueBoxes
from qconvert.optimize.trial_records import (
    SearchImages,
    TrialRecord,
    choose_metric,
    measure_loss,
    record_trial,
)
from qconvert.tasks.reading import TaskRequest, choose_reading
from tests.tasks import square_networks
from tests.tasks.task_models import Scene, draw_scene

FRAME = Frame(64, 64, 64, 64)
SCENES = [draw_scene(number) for number in range(10)]


def truth_of(scene: Scene) -> TrueBoxes:
    count = len(scene.labels)
    area = np.full(count, 256, np.float32)
    boxes = scene.boxes.astype(np.float32)
    return TrueBoxes(boxes, scene.labels.astype(np.int32), np.zeros(count, np.bool_), area)


def batches(size: int) -> list[Tensors]:
    """Return the scenes in batches of a size, the last one filled up with its first pictures."""
    pixels = np.stack([scene.pixels for scene in SCENES]).transpose(0, 3, 1, 2) / np.float32(255)
    parts = [pixels[start : start + size] for start in range(0, len(SCENES), size)]
    return [{"image": np.resize(part, (size, *part.shape[1:]))} for part in parts]


def search_images(size: int = 4, *, labelled: bool = True) -> SearchImages:
    """Return the scenes with the rows [n, 7] of a detector of so many pictures."""
    feeds = batches(size)
    outputs = [square_networks.indexed_rows(batch) for batch in feeds]
    reading = choose_reading(TaskRequest("detect"), outputs[0], [FRAME] * size)
    counts = [min(size, len(SCENES) - start) for start in range(0, len(SCENES), size)]
    items = [ImageEntry("", truth=truth_of(scene) if labelled else None) for scene in SCENES]
    frames = [FRAME] * len(SCENES)
    return SearchImages("all", feeds, outputs, items, frames, reading, counts, size)


def without_first_square(size: int) -> list[Tensors]:
    """Return the outputs of a trial that misses the first square of each batch."""
    return [{"rows": square_networks.indexed_rows(batch)["rows"][1:]} for batch in batches(size)]


@pytest.mark.parametrize("size", [1, 3, 4, 10])
def test_same_outputs_lose_nothing_and_have_an_interval(size: int) -> None:
    images = search_images(size)
    record = record_trial(images, images.outputs)
    assert record["images"] == len(record["far"]) == 10
    assert record["far"] == [0.0] * 10
    assert record["agreement"][0] == 1
    assert record["change"] == [0, 0]
    for by in ("metric", "agreement"):
        loss = measure_loss(record, by)
        assert (loss.pp, loss.agreement, loss.images) == (0, 100, 10)
    assert measure_loss(record, "agreement").half_width_pp > 1


@pytest.mark.parametrize("size", [3, 4])
def test_missing_objects_are_lost_in_both_measures(size: int) -> None:
    images = search_images(size)
    record = record_trial(images, without_first_square(size))
    total, missing = sum(len(scene.labels) for scene in SCENES), len(batches(size))
    shares = 2 * (total - missing) / (2 * total - missing)
    loss = measure_loss(record, "agreement")
    assert loss.pp == pytest.approx(100 * (1 - shares))
    by_metric = measure_loss(record, "metric")
    assert by_metric.by == "metric"
    assert by_metric.pp > 1
    assert by_metric.agreement == loss.agreement


def test_nothing_detected_loses_everything() -> None:
    images = search_images()
    record = record_trial(images, [{"rows": np.zeros((0, 7), np.float32)}] * len(images.counts))
    assert measure_loss(record, "metric").pp == pytest.approx(100)
    assert measure_loss(record, "agreement").pp == 100


def test_without_truth_agreement_counts() -> None:
    images = search_images(labelled=False)
    record = record_trial(images, images.outputs)
    assert record["change"] is None
    assert measure_loss(record, "metric").by == "agreement"
    assert images.unlabelled_measure == "agreement"


def test_measure_follows_the_truth_and_the_word_of_the_user() -> None:
    labelled, unlabelled = search_images(), search_images(labelled=False)
    assert choose_metric(labelled, 0.5) == "metric"
    assert choose_metric(labelled, 0.5, "agreement") == "agreement"
    assert choose_metric(unlabelled, 0.5) == "agreement"
    partly = replace(labelled, items=[*labelled.items[:-1], ImageEntry("")])
    assert choose_metric(partly, 0.5) == "agreement"
    assert choose_metric(partly, 0.5, "metric") == "metric"
    with pytest.raises(UsageError, match="needs truth, and no image has any"):
        choose_metric(unlabelled, 0.5, "metric")
    for name in ("top-1", "certainty"):
        with pytest.raises(UsageError, match="does not count predictions of the task `detect`"):
            choose_metric(labelled, 0.5, name)


def test_metric_of_a_task_does_not_fit_a_classifier() -> None:
    scores = [{"scores": np.eye(3, dtype=np.float32)}]
    images = SearchImages("all", [], scores, [ImageEntry("", label=1)] * 3)
    with pytest.raises(UsageError, match="`--by metric` does not count predictions of the task"):
        choose_metric(images, 0.5, "metric")
    assert images.unlabelled_measure == "certainty"


def predicted(images: SearchImages, outputs: Sequence[Tensors]) -> list[int]:
    return [len(detections) for detections in images.read(outputs)]


@pytest.mark.parametrize("size", [1, 3, 4, 7])
def test_pictures_of_padding_are_not_predicted(size: int) -> None:
    images = search_images(size)
    assert predicted(images, images.outputs) == [len(scene.labels) for scene in SCENES]


def test_record_is_plain_and_short() -> None:
    record: TrialRecord = record_trial(search_images(), search_images().outputs)
    assert record.keys() == {"images", "far", "agreement", "change"}
    assert all(isinstance(error, float) for error in record["far"])
