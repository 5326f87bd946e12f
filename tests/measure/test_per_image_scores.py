"""What is kept of each image, against definitions written out, however the images are split."""

import itertools
import math
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from qconvert.core.errors import QConvertError
from qconvert.core.tensors import Tensors
from qconvert.measure.accuracy import summarize_accuracy
from qconvert.measure.per_image_scores import UNKNOWN, ImageScores, join_scores, score_batch

Floats = NDArray[np.float32]


@st.composite
def answers(draw: st.DrawFn) -> tuple[Floats, Floats, list[int | None]]:
    """Draw scores with many ties, some of them broken, and labels that some images lack."""
    count, classes = draw(st.integers(1, 12)), draw(st.integers(2, 8))
    random = np.random.default_rng(draw(st.integers(0, 10_000)))
    before = random.integers(-3, 4, (count, classes)).astype(np.float32)
    after = before + random.choice([0, 0, 1, -1, 0.25], before.shape).astype(np.float32)
    before[random.random(before.shape) < draw(st.sampled_from([0, 0, 0.02]))] = np.inf
    after[random.random(after.shape) < draw(st.sampled_from([0, 0.05]))] = np.nan
    known = random.random(count) < draw(st.sampled_from([0, 0.7, 1]))
    labels = random.integers(0, classes, count).tolist()
    return (
        before,
        after,
        [each if there else None for each, there in zip(labels, known, strict=True)],
    )


def one(before: Floats, after: Floats, labels: list[int | None]) -> ImageScores:
    return score_batch({"scores": before}, {"scores": after}, labels)


@given(answers(), st.lists(st.integers(1, 11), max_size=4))
def test_the_split_into_batches_changes_nothing(
    drawn: tuple[Floats, Floats, list[int | None]], cuts: list[int]
) -> None:
    before, after, labels = drawn
    edges = sorted({0, len(labels), *(cut for cut in cuts if cut < len(labels))})
    parts = [
        one(before[start:stop], after[start:stop], labels[start:stop])
        for start, stop in itertools.pairwise(edges)
    ]
    whole, joined = one(before, after, labels), join_scores(parts)
    for name in whole.rows.dtype.names or ():
        # The exponentials of KL may differ in their last bit, by their place in memory.
        apart = 1e-12 if name == "kl" else 0
        np.testing.assert_allclose(whole.rows[name], joined.rows[name], rtol=0, atol=apart)
    told, at_once = summarize_accuracy(joined), summarize_accuracy(whole)
    assert told.kl == pytest.approx(at_once.kl, abs=1e-12)
    assert replace(told, kl=None) == replace(at_once, kl=None)


@given(answers())
def test_the_order_of_the_parts_changes_nothing_that_is_told(
    drawn: tuple[Floats, Floats, list[int | None]],
) -> None:
    before, after, labels = drawn
    parts = [
        one(before[n : n + 1], after[n : n + 1], labels[n : n + 1]) for n in range(len(labels))
    ]
    assert summarize_accuracy(join_scores(parts)) == summarize_accuracy(join_scores(parts[::-1]))


@given(answers())
def test_each_row_is_its_definition(drawn: tuple[Floats, Floats, list[int | None]]) -> None:
    before, after, labels = drawn
    for row, a, b, label in zip(one(*drawn).rows, before, after, labels, strict=True):
        broken = not np.isfinite(b).all()
        assert row["answer"] == (UNKNOWN if broken else list(b).index(max(b)))
        assert row["label"] == (UNKNOWN if label is None else label)
        if broken or label is None:
            assert row["rank"] == UNKNOWN
        else:
            best_first = sorted(range(len(b)), key=lambda place: (-b[place], place))
            assert row["rank"] == best_first.index(label)
        if broken or not np.isfinite(a).all():
            assert np.isnan([row["signal"], row["error"], row["cosine"], row["kl"]]).all()
            continue
        assert row["signal"] == sum(float(x) ** 2 for x in a)
        assert row["error"] == sum((float(x) - float(y)) ** 2 for x, y in zip(a, b, strict=True))
        assert row["kl"] >= -1e-9


def test_cosine_is_over_all_outputs_of_an_image() -> None:
    wanted: Tensors = {
        "map": np.array([[[3.0]], [[0.0]], [[0.0]]]),
        "boxes": np.array([[4.0], [0], [0]]),
    }
    got: Tensors = {
        "map": np.array([[[4.0]], [[0.0]], [[1.0]]]),
        "boxes": np.array([[-3.0], [0], [1]]),
    }
    rows = score_batch(wanted, got, [None] * 3).rows
    assert rows["cosine"].tolist() == [0.0, 1.0, 0.0]
    assert rows["signal"].tolist() == [25.0, 0.0, 0.0]
    assert rows["error"].tolist() == [50.0, 0.0, 2.0]


