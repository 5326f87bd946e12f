"""What all images together say of an engine."""

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
from numpy.typing import NDArray

from qconvert.measure.accuracy import (
    IDENTICAL,
    IDENTICAL_WHERE_FINITE,
    NO_CLASSES,
    NO_LABELS,
    RecallShift,
    classification_scores,
    fp32_accuracy,
    paired_change,
    recall_shifts,
    summarize_accuracy,
    top1_change,
)
from qconvert.measure.per_image_scores import ImageScores, score_batch

Floats = NDArray[np.float32]


def says(*answers: int, classes: int = 4) -> Floats:
    """Return scores whose highest are these classes."""
    return np.eye(classes, dtype=np.float32)[list(answers)] * 5


def judged(before: Floats, after: Floats, *labels: int | None) -> ImageScores:
    known = list(labels) or [None] * len(before)
    return score_batch({"scores": before}, {"scores": after}, known)


def test_top1_and_agreement_are_shares_of_the_images() -> None:
    found = summarize_accuracy(judged(says(0, 1, 2, 3), says(0, 1, 3, 2), 0, 1, 3, 3))
    assert (found.images, found.measured_on) == (4, "engine")
    assert found.top1 == 75.0
    assert found.agreement == 50.0
    assert found.change_pp == 0.0


def test_top5_needs_more_than_five_classes() -> None:
    ranked = np.array([[9, 8, 7, 6, 5, 4, 3]] * 7, np.float32)
    found = summarize_accuracy(judged(ranked, ranked, *range(7)))
    assert found.top1 == pytest.approx(100 / 7)
    assert found.top5 == pytest.approx(500 / 7)
    few = says(0, 1, classes=5)
    assert summarize_accuracy(judged(few, few, 0, 1)).top5 is None


def test_precision_recall_and_f1_are_means_over_the_classes_with_labels() -> None:
    # Class 0: 2 of 3 found, 1 wrong answer; class 1: 1 of 2 found, 1 wrong; class 3: never said.
    # Class 2 has no label: its two answers are errors of the others; it is no class of its own.
    after = says(0, 0, 1, 1, 2, 0, 2)
    labels = (0, 0, 0, 1, 1, 3, 3)
    found = summarize_accuracy(judged(after, after, *labels))
    precision, recall = (2 / 3, 1 / 2, 0), (2 / 3, 1 / 2, 0)
    f1 = [2 * p * r / (p + r) if p + r else 0 for p, r in zip(precision, recall, strict=True)]
    assert found.precision == pytest.approx(100 * sum(precision) / 3)
    assert found.recall == pytest.approx(100 * sum(recall) / 3)
    assert found.f1 == pytest.approx(100 * sum(f1) / 3)


def test_answers_that_are_all_right_score_a_hundred() -> None:
    found = summarize_accuracy(judged(says(0, 1, 1), says(0, 1, 1), 0, 1, 1))
    assert (found.top1, found.precision, found.recall, found.f1) == (100, 100, 100, 100)


def test_without_labels_only_likeness_is_told() -> None:
    found = summarize_accuracy(judged(says(0, 1), says(0, 2)), "cpu-simulation")
    assert found.measured_on == "cpu-simulation"
    assert found.agreement == 50.0
    assert (found.top1, found.precision, found.change_pp) == (None, None, None)
    assert NO_LABELS in found.notes


def test_images_without_a_label_do_not_score_but_compare() -> None:
    found = summarize_accuracy(judged(says(0, 1, 2), says(0, 2, 2), 0, None, 2))
    assert found.top1 == 100.0
    assert found.agreement == pytest.approx(200 / 3)
    assert (found.images, found.labelled) == (3, 2)
    assert found.notes == ("1 of 3 images have no label: scores are over the others",)


