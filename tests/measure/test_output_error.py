"""The distance of two answers is the textbook's, and says so where an answer is broken."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from qconvert.measure.output_error import (
    kl_divergence,
    noise_to_signal,
    per_image_errors,
    prediction_changes,
    sqnr_db,
)
from tests.models import floats

Numbers = NDArray[np.floating]


@st.composite
def scores(draw: st.DrawFn) -> tuple[Numbers, Numbers]:
    """Draw two tables of scores of one shape, near each other or far."""
    shape = (draw(st.integers(1, 5)), draw(st.integers(2, 9)))
    random = np.random.default_rng(draw(st.integers(0, 999)))
    wanted = random.standard_normal(shape) * draw(st.sampled_from([0.1, 3, 40]))
    changed = random.standard_normal(shape) * draw(st.sampled_from([1e-3, 0.5, 20]))
    return wanted.astype(np.float32), (wanted + changed).astype(np.float32)


def log_softmax(row: Sequence[float]) -> list[float]:
    total = math.log(sum(math.exp(score - max(row)) for score in row))
    return [score - max(row) - total for score in row]


def kl(wanted: Numbers, got: Numbers) -> list[float]:
    """Compute the divergence of each row number by number."""
    rows: list[float] = []
    for before, after in zip(wanted.tolist(), got.tolist(), strict=True):
        pairs = zip(log_softmax(before), log_softmax(after), strict=True)
        rows.append(sum(math.exp(p) * (p - q) for p, q in pairs))
    return rows


def probabilities(table: Numbers) -> NDArray[np.float32]:
    rows = [[math.exp(log) for log in log_softmax(row)] for row in table.tolist()]
    return np.array(rows, dtype=np.float32)


def apart(wanted: object, got: object) -> list[float]:
    """Return the distances of two networks that have one output and were asked once."""
    found = per_image_errors([{"y": np.asarray(wanted)}], [{"y": np.asarray(got)}])
    return [float(each) for each in found]


@settings(deadline=None)
@given(scores())
def test_the_divergence_is_that_of_its_definition(pair: tuple[Numbers, Numbers]) -> None:
    wanted, got = pair
    found = kl_divergence(wanted, got).tolist()
    assert found == pytest.approx(kl(wanted, got), rel=1e-9, abs=1e-12)
    assert apart(wanted, got) == found


@settings(deadline=None)
@given(scores())
def test_equal_scores_are_not_apart_and_others_are(pair: tuple[Numbers, Numbers]) -> None:
    wanted, got = pair
    assert not kl_divergence(wanted, wanted).any()
    for found, defined in zip(kl_divergence(wanted, got), kl(wanted, got), strict=True):
        # Two rows that are sure of one class are equal but for the last bits.
        assert found > (0 if defined > 1e-9 else -1e-12)


@settings(deadline=None)
@given(scores(), st.floats(-50, 50), st.floats(-50, 50))
def test_what_is_added_to_all_scores_of_a_row_changes_nothing(
    pair: tuple[Numbers, Numbers], first: float, second: float
) -> None:
    wanted, got = (each.astype(np.float64) for each in pair)
    shifts = np.linspace(first, second, len(wanted))[:, np.newaxis]
    moved = kl_divergence(wanted + shifts, got - shifts)
    np.testing.assert_allclose(moved, kl_divergence(wanted, got), rtol=1e-9, atol=1e-12)


def test_scores_of_any_size_have_a_finite_divergence() -> None:
    wanted = np.array([[3e4, 0.0, -3e4], [0.0, 0.0, 0.0], [-5e3, -5e3, -6e3]], dtype=np.float32)
    got = np.array([[3e4, 0.0, -3e4], [1e3, 0.0, 0.0], [-5e3, -6e3, -5e3]], dtype=np.float32)
    assert apart(wanted, got) == pytest.approx([0, 2000 / 3 - math.log(3), 500 - math.log(2)], 1e-2)


def test_probabilities_count_like_the_scores_that_they_came_from() -> None:
    wanted, got = floats(20, 10), floats(20, 10) + 0.3 * floats(20, 10, seed=1)
    before, after = probabilities(wanted), probabilities(got)
    np.testing.assert_allclose(kl_divergence(before, after), kl_divergence(wanted, got), rtol=1e-3)
    assert not kl_divergence(before, before).any()


def test_a_probability_of_zero_is_far_from_another_and_finite() -> None:
    sure, unsure = np.array([[1.0, 0.0, 0.0]]), np.array([[0.5, 0.5, 0.0]])
    assert kl_divergence(sure, unsure).tolist() == pytest.approx([math.log(2)])
    assert 5 < kl_divergence(unsure, sure)[0] < 20


@pytest.mark.parametrize("levels", [255, 127])
def test_probabilities_that_were_rounded_are_probabilities_still(levels: int) -> None:
    wanted = probabilities(floats(30, 10))
    got = np.rint(wanted * levels).astype(np.float32) / levels
    assert not np.allclose(got.sum(axis=1), 1.0, atol=1e-3)
    assert 0 < kl_divergence(wanted, got).mean() < 0.01


def test_a_broken_answer_makes_no_scores_of_the_probabilities_of_others() -> None:
    wanted = probabilities(floats(3, 5))
    got = wanted.copy()
    got[1, 0] = np.nan
    assert apart(wanted, got) == [0, math.inf, 0]


@pytest.mark.parametrize("shape", [(9, 5), (9, 1), (9,), (9, 2, 3)])
def test_every_image_has_its_own_distance_however_the_batches_came(shape: tuple[int, ...]) -> None:
    wanted, got = floats(*shape), floats(*shape, seed=1)
    got[:2] = wanted[:2]
    parts = [slice(0, 4), slice(4, 8), slice(8, 9)]
    split = per_image_errors([{"y": wanted[at]} for at in parts], [{"y": got[at]} for at in parts])
    assert split.tolist() == apart(wanted, got)
    assert (split > 0).tolist() == [False] * 2 + [True] * 7
    reverse = apart(wanted[::-1], got[::-1])
    assert reverse == pytest.approx(split.tolist()[::-1])


@pytest.mark.parametrize("shape", [(4, 3, 5, 5), (4, 1), (4,), (4, 2, 2)])
def test_a_map_counts_with_its_error_relative_to_the_squares_of_all_images(
    shape: tuple[int, ...],
) -> None:
    wanted, got = floats(*shape), floats(*shape, seed=1)
    wanted[3] *= 100
    squares = [sum(x**2 for x in image.ravel().tolist()) for image in wanted]
    error = [sum(x**2 for x in image.ravel().tolist()) for image in wanted - got]
    defined = pytest.approx([each / (sum(squares) / 4) for each in error], rel=1e-5)
    assert apart(wanted, got) == defined
    assert apart(wanted * 1000, got * 1000) == defined
    assert apart(wanted, wanted) == [0] * 4


def test_of_a_map_of_zeros_the_error_counts_as_it_is() -> None:
    zeros = np.zeros((2, 1, 4, 4), dtype=np.float32)
    wrong = zeros.copy()
    wrong[1, 0, 2, 1:3] = -0.5
    assert apart(zeros, zeros) == [0, 0]
    assert apart(zeros, wrong) == [0, 0.5]


@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.bool_])
def test_integers_count_with_the_share_that_changed(kind: type[np.generic]) -> None:
    wanted = np.array([[0, 1, 1], [0, 0, 1], [1, 1, 1]]).astype(kind)
    got = np.array([[0, 1, 0], [0, 0, 1], [0, 0, 0]]).astype(kind)
    assert apart(wanted, got) == pytest.approx([1 / 3, 0, 1])
    assert apart(wanted[:, 0], got[:, 0]) == [0, 0, 1]


@pytest.mark.parametrize("shape", [(3, 5), (3, 1, 2, 2), (3, 1), (3,)])
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_an_image_whose_answer_is_not_finite_is_infinitely_far_and_no_other(
    shape: tuple[int, ...], wrong: float
) -> None:
    wanted, got = floats(*shape), floats(*shape)
    got.reshape(3, -1)[1, 0] = wrong
    assert apart(wanted, got) == [0, math.inf, 0]
    beside = {"x": np.zeros(3)}
    found = per_image_errors([{**beside, "y": wanted}], [{**beside, "y": got}])
    assert found.tolist() == [0, math.inf, 0]


@pytest.mark.parametrize("shape", [(3, 5), (3, 1, 2, 2)])
def test_a_reference_that_is_not_finite_makes_no_distance_of_nan(shape: tuple[int, ...]) -> None:
    wanted = floats(*shape)
    wanted[1, 0] = -np.inf
    assert not np.isnan(apart(wanted, floats(*shape, seed=1))).any()


def test_all_outputs_weigh_the_same() -> None:
    wanted = {"scores": floats(4, 5), "map": floats(4, 2, 3), "place": np.array([1, 2, 3, 4])}
    got = {"place": np.array([1, 2, 3, 5]), "scores": floats(4, 5, seed=1), "map": floats(4, 2, 3)}
    far = [apart(wanted[name], got[name]) for name in wanted]
    assert far[1:] == [[0, 0, 0, 0], [0, 0, 0, 1]]
    defined = [sum(each) / 3 for each in zip(*far, strict=True)]
    assert per_image_errors([wanted], [got]).tolist() == pytest.approx(defined)


def test_other_boxes_than_were_found_before_are_compared_too() -> None:
    assert max(apart(floats(5, 4), floats(3, 4))) > 0
    assert max(apart(np.arange(5), np.arange(3))) > 0


def test_an_output_without_a_row_for_each_image_is_compared_too() -> None:
    anchors = {"anchors": floats(7, 2)}
    wanted, got = floats(3, 5), floats(3, 5, seed=1)
    found = per_image_errors([{"y": wanted, **anchors}], [{"y": got, **anchors}])
    assert found.tolist() == pytest.approx([each / 2 for each in apart(wanted, got)])


def boxes(*rows: int, seed: int = 0) -> list[dict[str, Numbers]]:
    """Return batches with so many boxes."""
    return [{"boxes": floats(each, 4, seed=seed)} for each in rows]


@pytest.mark.parametrize("rows", [(5,), (1,), (0,)])
def test_another_number_of_boxes_is_an_infinite_error(rows: tuple[int, ...]) -> None:
    # One box would fit any number of others, as arrays are subtracted.
    wanted, got = boxes(*rows), boxes(3)
    for before, after in ((wanted, got), (got, wanted)):
        assert noise_to_signal(before, after) == math.inf
        assert sqnr_db(before[0], after[0]) == -math.inf
        assert np.isinf(per_image_errors(before, after)).all()


def test_boxes_are_no_images() -> None:
    wanted, same, other = boxes(30, 12), boxes(30, 12), boxes(30, 11)
    assert per_image_errors(wanted, same, [2, 1]).tolist() == [0, 0, 0]
    assert per_image_errors(wanted, other, [2, 1]).tolist() == [0, 0, math.inf]
    assert prediction_changes(wanted, other, [2, 1]).tolist() == [0]
    scores = floats(3, 5)
    parts = [scores[:2], scores[2:]]
    beside = [{"y": part, **each} for part, each in zip(parts, wanted, strict=True)]
    worse = [{"y": -part, **each} for part, each in zip(parts, other, strict=True)]
    assert per_image_errors(beside, worse).tolist()[2] == math.inf
    assert np.isfinite(per_image_errors(beside, worse)[:2]).all()
    assert prediction_changes(beside, worse).tolist() == [1, 1, 1]


def test_how_many_numbers_there_are_depends_on_what_is_wanted_alone() -> None:
    wanted = boxes(5, 0, 3)
    for got in (boxes(5, 0, 3, seed=1), boxes(2, 7, 0), boxes(5, 0, 4)):
        assert per_image_errors(wanted, got).size == 9
        assert prediction_changes(wanted, got).size == 8
    for got in (boxes(5, 0, 3, seed=1), boxes(2, 7, 0)):
        assert per_image_errors(wanted, got, [4, 4, 1]).size == 9


def test_scores_of_another_shape_are_other_answers() -> None:
    wanted, got = floats(2, 5), floats(2, 4)
    assert prediction_changes([{"y": wanted}] * 2, [{"y": wanted}, {"y": got}]).tolist() == [
        0,
        0,
        1,
        1,
    ]
    ragged = [{"y": floats(2, 5)}, {"y": floats(2, 7)}]
    assert prediction_changes(ragged, ragged).tolist() == [0] * 4
    assert per_image_errors(ragged, ragged).tolist() == [0] * 4


def test_a_changed_answer_is_another_winner() -> None:
    wanted = [{"scores": np.array([[1.0, 2.0], [3.0, 1.0]])}, {"scores": np.array([[0.0, 9.0]])}]
    got = [{"scores": np.array([[1.0, 1.5], [1.0, 3.0]])}, {"scores": np.array([[0.0, 1.0]])}]
    assert prediction_changes(wanted, got).tolist() == [0.0, 1.0, 0.0]
    maps = [{"maps": np.zeros((2, 3, 4))}]
    assert prediction_changes(maps, maps).tolist() == [0.0]


def test_the_error_of_answers_that_should_all_be_zero_counts_as_it_is() -> None:
    nothing, half = np.zeros((2, 3), np.float32), np.full((2, 3), 0.5, np.float32)
    assert noise_to_signal([{"y": nothing}], [{"y": nothing}]) == 0.0
    assert noise_to_signal([{"y": nothing}], [{"y": half}]) == 1.5
    assert noise_to_signal([{"y": half}], [{"y": half * np.inf}]) == np.inf


@pytest.mark.parametrize("shape", [(), (0, 4), (2, 0), (0,)])
def test_a_single_number_and_an_answer_without_values_are_compared_too(
    shape: tuple[int, ...],
) -> None:
    answer = {"y": np.ones(shape, np.float32)}
    assert not per_image_errors([answer] * 3, [answer] * 3).any()
    assert not prediction_changes([answer] * 3, [answer] * 3).mean()
