"""Tasks as data: their metrics, their changes by class, and what an empty set of images gives."""

import numpy as np
import pytest

from qconvert.images.frames import Frame
from qconvert.images.truth import TrueBoxes
from qconvert.report import tables
from qconvert.report.verdict import AGREEING, LOW_SCORES
from qconvert.tasks.predictions import ClassMap, Detections
from qconvert.tasks.reading import METRIC_TITLES, TASKS
from qconvert.tasks.task import class_shifts, defined

FRAME = Frame(8, 8, 8, 8)
EMPTY = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32))
ONE = Detections(
    np.array([[1, 1, 5, 5]], np.float32), np.ones(1, np.float32), np.zeros(1, np.int32)
)
NO_OBJECT = TrueBoxes(EMPTY.boxes, EMPTY.classes, np.zeros(0, np.bool_), np.zeros(0, np.float32))
ONE_OBJECT = TrueBoxes(
    ONE.boxes, np.zeros(1, np.int32), np.zeros(1, np.bool_), np.array([16], np.float32)
)


@pytest.mark.parametrize("name", TASKS)
def test_task_is_complete(name: str) -> None:
    task = TASKS[name]
    assert task.name == name
    assert task.primary in task.metrics
    assert all(METRIC_TITLES[metric] == title for metric, title in task.metrics.items())
    assert task.text
    # What reports say of a task is beside their tables.
    assert set(tables.TASK_SCORES[name]) <= set(task.metrics)
    assert name in AGREEING
    assert name in LOW_SCORES


def test_classes_that_changed_come_by_the_size_of_their_change() -> None:
    before = [0.5, 0.5, None, 0.5, 0.25]
    after = [0.75, 0.5, 0.5, 0.0, 0.0]
    shifts = class_shifts(before, after, [4, 4, 4, 4, 9])
    assert [(s.label, s.before, s.after, s.images) for s in shifts] == [
        (3, 50, 0, 4),
        (4, 25, 0, 9),
        (0, 50, 75, 4),
    ]
    assert len(class_shifts([0.0] * 30, [1.0] * 30, [1] * 30)) == 10
    assert class_shifts([], [], []) == ()


def test_metrics_that_are_undefined_are_left_out() -> None:
    assert defined({"a": 0.0, "b": None}) == {"a": 0.0}


@pytest.mark.parametrize(
    ("reference", "detections", "truth", "metric", "change", "agreement"),
    [
        (ONE, ONE, ONE_OBJECT, 1, 0, 1),
        (ONE, EMPTY, ONE_OBJECT, 0, -1, 0),
        (EMPTY, ONE, ONE_OBJECT, 1, 1, 0),
        (EMPTY, EMPTY, ONE_OBJECT, 0, 0, None),
        (ONE, ONE, NO_OBJECT, None, None, 1),
        (EMPTY, EMPTY, NO_OBJECT, None, None, None),
        (ONE, EMPTY, None, None, None, 0),
    ],
)
def test_detections_with_and_without_objects(
    reference: Detections,
    detections: Detections,
    truth: TrueBoxes | None,
    metric: float | None,
    change: float | None,
    agreement: float | None,
) -> None:
    task = TASKS["detect"]
    scores = task.summarize([task.compare(reference, detections, truth)])
    assert scores.metrics.get("map") == (pytest.approx(metric) if metric is not None else None)
    assert scores.change == (pytest.approx(change) if change is not None else None)
    assert (scores.agreement, scores.by_image) == (agreement, (agreement,))
    assert scores.labelled == (truth is not None)
    assert any("detects nothing" in note for note in scores.notes) == (
        detections is EMPTY and truth is not None
    )
    assert any("no object" in note for note in scores.notes) == (truth is NO_OBJECT)


def test_class_maps_without_truth_agree_by_pixels() -> None:
    task = TASKS["segment"]
    zeros = ClassMap(np.zeros((8, 8), np.int32), FRAME, 2)
    half = ClassMap(np.arange(64, dtype=np.int32).reshape(8, 8) % 2, FRAME, 2)
    scores = task.summarize([task.compare(zeros, half, None), task.compare(zeros, zeros, None)])
    assert (scores.metrics, scores.agreement, scores.by_image) == ({}, 0.75, (0.5, 1.0))


@pytest.mark.parametrize("after", [[1.0, 0.0], [0.0, 0.0], [np.nan, 1.0]])
def test_vectors_without_a_direction_are_no_crash(after: list[float]) -> None:
    task = TASKS["embed"]
    vector = np.array([1.0, 0.0], np.float32)
    rows = [task.compare(vector, np.array(after, np.float32), label) for label in (0, 0, 1, None)]
    scores = task.summarize(rows)
    assert set(scores.metrics) <= {"recall1", "recall5", "cosine"}
    assert scores.labelled == 2
    one = task.summarize(rows[:1])
    assert (one.agreement, one.labelled) == (None, 0)