def test_maps_have_cosine_and_sqnr_only() -> None:
    before = np.ones((2, 3, 4, 4), np.float32)
    found = summarize_accuracy(score_batch({"map": before}, {"map": before * 1.1}, [0, 1]))
    assert found.sqnr_db == pytest.approx(20, abs=0.01)
    assert found.cosine == pytest.approx(1)
    assert (found.agreement, found.kl, found.top1) == (None, None, None)
    assert found.notes == (NO_CLASSES,)


def test_sqnr_is_over_all_images_and_not_a_mean_of_each() -> None:
    before, after = np.array([[10, 0], [1, 0]]), np.array([[10, 1], [0, 0]])
    found = summarize_accuracy(judged(before.astype(np.float32), after.astype(np.float32)))
    assert found.sqnr_db == pytest.approx(10 * math.log10(101 / 2))
    assert found.cosine == pytest.approx((10 / math.sqrt(101) + 0) / 2)


def test_equal_outputs_have_no_error_and_a_note_that_json_keeps() -> None:
    found = summarize_accuracy(judged(says(0, 1), says(0, 1), 0, 1))
    assert found.sqnr_db == math.inf
    assert IDENTICAL in found.notes
    assert found.kl == 0.0
    # The rule of whoever writes it: a number that JSON does not have is null, the note says why.
    written = {**asdict(found), "sqnr_db": None}
    assert IDENTICAL in json.loads(json.dumps(written, allow_nan=False))["notes"]


def test_answers_that_are_not_finite_are_wrong_and_noted() -> None:
    after = says(0, 1, 2, 3)
    after[1, 0], after[2, 3] = np.nan, np.inf
    found = summarize_accuracy(judged(says(0, 1, 2, 3), after, 0, 1, 2, 3))
    assert (found.agreement, found.top1, found.change_pp) == (50.0, 50.0, -50.0)
    assert found.sqnr_db == math.inf
    assert "on 2 of 4 images the engine's outputs hold NaN or infinity" in found.notes[0]


def test_an_engine_that_only_says_nan_has_no_error_that_could_be_told() -> None:
    found = summarize_accuracy(judged(says(0, 1), np.full((2, 4), np.nan, np.float32), 0, 1))
    assert (found.agreement, found.top1, found.recall) == (0.0, 0.0, 0.0)
    assert (found.sqnr_db, found.kl, found.cosine) == (None, None, None)


def test_images_on_which_fp32_is_broken_compare_with_nothing() -> None:
    before = says(0, 1, 2)
    before[0, 0] = np.nan
    found = summarize_accuracy(judged(before, says(0, 1, 3), 0, 1, 3))
    assert found.agreement == 50.0
    assert found.top1 == 100.0
    assert any(note.startswith("on 1 of 3 images FP32's own") for note in found.notes)


def test_what_is_not_finite_beside_the_scores_leaves_the_answers_right() -> None:
    scores, boxes = says(0, 1, 2, 3), np.ones((4, 2, 2), np.float32)
    broken = boxes * np.nan
    found = summarize_accuracy(
        score_batch({"s": scores, "b": boxes}, {"s": scores, "b": broken}, [0, 1, 2, 3])
    )
    assert (found.top1, found.agreement, found.kl) == (100.0, 100.0, 0.0)
    assert (found.sqnr_db, found.cosine) == (None, None)
    assert found.notes == (
        "on 4 of 4 images an output of the engine other than its scores holds NaN or infinity: "
        "they are left out of SQNR and cosine",
    )
    own = summarize_accuracy(
        score_batch({"s": scores, "b": broken}, {"s": scores, "b": boxes}, [0, 1, 2, 3])
    )
    assert own.notes == (
        "on 4 of 4 images an output of FP32 other than its scores holds NaN or infinity: "
        "they are left out of SQNR and cosine",
    )
    maps = summarize_accuracy(score_batch({"b": boxes}, {"b": broken}, [None] * 4))
    assert maps.notes[-1] == (
        "on 4 of 4 images the engine's outputs hold NaN or infinity: they are left out of SQNR "
        "and cosine"
    )