def test_maps_boxes_and_single_numbers_are_no_scores() -> None:
    for shape in ((2, 3, 4, 4), (2, 1), (2,), (2, 5, 4)):
        array = np.ones(shape, np.float32)
        assert score_batch({"out": array}, {"out": array}, [None, None]).classes == 0
    integers = np.ones((2, 7), np.int64)
    assert score_batch({"out": integers}, {"out": integers}, [None, None]).classes == 0


def test_scores_with_ones_behind_are_scores() -> None:
    array = np.eye(3, dtype=np.float32).reshape(3, 3, 1, 1)
    found = score_batch({"out": array}, {"out": array}, [0, 1, 2])
    assert found.classes == 3
    assert found.rows["rank"].tolist() == [0, 0, 0]


def test_of_several_outputs_with_scores_the_first_counts_and_a_note_says_so() -> None:
    outputs: Tensors = {
        "map": np.ones((2, 3, 4, 4)), "main": np.eye(2), "other": np.eye(2)[::-1],
    }  # fmt: skip
    found = score_batch(outputs, outputs, [0, 1])
    assert found.rows["rank"].tolist() == [0, 0]
    assert found.notes == ("of 2 outputs with scores the first, `main`, counts",)


@pytest.mark.parametrize(
    ("got", "note"),
    [
        ({"a": np.ones((2, 3))}, "output `b` is missing"),
        ({"a": np.ones((2, 3)), "b": np.ones((2, 4))}, "output `b` has another shape"),
    ],
)
def test_what_cannot_be_compared_is_left_out_and_noted(got: Tensors, note: str) -> None:
    found = score_batch({"a": np.ones((2, 3)), "b": np.ones((2, 5, 2))}, got, [None, None])
    assert found.notes[0].startswith(note)
    assert found.rows["signal"].tolist() == [3.0, 3.0]


def test_an_output_without_a_row_for_each_image_is_left_out() -> None:
    found = score_batch({"boxes": np.ones((7, 4))}, {"boxes": np.ones((7, 4))}, [None, None])
    assert found.notes == ("output `boxes` does not have a row for each image: not compared",)
    told = summarize_accuracy(found)
    assert (told.sqnr_db, told.cosine, told.kl, told.agreement) == (None, None, None, None)
    words = {"words": np.array(["a", "b"])}
    assert score_batch(words, words, [None, None]).notes == (
        "output `words` holds no numbers: not compared",
    )


def test_half_precisions_are_compared_as_they_are() -> None:
    for dtype in (np.float16, ml_dtypes.bfloat16):
        before = np.array([[1, 2]], np.float32)
        found = one(before, before.astype(dtype), [1])
        assert found.rows["error"].tolist() == [0.0]
        assert found.rows["rank"].tolist() == [0]


def test_rounded_probabilities_stay_probabilities() -> None:
    before = np.array([[0.7, 0.2, 0.1]], np.float32)
    # As of a quantized Softmax: they add up to 0.97.
    after = np.array([[0.68, 0.19, 0.10]], np.float32)
    shares = after[0] / after[0].sum()
    wanted = sum(p * math.log(p / q) for p, q in zip(before[0], shares, strict=True))
    assert one(before, after, [0]).rows["kl"][0] == pytest.approx(wanted, abs=1e-6)
    assert np.isfinite(one(before, np.zeros((1, 3), np.float32), [0]).rows["kl"]).all()


def test_scores_that_look_like_probabilities_are_those_that_fp32_gives() -> None:
    before, after = np.array([[0.0, 2.0]], np.float32), np.array([[0.0, 1.0]], np.float32)
    p, q = (1 / (1 + math.exp(-2)), 1 / (1 + math.exp(-1)))
    wanted = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    assert one(before, after, [0]).rows["kl"][0] == pytest.approx(wanted)


@pytest.mark.parametrize("label", [3, -1])
def test_a_label_that_is_no_class_is_refused(label: int) -> None:
    scores = np.eye(3, dtype=np.float32)
    with pytest.raises(QConvertError, match=f"label {label} is no class of the model, which has 3"):
        one(scores, scores, [0, label, 1])


def test_outputs_of_another_length_for_each_image_are_no_classes() -> None:
    two, three = (np.eye(n, dtype=np.float32) for n in (2, 3))
    found = summarize_accuracy(join_scores([one(two, two, [0, 1]), one(three, three, [0, 1, 2])]))
    assert (found.images, found.top1, found.agreement, found.kl) == (5, None, None, None)
    assert found.cosine == pytest.approx(1)
    with pytest.raises(ValueError, match="no images"):
        join_scores([])


def test_a_note_of_every_batch_is_told_once() -> None:
    part = score_batch({"a": np.ones((1, 3)), "b": np.ones((1, 3))}, {"a": np.ones((1, 3))}, [0])
    assert join_scores([part, part, part]).notes == part.notes
