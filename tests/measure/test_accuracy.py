"""The accuracy of an engine over all images."""

import itertools
import json
import math
from dataclasses import asdict, replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from qconvert.core.errors import QConvertError
from qconvert.core.tensors import Tensors
from qconvert.measure.accuracy import (
    IDENTICAL,
    IDENTICAL_WHERE_FINITE,
    NO_CLASSES,
    NO_LABELS,
    UNKNOWN,
    ImageScores,
    fp32_accuracy,
    join_scores,
    score_batch,
    summarize_accuracy,
)
from qconvert.tasks.bootstrap import paired_change
from qconvert.tasks.task import ClassShift

Floats = NDArray[np.float32]


def predict(*classes_predicted: int, classes: int = 4) -> Floats:
    """Return scores whose highest are these classes."""
    return np.eye(classes, dtype=np.float32)[list(classes_predicted)] * 5


def score(before: Floats, after: Floats, *labels: int | None) -> ImageScores:
    labelled = list(labels) or [None] * len(before)
    return score_batch({"scores": before}, {"scores": after}, labelled)


def test_top1_and_agreement_are_shares_of_the_images() -> None:
    accuracy = summarize_accuracy(score(predict(0, 1, 2, 3), predict(0, 1, 3, 2), 0, 1, 3, 3))
    assert (accuracy.images, accuracy.measured_on) == (4, "engine")
    assert accuracy.top1 == 75.0
    assert accuracy.agreement == 50.0
    assert accuracy.change_pp == 0.0


def test_top5_needs_more_than_five_classes() -> None:
    ranked = np.array([[9, 8, 7, 6, 5, 4, 3]] * 7, np.float32)
    accuracy = summarize_accuracy(score(ranked, ranked, *range(7)))
    assert accuracy.top1 == pytest.approx(100 / 7)
    assert accuracy.top5 == pytest.approx(500 / 7)
    few = predict(0, 1, classes=5)
    assert summarize_accuracy(score(few, few, 0, 1)).top5 is None


def test_precision_recall_and_f1_are_means_over_the_classes_with_labels() -> None:
    # Class 0: 2 of 3 right, 1 wrong; class 1: 1 of 2 right, 1 wrong; class 3: never predicted.
    # Class 2 has no labels: its two predictions are errors of other classes; it has no score.
    after = predict(0, 0, 1, 1, 2, 0, 2)
    labels = (0, 0, 0, 1, 1, 3, 3)
    accuracy = summarize_accuracy(score(after, after, *labels))
    precision, recall = (2 / 3, 1 / 2, 0), (2 / 3, 1 / 2, 0)
    f1 = [2 * p * r / (p + r) if p + r else 0 for p, r in zip(precision, recall, strict=True)]
    assert accuracy.precision == pytest.approx(100 * sum(precision) / 3)
    assert accuracy.recall == pytest.approx(100 * sum(recall) / 3)
    assert accuracy.f1 == pytest.approx(100 * sum(f1) / 3)


def test_correct_predictions_score_a_hundred() -> None:
    accuracy = summarize_accuracy(score(predict(0, 1, 1), predict(0, 1, 1), 0, 1, 1))
    assert (accuracy.top1, accuracy.precision, accuracy.recall, accuracy.f1) == (100, 100, 100, 100)


def test_images_without_any_label_have_agreement_only() -> None:
    accuracy = summarize_accuracy(score(predict(0, 1), predict(0, 2)), "cpu-simulation")
    assert accuracy.measured_on == "cpu-simulation"
    assert accuracy.agreement == 50.0
    assert (accuracy.top1, accuracy.precision, accuracy.change_pp) == (None, None, None)
    assert NO_LABELS in accuracy.notes


def test_images_without_a_label_count_for_agreement_only() -> None:
    accuracy = summarize_accuracy(score(predict(0, 1, 2), predict(0, 2, 2), 0, None, 2))
    assert accuracy.top1 == 100.0
    assert accuracy.agreement == pytest.approx(200 / 3)
    assert (accuracy.images, accuracy.labelled) == (3, 2)
    assert accuracy.notes == ("1 of 3 images have no label: scores are over the others",)