def test_outputs_of_which_some_are_not_finite_are_not_those_of_fp32() -> None:
    after = says(0, 1, 2)
    after[1, 0] = np.nan
    found = summarize_accuracy(judged(says(0, 1, 2), after))
    assert found.sqnr_db == math.inf
    assert IDENTICAL not in found.notes
    assert IDENTICAL_WHERE_FINITE in found.notes


def test_zeros_that_became_something_have_no_sqnr() -> None:
    zeros = np.zeros((1, 4), np.float32)
    found = summarize_accuracy(judged(zeros, zeros + 1))
    assert (found.sqnr_db, found.cosine) == (None, 0.0)


def test_fp32_itself_is_scored_whatever_it_was_held_against() -> None:
    before, labels = says(0, 1, 2, 2), (0, 1, 2, 3)
    own = summarize_accuracy(judged(before, before, *labels))
    for after in (before, says(3, 3, 3, 3)):
        found = fp32_accuracy(judged(before, after, *labels))
        assert (found.top1, found.precision, found.recall, found.f1) == (
            own.top1, own.precision, own.recall, own.f1,
        )  # fmt: skip
        assert (found.agreement, found.change_pp, found.sqnr_db) == (None, None, None)
        assert found.notes == ()
        assert (found.images, found.labelled) == (4, 4)


def test_a_change_is_that_of_the_same_images() -> None:
    found = top1_change(judged(says(0, 1, 2, 3, 0), says(0, 1, 3, 3, 1), 0, 1, 2, 3, 1))
    assert found is not None
    assert found.pp == 0.0
    # One lost and one won, and one of each added, of 5 + 2.
    assert found.half_width_pp == pytest.approx(196 * math.sqrt(4 / 7 / 7))


@pytest.mark.parametrize("images", [10, 100, 1000])
def test_no_change_on_a_few_images_is_not_certain(images: int) -> None:
    found = paired_change(0, 0, images)
    assert found.pp == 0.0
    assert 200 / images < found.half_width_pp < 300 / images


@pytest.mark.parametrize("images", [50, 300, 2000, 20_000])
@pytest.mark.parametrize(("losing", "winning"), [(0.004, 0.0), (0.02, 0.0), (0.03, 0.02)])
def test_the_interval_covers_the_true_change_as_often_as_it_says(
    images: int, losing: float, winning: float
) -> None:
    random = np.random.default_rng(0)
    drawn = random.multinomial(images, [losing, winning, 1 - losing - winning], 2000)
    inside = 0
    for lost, won, _ in drawn:
        found = paired_change(int(lost), int(won), images)
        inside += abs(found.pp - 100 * (winning - losing)) <= found.half_width_pp
    assert inside / 2000 >= 0.93


def test_many_images_have_the_usual_paired_interval() -> None:
    random = np.random.default_rng(0)
    before, after = random.random(20_000) < 0.76, random.random(20_000) < 0.75
    apart = after.astype(float) - before.astype(float)
    found = paired_change(int((apart < 0).sum()), int((apart > 0).sum()), 20_000)
    assert found.pp == pytest.approx(100 * apart.mean())
    usual = 196 * float(apart.std(ddof=1)) / math.sqrt(20_000)
    assert found.half_width_pp == pytest.approx(usual, rel=1e-3)


def test_the_classes_whose_recall_changed_most_come_first() -> None:
    labels = (0, 0, 0, 0, 1, 1, 2, 2, 3, 3)
    before = says(0, 0, 0, 0, 1, 1, 2, 3, 3, 3)
    after = says(0, 0, 0, 1, 0, 0, 2, 2, 3, 3)
    found = judged(before, after, *labels)
    wanted = (
        RecallShift(1, 100.0, 0.0, 2),
        RecallShift(2, 50.0, 100.0, 2),
        RecallShift(0, 100.0, 75.0, 4),
    )
    assert recall_shifts(found) == wanted == summarize_accuracy(found).shifts
    assert recall_shifts(found, 1) == wanted[:1]
    assert recall_shifts(judged(before, after)) == ()
    assert classification_scores(judged(before, after)) is None
