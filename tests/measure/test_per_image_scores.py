"""The numbers of each image against written-out definitions, however the images are split."""

import itertools
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from qconvert.core.errors import QConvertError
from qconvert.core.tensors import Tensors
from qconvert.measure.accuracy import (
    UNKNOWN,
    ImageScores,
    join_scores,
    score_batch,
    summarize_accuracy,
)

Floats = NDArray[np.float32]


@st.composite
def score_pairs(draw: st.DrawFn) -> tuple[Floats, Floats, list[int | None]]:
    """Draw scores with many ties, some of them broken, and labels that some images lack."""
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
        [label if known else None for label, known in zip(labels, labelled, strict=True)],
    )


def score(before: Floats, after: Floats, labels: list[int | None]) -> ImageScores:
    return score_batch({"scores": before}, {"scores": after}, labels)


@given(score_pairs(), st.lists(st.integers(1, 11), max_size=4))
def test_scores_do_not_depend_on_the_split_into_batches(
    pair: tuple[Floats, Floats, list[int | None]], cuts: list[int]
) -> None:
    before, after, labels = pair
    edges = sorted({0, len(labels), *(cut for cut in cuts if cut < len(labels))})
    parts = [
        score(before[start:stop], after[start:stop], labels[start:stop])
        for start, stop in itertools.pairwise(edges)
    ]
    whole, joined = score(before, after, labels), join_scores(parts)
    for name in whole.rows.dtype.names or ():
        # The exponentials of KL may differ in their last bit, by their place in memory.
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
        score(before[n : n + 1], after[n : n + 1], labels[n : n + 1]) for n in range(len(labels))
    ]
    assert summarize_accuracy(join_scores(parts)) == summarize_accuracy(join_scores(parts[::-1]))


@given(score_pairs())
def test_each_row_follows_its_definition(pair: tuple[Floats, Floats, list[int | None]]) -> None:
    before, after, labels = pair
    for row, a, b, label in zip(score(*pair).rows, before, after, labels, strict=True):
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


def test_first_of_several_score_outputs_counts_with_a_note() -> None:
    outputs: Tensors = {
        "map": np.ones((2, 3, 4, 4)), "main": np.eye(2), "other": np.eye(2)[::-1],
    }  # fmt: skip
    scores = score_batch(outputs, outputs, [0, 1])
    assert scores.rows["engine_rank"].tolist() == [0, 0]
    assert scores.notes == ("of 2 outputs with scores the first, `main`, counts",)


@pytest.mark.parametrize(
    ("outputs", "note"),
    [
        ({"a": np.ones((2, 3))}, "output `b` is missing"),
        ({"a": np.ones((2, 3)), "b": np.ones((2, 4))}, "output `b` has another shape"),
    ],
)
def test_missing_output_and_output_of_another_shape_are_skipped_with_a_note(
    outputs: Tensors, note: str
) -> None:
    scores = score_batch({"a": np.ones((2, 3)), "b": np.ones((2, 5, 2))}, outputs, [None, None])
    assert scores.notes[0].startswith(note)
    assert scores.rows["signal"].tolist() == [3.0, 3.0]


def test_output_without_a_row_per_image_is_skipped_with_a_note() -> None:
    scores = score_batch({"boxes": np.ones((7, 4))}, {"boxes": np.ones((7, 4))}, [None, None])
    assert scores.notes == ("output `boxes` does not have a row for each image: not compared",)
    accuracy = summarize_accuracy(scores)
    assert (accuracy.sqnr_db, accuracy.cosine, accuracy.kl, accuracy.agreement) == (
        None,
        None,
        None,
        None,
    )
    words = {"words": np.array(["a", "b"])}
    assert score_batch(words, words, [None, None]).notes == (
        "output `words` is not numeric: not compared",
    )


def test_half_precision_outputs_are_compared() -> None:
    for dtype in (np.float16, ml_dtypes.bfloat16):
        before = np.array([[1, 2]], np.float32)
        scores = score(before, before.astype(dtype), [1])
        assert scores.rows["error"].tolist() == [0.0]
        assert scores.rows["engine_rank"].tolist() == [0]


@pytest.mark.parametrize("label", [3, -1])
def test_label_beyond_the_classes_is_refused(label: int) -> None:
    perfect = np.eye(3, dtype=np.float32)
    with pytest.raises(
        QConvertError, match=f"label {label} is not a class of the model, which has 3"
    ):
        score(perfect, perfect, [0, label, 1])


def test_outputs_of_varying_length_are_not_class_scores() -> None:
    two, three = (np.eye(n, dtype=np.float32) for n in (2, 3))
    accuracy = summarize_accuracy(
        join_scores([score(two, two, [0, 1]), score(three, three, [0, 1, 2])])
    )
    assert (accuracy.images, accuracy.top1, accuracy.agreement, accuracy.kl) == (
        5,
        None,
        None,
        None,
    )
    assert accuracy.cosine == pytest.approx(1)
    with pytest.raises(ValueError, match="no images"):
        join_scores([])


def test_note_of_every_batch_appears_once() -> None:
    part = score_batch({"a": np.ones((1, 3)), "b": np.ones((1, 3))}, {"a": np.ones((1, 3))}, [0])
    assert join_scores([part, part, part]).notes == part.notes