def test_maps_have_cosine_and_sqnr_only() -> None:
    before = np.ones((2, 3, 4, 4), np.float32)
    accuracy = summarize_accuracy(score_batch({"map": before}, {"map": before * 1.1}, [0, 1]))
    assert accuracy.sqnr_db == pytest.approx(20, abs=0.01)
    assert accuracy.cosine == pytest.approx(1)
    assert (accuracy.agreement, accuracy.kl, accuracy.top1) == (None, None, None)
    assert accuracy.notes == (NO_CLASSES,)


def test_sqnr_is_over_all_images_and_cosine_a_mean() -> None:
    before, after = np.array([[10, 0], [1, 0]]), np.array([[10, 1], [0, 0]])
    accuracy = summarize_accuracy(score(before.astype(np.float32), after.astype(np.float32)))
    assert accuracy.sqnr_db == pytest.approx(10 * math.log10(101 / 2))
    assert accuracy.cosine == pytest.approx((10 / math.sqrt(101) + 0) / 2)


def test_equal_outputs_have_infinite_sqnr_and_a_note() -> None:
    accuracy = summarize_accuracy(score(predict(0, 1), predict(0, 1), 0, 1))
    assert accuracy.sqnr_db == math.inf
    assert IDENTICAL in accuracy.notes
    assert accuracy.kl == 0.0
    # A number that JSON does not have is written as null, and the note says why.
    written = {**asdict(accuracy), "sqnr_db": None}
    assert IDENTICAL in json.loads(json.dumps(written, allow_nan=False))["notes"]


def test_predictions_that_are_not_finite_are_wrong_and_noted() -> None:
    after = predict(0, 1, 2, 3)
    after[1, 0], after[2, 3] = np.nan, np.inf
    accuracy = summarize_accuracy(score(predict(0, 1, 2, 3), after, 0, 1, 2, 3))
    assert (accuracy.agreement, accuracy.top1, accuracy.change_pp) == (50.0, 50.0, -50.0)
    assert accuracy.sqnr_db == math.inf
    assert "on 2 of 4 images the engine's outputs hold NaN or infinity" in accuracy.notes[0]


def test_engine_that_outputs_only_nan_has_no_error() -> None:
    accuracy = summarize_accuracy(score(predict(0, 1), np.full((2, 4), np.nan, np.float32), 0, 1))
    assert (accuracy.agreement, accuracy.top1, accuracy.recall) == (0.0, 0.0, 0.0)
    assert (accuracy.sqnr_db, accuracy.kl, accuracy.cosine) == (None, None, None)


def test_images_on_which_fp32_is_not_finite_are_left_out() -> None:
    before = predict(0, 1, 2)
    before[0, 0] = np.nan
    accuracy = summarize_accuracy(score(before, predict(0, 1, 3), 0, 1, 3))
    assert accuracy.agreement == 50.0
    assert accuracy.top1 == 100.0
    assert any(note.startswith("on 1 of 3 images FP32's own") for note in accuracy.notes)


