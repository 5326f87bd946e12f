import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from qconvert.tasks import boxes as boxes_module
from qconvert.tasks.boxes import (
    MAX_CANDIDATES,
    list_objects,
    overlap_matrix,
    peaks,
    select,
    sigmoid,
    softmax,
    suppress,
)


def random_boxes(count: int, seed: int, side: float = 100) -> NDArray[np.float32]:
    generator = np.random.default_rng(seed)
    corners = generator.random((count, 2)) * side
    sizes = generator.random((count, 2)) * side / 2
    return np.concatenate((corners, corners + sizes), axis=1).astype(np.float32)


def iou(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    shared = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return float(shared / (sum(areas) - shared)) if sum(areas) > shared else 0.0


def plain_nms(
    boxes: NDArray[np.float32],
    scores: NDArray[np.float32],
    classes: NDArray[np.int32],
    limit_iou: float,
) -> list[int]:
    kept: list[int] = []
    for index in sorted(range(len(scores)), key=lambda index: -scores[index]):
        rivals = (other for other in kept if classes[other] == classes[index])
        if all(iou(boxes[other], boxes[index]) <= limit_iou for other in rivals):
            kept.append(index)
    return kept


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 300), st.integers(1, 4), st.integers(0, 10**6), st.booleans())
def test_suppression_keeps_what_a_plain_loop_keeps(
    count: int, classes: int, seed: int, ties: bool
) -> None:
    generator = np.random.default_rng(seed)
    boxes = random_boxes(count, seed)
    scores = generator.random(count, np.float32)
    scores = np.round(scores, 1) if ties else scores
    numbers = generator.integers(0, classes, count).astype(np.int32)
    for limit_iou in (0.1, 0.45, 0.7):
        expected = plain_nms(boxes, scores, numbers, limit_iou)
        assert suppress(boxes, scores, numbers, limit_iou, 10**6).tolist() == expected
        assert suppress(boxes, scores, numbers, limit_iou, 7).tolist() == expected[:7]


def test_boxes_without_area_suppress_nothing() -> None:
    boxes = np.zeros((5, 4), np.float32)
    kept = suppress(boxes, np.ones(5, np.float32), np.zeros(5, np.int32), 0.5, 300)
    assert kept.tolist() == [0, 1, 2, 3, 4]


def test_overlap_is_symmetric_and_strict() -> None:
    boxes = np.array([[0, 0, 2, 2], [0, 0, 2, 1], [5, 5, 6, 6]], np.float32)
    matrix = overlap_matrix(boxes, boxes, 0.5)
    assert (matrix == matrix.T).all()
    assert matrix.tolist() == [[True, False, False], [False, True, False], [False, False, True]]


@pytest.mark.parametrize("columns_first", [False, True])
@pytest.mark.parametrize("logits", [False, True])
def test_selection_takes_every_pair_above_the_threshold(columns_first: bool, logits: bool) -> None:
    generator = np.random.default_rng(0)
    raw = generator.standard_normal((40, 6)).astype(np.float32)
    probabilities = sigmoid(raw)
    scores = raw if logits else probabilities
    scores = np.ascontiguousarray(scores.T).T if columns_first else scores
    boxes = random_boxes(40, 1)
    selected = select(boxes, scores, 0.6, logits)
    rows, classes = np.nonzero(probabilities > 0.6)
    order = np.argsort(-probabilities[rows, classes], kind="stable")
    assert np.allclose(selected.scores, probabilities[rows, classes][order])
    assert (selected.classes == classes[order]).all()
    assert (selected.boxes == boxes[rows[order]]).all()


@pytest.mark.parametrize("columns_first", [False, True])
def test_of_thousands_of_equal_scores_the_first_boxes_are_selected(columns_first: bool) -> None:
    scores = np.full((3000, 2), 0.5, np.float32)
    scores[2990, 1] = 0.9
    scores = np.ascontiguousarray(scores.T).T if columns_first else scores
    selected = select(random_boxes(3000, 0), scores, 0.001)
    assert len(selected.scores) == MAX_CANDIDATES
    assert (selected.boxes[0] == random_boxes(3000, 0)[2990]).all()
    assert (selected.boxes[1:] == random_boxes(3000, 0)[:500].repeat(2, axis=0)[:999]).all()


def test_boxes_and_scores_that_are_not_finite_are_dropped_and_counted() -> None:
    boxes = random_boxes(6, 0)
    scores = np.full((6, 2), 0.5, np.float32)
    boxes[1, 2], boxes[2, 0] = np.nan, np.inf
    scores[3, 1], scores[4, 0] = np.nan, np.inf
    selected = select(boxes, scores, 0.1)
    assert selected.dropped == 4
    assert (selected.boxes == boxes[[0, 0, 5, 5]]).all()
    listed = list_objects(boxes, scores[:, 0], np.array([0, 0, 0, 0, 0, np.nan]), 0.1)
    assert listed.dropped == 4
    assert (listed.boxes == boxes[[0, 3]]).all()


@pytest.mark.parametrize("count", [0, 1])
def test_no_boxes_give_no_candidates(count: int) -> None:
    boxes, scores = np.zeros((count, 4), np.float32), np.zeros((count, 3), np.float32)
    assert len(select(boxes, scores, 0.5).scores) == 0
    assert len(suppress(boxes[:0], scores[:0, 0], np.zeros(0, np.int32), 0.5, 300)) == 0


def test_functions_of_scores_do_not_overflow() -> None:
    values = np.array([[-1e30, 0, 1e30]], np.float32)
    assert sigmoid(values).tolist() == [[0, 0.5, 1]]
    assert softmax(values).tolist() == [[0, 0, 1]]


def test_peaks_are_the_highest_of_their_neighbours() -> None:
    scores = np.array([[[0.1, 0.2, 0.1], [0.1, 0.1, 0.9], [0.3, 0.1, 0.1]]], np.float32)
    assert np.argwhere(peaks(scores)[0] > 0).tolist() == [[1, 2], [2, 0]]


def test_source_of_the_module_runs_alone_with_numpy() -> None:
    source = boxes_module.__loader__.get_source(boxes_module.__name__)  # type: ignore[union-attr]
    imports = [line for line in source.splitlines() if line.startswith(("import", "from"))]
    assert {line.split()[1].partition(".")[0] for line in imports} == {"dataclasses", "numpy"}
