import numpy as np
import pytest

from qconvert.tasks.detection_agreement import (
    agreement,
    box_overlaps,
    changed_pictures,
    shared_scores,
    total_agreement,
)
from tests.tasks.random_detections import Kind, Picture, random_pictures, truth_of

BOX = (0, 0, 10, 10)
NEAR = (0, 0, 10, 8)
FAR = (0, 0, 10, 3)
ELSEWHERE = (50, 50, 60, 60)


def detections(*boxes: tuple[tuple[float, ...], float, int]) -> Picture:
    """Return boxes with a score and a class."""
    return Picture(
        truth_of(np.zeros((0, 4), np.float32), []),
        np.array([box for box, *_ in boxes], np.float32).reshape(-1, 4),
        np.array([score for _, score, _ in boxes], np.float32),
        np.array([label for *_, label in boxes], np.int32),
    )


@pytest.mark.parametrize(
    ("before", "after", "matched", "boxes"),
    [
        ([(BOX, 0.9, 0)], [(NEAR, 0.8, 0)], 2, 2),
        ([(BOX, 0.9, 0)], [(NEAR, 0.8, 1)], 0, 2),  # another class
        ([(BOX, 0.9, 0)], [(FAR, 0.8, 0)], 0, 2),  # IoU .3
        ([(BOX, 0.9, 0)], [], 0, 1),
        ([], [(BOX, 0.9, 0)], 0, 1),
        ([], [], 0, 0),
        ([(BOX, 0.251, 0)], [(BOX, 0.249, 0)], 1, 1),  # just below counts as its partner
        ([(BOX, 0.249, 0)], [(BOX, 0.251, 0)], 1, 1),
        ([(BOX, 0.26, 0)], [(BOX, 0.12, 0)], 0, 1),  # less than half
        ([(BOX, 0.2, 0)], [(BOX, 0.2, 0)], 0, 0),  # neither counts
        ([(BOX, 0.9, 0), (BOX, 0.8, 0)], [(BOX, 0.9, 0)], 2, 3),  # one to one
        # The pair of two that count goes first, though the weak box overlaps more.
        ([(BOX, 0.9, 0)], [(BOX, 0.2, 0), (NEAR, 0.9, 0)], 2, 2),
    ],
)
def test_pairs_of_boxes(
    before: list[tuple[tuple[float, ...], float, int]],
    after: list[tuple[tuple[float, ...], float, int]],
    matched: int,
    boxes: int,
) -> None:
    result = agreement(detections(*before), detections(*after))
    assert (result.matched, result.boxes) == (matched, boxes)
    assert len(result.lost) + len(result.new) == boxes - matched
    assert result.share == (matched / boxes if boxes else None)


def test_boxes_without_a_partner_are_listed() -> None:
    before = detections((BOX, 0.9, 0), (ELSEWHERE, 0.7, 1))
    after = detections((ELSEWHERE, 0.6, 2), (NEAR, 0.9, 0))
    result = agreement(before, after)
    assert (result.lost, result.new) == ((1,), (0,))
    assert result.lost_score == pytest.approx(0.7)
    lower = agreement(before, after, min_score=0.8)
    assert (lower.matched, lower.boxes) == (2, 2)


def test_pictures_that_changed_come_in_order_of_the_surest_box() -> None:
    none, one = detections(), detections((BOX, 0.5, 0))
    pictures = [
        agreement(one, one),
        agreement(one, none),
        agreement(none, none),
        agreement(none, detections((BOX, 0.8, 0))),
    ]
    assert changed_pictures(pictures) == (3, 1)
    assert total_agreement(pictures) == 2 / 4
    assert total_agreement([pictures[2]]) is None


def test_equal_detections_agree_and_sides_can_be_swapped() -> None:
    for seed in range(20):
        for before, after in zip(
            random_pictures(Kind(detections=60), seed),
            random_pictures(Kind(detections=60), seed + 100),
            strict=True,
        ):
            same = agreement(before, before)
            assert same.matched == same.boxes
            assert agreement(before, after).boxes == agreement(after, before).boxes
            assert agreement(before, after).matched == agreement(after, before).matched


def test_boxes_without_area_overlap_nothing() -> None:
    boxes = np.array([[0, 0, 10, 10], [5, 5, 5, 5], [5, 5, 4, 4], [0, 5, 10, 10]], np.float32)
    expected = np.zeros((4, 4))
    expected[0, 0] = expected[3, 3] = 1
    expected[0, 3] = expected[3, 0] = 0.5
    np.testing.assert_allclose(box_overlaps(boxes, boxes), expected)


@pytest.mark.parametrize(
    ("before", "after", "shared"),
    [
        ([(BOX, 0.9, 0)], [(BOX, 0.9, 0)], 0.81),
        ([(BOX, 0.9, 0)], [(NEAR, 0.9, 0)], 0.6 * 0.81),  # IoU .8
        ([(BOX, 0.9, 0)], [(BOX, 0.5, 0)], 0.25),
        ([(BOX, 0.9, 0)], [(BOX, 0.9, 1)], 0.0),  # another class
        ([(BOX, 0.9, 0)], [(FAR, 0.9, 0)], 0.0),  # IoU .3
        ([(BOX, 0.9, 0)], [(NEAR, 0.9, 0), (BOX, 0.9, 0)], 0.81),  # one partner, the best
        ([(BOX, 0.04, 0)], [(BOX, 0.04, 0)], 0.0),
        ([], [(BOX, 0.9, 0)], 0.0),
        ([], [], 0.0),
    ],
)
def test_boxes_share_the_lower_score_as_far_as_they_overlap(
    before: list[tuple[tuple[float, ...], float, int]],
    after: list[tuple[tuple[float, ...], float, int]],
    shared: float,
) -> None:
    result = shared_scores(detections(*before), detections(*after))
    assert result.shared == pytest.approx(shared, abs=1e-5)
    for sum_of_squares, boxes in ((result.before, before), (result.after, after)):
        counted = [score for _, score, _ in boxes if score >= 0.05]
        assert sum_of_squares == pytest.approx(sum(np.square(counted)), abs=1e-5)