def test_other_outputs_that_are_not_finite_leave_predictions_right() -> None:
    scores, boxes = predict(0, 1, 2, 3), np.ones((4, 2, 2), np.float32)
    broken = boxes * np.nan
    accuracy = summarize_accuracy(
        score_batch({"s": scores, "b": boxes}, {"s": scores, "b": broken}, [0, 1, 2, 3])
    )
    assert (accuracy.top1, accuracy.agreement, accuracy.kl) == (100.0, 100.0, 0.0)
    assert (accuracy.sqnr_db, accuracy.cosine) == (None, None)
    assert accuracy.notes == (
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


def test_partly_finite_outputs_are_not_identical() -> None:
    after = predict(0, 1, 2)
    after[1, 0] = np.nan
    accuracy = summarize_accuracy(score(predict(0, 1, 2), after))
    assert accuracy.sqnr_db == math.inf
    assert IDENTICAL not in accuracy.notes
    assert IDENTICAL_WHERE_FINITE in accuracy.notes


def test_error_of_zero_outputs_has_no_sqnr() -> None:
    zeros = np.zeros((1, 4), np.float32)
    accuracy = summarize_accuracy(score(zeros, zeros + 1))
    assert (accuracy.sqnr_db, accuracy.cosine) == (None, 0.0)


def test_fp32_accuracy_compares_with_nothing() -> None:
    before, labels = predict(0, 1, 2, 2), (0, 1, 2, 3)
    own = summarize_accuracy(score(before, before, *labels))
    accuracy = fp32_accuracy(score(before, before, *labels))
    assert (accuracy.top1, accuracy.precision, accuracy.recall, accuracy.f1) == (
        own.top1, own.precision, own.recall, own.f1,
    )  # fmt: skip
    assert (accuracy.agreement, accuracy.change_pp, accuracy.sqnr_db) == (None, None, None)
    assert accuracy.notes == ()
    assert (accuracy.images, accuracy.labelled) == (4, 4)


def test_top1_change_is_paired_over_the_same_images() -> None:
    scores = score(predict(0, 1, 2, 3, 0), predict(0, 1, 3, 3, 1), 0, 1, 2, 3, 1)
    accuracy = summarize_accuracy(scores)
    assert accuracy.change_pp == 0.0
    # One lost and one won, plus one of each added, out of 5 + 2.
    assert accuracy.half_width_pp == pytest.approx(196 * math.sqrt(4 / 7 / 7))


@pytest.mark.parametrize("images", [10, 100, 1000])
def test_no_change_on_few_images_has_a_wide_interval(images: int) -> None:
    change, half_width = paired_change(0, 0, images)
    assert change == 0.0
    assert 200 / images < half_width < 300 / images


@pytest.mark.parametrize("images", [50, 300, 2000, 20_000])
@pytest.mark.parametrize(("losing", "winning"), [(0.004, 0.0), (0.02, 0.0), (0.03, 0.02)])
def test_interval_covers_the_true_change(images: int, losing: float, winning: float) -> None:
    random = np.random.default_rng(0)
    drawn = random.multinomial(images, [losing, winning, 1 - losing - winning], 2000)
    inside = 0
    for lost, won, _ in drawn:
        change, half_width = paired_change(int(lost), int(won), images)
        inside += abs(change - 100 * (winning - losing)) <= half_width
    assert inside / 2000 >= 0.93


def test_interval_of_many_images_is_the_usual_paired_one() -> None:
    random = np.random.default_rng(0)
    before, after = random.random(20_000) < 0.76, random.random(20_000) < 0.75
    difference = after.astype(float) - before.astype(float)
    lost, won = int((difference < 0).sum()), int((difference > 0).sum())
    change, half_width = paired_change(lost, won, 20_000)
    assert change == pytest.approx(100 * difference.mean())
    usual = 196 * float(difference.std(ddof=1)) / math.sqrt(20_000)
    assert half_width == pytest.approx(usual, rel=1e-3)


def test_classes_whose_recall_changed_most_come_first() -> None:
    labels = (0, 0, 0, 0, 1, 1, 2, 2, 3, 3)
    before = predict(0, 0, 0, 0, 1, 1, 2, 3, 3, 3)
    after = predict(0, 0, 0, 1, 0, 0, 2, 2, 3, 3)
    assert summarize_accuracy(score(before, after, *labels)).shifts == (
        ClassShift(1, 100.0, 0.0, 2),
        ClassShift(2, 50.0, 100.0, 2),
        ClassShift(0, 100.0, 75.0, 4),
    )
    assert summarize_accuracy(score(before, after)).shifts == ()


@st.composite
def score_pairs(draw: st.DrawFn) -> tuple[Floats, Floats, list[int | None]]:
    """Draw scores with many ties and some non-finite values, and labels that some images lack."""
    count, classes = draw(st.integers(1, 12)), draw(st.integers(2, 8))
    random = np.random.default_rng(draw(st.integers(0, 10_000)))
    before = random.integers(-3, 4, (count, classes)).astype(np.float32)
    after = before + random.choice([0, 0, 1, -1, 0.25], before.shape).astype(np.float32)
    before[random.random(before.shape) < draw(st.sampled_from([0, 0, 0.02]))] = np.inf
    after[random.random(after.shape) < draw(st.sampled_from([0, 0.05]))] = np.nan
    labelled = random.random(count) < draw(st.sampled_from([0, 0.7, 1]))
    labels = random.integers(0, classes, count).tolist()
    return (
        before,
        after,
        [label if has_label else None for label, has_label in zip(labels, labelled, strict=True)],
    )


@given(score_pairs(), st.lists(st.integers(1, 11), max_size=4))
def test_scores_do_not_depend_on_the_split_into_batches(
    pair: tuple[Floats, Floats, list[int | None]], cuts: list[int]
) -> None:
    before, after, labels = pair
    edges = sorted({0, len(labels), *(cut for cut in cuts if cut < len(labels))})
    parts = [
        score(before[start:stop], after[start:stop], *labels[start:stop])
        for start, stop in itertools.pairwise(edges)
    ]
    whole, joined = score(before, after, *labels), join_scores(parts)
    for name in whole.rows.dtype.names or ():
        # The exponentials of KL may differ in the last bit, depending on memory alignment.
        tolerance = 1e-12 if name == "kl" else 0
        np.testing.assert_allclose(whole.rows[name], joined.rows[name], rtol=0, atol=tolerance)
    in_parts, at_once = summarize_accuracy(joined), summarize_accuracy(whole)
    assert in_parts.kl == pytest.approx(at_once.kl, abs=1e-12)
    assert replace(in_parts, kl=None) == replace(at_once, kl=None)


@given(score_pairs())
def test_accuracy_does_not_depend_on_the_order_of_the_parts(
    pair: tuple[Floats, Floats, list[int | None]],
) -> None:
    before, after, labels = pair
    parts = [
        score(one, other, label)
        for one, other, label in zip(
            before[:, np.newaxis], after[:, np.newaxis], labels, strict=True
        )
    ]
    assert summarize_accuracy(join_scores(parts)) == summarize_accuracy(join_scores(parts[::-1]))


@given(score_pairs())
def test_score_rows_follow_their_definition(pair: tuple[Floats, Floats, list[int | None]]) -> None:
    before, after, labels = pair
    for row, a, b, label in zip(
        score(before, after, *labels).rows, before, after, labels, strict=True
    ):
        broken = not np.isfinite(b).all()
        assert row["engine_class"] == (UNKNOWN if broken else list(b).index(max(b)))
        assert row["label"] == (UNKNOWN if label is None else label)
        if broken or label is None:
            assert row["engine_rank"] == UNKNOWN
        else:
            best_first = sorted(range(len(b)), key=lambda index: (-b[index], index))
            assert row["engine_rank"] == best_first.index(label)
        if broken or not np.isfinite(a).all():
            assert np.isnan([row["signal"], row["error"], row["cosine"], row["kl"]]).all()
            continue
        assert row["signal"] == sum(float(x) ** 2 for x in a)
        assert row["error"] == sum((float(x) - float(y)) ** 2 for x, y in zip(a, b, strict=True))
        assert row["kl"] >= -1e-9


def test_cosine_is_over_all_outputs_of_an_image() -> None:
    reference: Tensors = {
        "map": np.array([[[3.0]], [[0.0]], [[0.0]]]),
        "boxes": np.array([[4.0], [0], [0]]),
    }
    outputs: Tensors = {
        "map": np.array([[[4.0]], [[0.0]], [[1.0]]]),
        "boxes": np.array([[-3.0], [0], [1]]),
    }
    rows = score_batch(reference, outputs, [None] * 3).rows
    assert rows["cosine"].tolist() == [0.0, 1.0, 0.0]
    assert rows["signal"].tolist() == [25.0, 0.0, 0.0]
    assert rows["error"].tolist() == [50.0, 0.0, 2.0]


def test_maps_boxes_and_scalars_are_not_class_scores() -> None:
    for shape in ((2, 3, 4, 4), (2, 1), (2,), (2, 5, 4)):
        array = np.ones(shape, np.float32)
        assert score_batch({"out": array}, {"out": array}, [None, None]).classes == 0
    integers = np.ones((2, 7), np.int64)
    assert score_batch({"out": integers}, {"out": integers}, [None, None]).classes == 0


def test_scores_with_trailing_ones_are_class_scores() -> None:
    array = np.eye(3, dtype=np.float32).reshape(3, 3, 1, 1)
    scores = score_batch({"out": array}, {"out": array}, [0, 1, 2])
    assert scores.classes == 3
    assert scores.rows["engine_rank"].tolist() == [0, 0, 0]


def test_first_of_several_score_outputs_is_evaluated_with_note() -> None:
    outputs: Tensors = {
        "map": np.ones((2, 3, 4, 4)), "main": np.eye(2), "other": np.eye(2)[::-1],
    }  # fmt: skip
    scores = score_batch(outputs, outputs, [0, 1])
    assert scores.rows["engine_rank"].tolist() == [0, 0]
    assert scores.notes == ("of 2 outputs with scores the first, `main`, counts",)


@pytest.mark.parametrize(
    ("reference", "outputs", "problem"),
    [
        (np.ones((2, 5, 2)), None, "is missing"),
        (np.ones((2, 5, 2)), np.ones((2, 4)), "has another shape than that of FP32"),
        (np.ones((7, 4)), np.ones((7, 4)), "does not have a row for each image"),
        (np.array(["a", "b"]), np.array(["a", "b"]), "is not numeric"),
    ],
)
def test_output_that_cannot_be_compared_is_skipped_with_a_note(
    reference: NDArray[Any], outputs: NDArray[Any] | None, problem: str
) -> None:
    same, other = {"a": np.ones((2, 3))}, {} if outputs is None else {"b": outputs}
    scores = score_batch({**same, "b": reference}, {**same, **other}, [None, None])
    assert scores.notes == (f"output `b` {problem}: not compared",)
    assert scores.rows["signal"].tolist() == [3.0, 3.0]
    alone = summarize_accuracy(score_batch({"b": reference}, other, [None, None]))
    assert (alone.sqnr_db, alone.cosine, alone.kl, alone.agreement) == (None,) * 4


def test_half_precision_outputs_are_compared() -> None:
    for dtype in (np.float16, ml_dtypes.bfloat16):
        before = np.array([[1, 2]], np.float32)
        scores = score(before, before.astype(dtype), 1)
        assert scores.rows["error"].tolist() == [0.0]
        assert scores.rows["engine_rank"].tolist() == [0]


@pytest.mark.parametrize("label", [3, -1])
def test_label_beyond_the_classes_is_refused(label: int) -> None:
    perfect = np.eye(3, dtype=np.float32)
    with pytest.raises(
        QConvertError, match=f"label {label} is not a class of the model, which has 3"
    ):
        score(perfect, perfect, 0, label, 1)


def test_outputs_of_varying_length_are_not_class_scores() -> None:
    two, three = (np.eye(n, dtype=np.float32) for n in (2, 3))
    accuracy = summarize_accuracy(
        join_scores([score(two, two, 0, 1), score(three, three, 0, 1, 2)])
    )
    assert accuracy.images == 5
    assert (accuracy.top1, accuracy.agreement, accuracy.kl) == (None, None, None)
    assert accuracy.cosine == pytest.approx(1)


def test_note_of_every_batch_appears_once() -> None:
    part = score_batch({"a": np.ones((1, 3)), "b": np.ones((1, 3))}, {"a": np.ones((1, 3))}, [0])
    assert join_scores([part, part, part]).notes == part.notes
