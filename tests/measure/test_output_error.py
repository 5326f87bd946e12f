"""Output errors follow their textbook definitions, and are infinite for broken outputs."""

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
    sqnr_from_powers,
)
from tests.models import floats

Floats = NDArray[np.floating]


@st.composite
def score_pairs(draw: st.DrawFn) -> tuple[Floats, Floats]:
    """Draw two arrays of scores of the same shape, with a random difference."""
    shape = (draw(st.integers(1, 5)), draw(st.integers(2, 9)))
    random = np.random.default_rng(draw(st.integers(0, 999)))
    reference = random.standard_normal(shape) * draw(st.sampled_from([0.1, 3, 40]))
    noise = random.standard_normal(shape) * draw(st.sampled_from([1e-3, 0.5, 20]))
    return reference.astype(np.float32), (reference + noise).astype(np.float32)


def log_softmax(row: Sequence[float]) -> list[float]:
    total = math.log(sum(math.exp(score - max(row)) for score in row))
    return [score - max(row) - total for score in row]


def defined_divergence(reference: Floats, outputs: Floats) -> list[float]:
    """Compute the divergence of each row number by number."""
    rows: list[float] = []
    for before, after in zip(reference.tolist(), outputs.tolist(), strict=True):
        pairs = zip(log_softmax(before), log_softmax(after), strict=True)
        rows.append(sum(math.exp(p) * (p - q) for p, q in pairs))
    return rows


def probabilities(table: Floats) -> NDArray[np.float32]:
    rows = [[math.exp(log) for log in log_softmax(row)] for row in table.tolist()]
    return np.array(rows, dtype=np.float32)


def errors(reference: object, output: object) -> list[float]:
    """Return the errors of a single output of one batch."""
    per_image = per_image_errors([{"y": np.asarray(reference)}], [{"y": np.asarray(output)}])
    return [float(error) for error in per_image]


@settings(deadline=None)
@given(score_pairs())
def test_divergence_follows_its_definition(pair: tuple[Floats, Floats]) -> None:
    reference, outputs = pair
    divergence = kl_divergence(reference, outputs).tolist()
    assert divergence == pytest.approx(defined_divergence(reference, outputs), rel=1e-9, abs=1e-12)
    assert errors(reference, outputs) == divergence


@settings(deadline=None)
@given(score_pairs())
def test_divergence_is_zero_only_for_equal_scores(pair: tuple[Floats, Floats]) -> None:
    reference, outputs = pair
    assert not kl_divergence(reference, reference).any()
    for divergence, defined in zip(
        kl_divergence(reference, outputs), defined_divergence(reference, outputs), strict=True
    ):
        # Two rows with one certain class differ in the last bits only.
        assert divergence > (0 if defined > 1e-9 else -1e-12)


@settings(deadline=None)
@given(score_pairs(), st.floats(-50, 50), st.floats(-50, 50))
def test_divergence_does_not_change_when_scores_are_shifted(
    pair: tuple[Floats, Floats], first: float, second: float
) -> None:
    reference, outputs = (scores.astype(np.float64) for scores in pair)
    shifts = np.linspace(first, second, len(reference))[:, np.newaxis]
    moved = kl_divergence(reference + shifts, outputs - shifts)
    np.testing.assert_allclose(moved, kl_divergence(reference, outputs), rtol=1e-9, atol=1e-12)


def test_divergence_of_large_scores_is_finite() -> None:
    reference = np.array([[3e4, 0.0, -3e4], [0.0, 0.0, 0.0], [-5e3, -5e3, -6e3]], dtype=np.float32)
    outputs = np.array([[3e4, 0.0, -3e4], [1e3, 0.0, 0.0], [-5e3, -6e3, -5e3]], dtype=np.float32)
    assert errors(reference, outputs) == pytest.approx(
        [0, 2000 / 3 - math.log(3), 500 - math.log(2)], 1e-2
    )


def test_divergence_of_probabilities_is_that_of_their_scores() -> None:
    reference, outputs = floats(20, 10), floats(20, 10) + 0.3 * floats(20, 10, seed=1)
    before, after = probabilities(reference), probabilities(outputs)
    np.testing.assert_allclose(
        kl_divergence(before, after), kl_divergence(reference, outputs), rtol=1e-3
    )
    assert not kl_divergence(before, before).any()


def test_divergence_of_zero_probability_is_large_and_finite() -> None:
    sure, unsure = np.array([[1.0, 0.0, 0.0]]), np.array([[0.5, 0.5, 0.0]])
    assert kl_divergence(sure, unsure).tolist() == pytest.approx([math.log(2)])
    assert 5 < kl_divergence(unsure, sure)[0] < 20


@pytest.mark.parametrize("levels", [255, 127])
def test_quantized_probabilities_are_still_probabilities(levels: int) -> None:
    reference = probabilities(floats(30, 10))
    outputs = np.rint(reference * levels).astype(np.float32) / levels
    assert not np.allclose(outputs.sum(axis=1), 1.0, atol=1e-3)
    assert 0 < kl_divergence(reference, outputs).mean() < 0.01


def test_broken_row_leaves_the_probabilities_of_other_rows() -> None:
    reference = probabilities(floats(3, 5))
    outputs = reference.copy()
    outputs[1, 0] = np.nan
    assert errors(reference, outputs) == [0, math.inf, 0]


@pytest.mark.parametrize("shape", [(9, 5), (9, 1), (9,), (9, 2, 3)])
def test_error_of_an_image_does_not_depend_on_its_batch(shape: tuple[int, ...]) -> None:
    reference, outputs = floats(*shape), floats(*shape, seed=1)
    outputs[:2] = reference[:2]
    parts = [slice(0, 4), slice(4, 8), slice(8, 9)]
    split = per_image_errors(
        [{"y": reference[part]} for part in parts], [{"y": outputs[part]} for part in parts]
    )
    assert split.tolist() == errors(reference, outputs)
    assert (split > 0).tolist() == [False] * 2 + [True] * 7
    reverse = errors(reference[::-1], outputs[::-1])
    assert reverse == pytest.approx(split.tolist()[::-1])


@pytest.mark.parametrize("shape", [(4, 1, 5, 5), (4, 1), (4,), (4, 1, 2)])
def test_error_of_a_map_is_relative_to_the_mean_square_of_all_images(
    shape: tuple[int, ...],
) -> None:
    reference, outputs = floats(*shape), floats(*shape, seed=1)
    reference[3] *= 100
    squares = [sum(x**2 for x in image.ravel().tolist()) for image in reference]
    error_powers = [sum(x**2 for x in image.ravel().tolist()) for image in reference - outputs]
    defined = pytest.approx([power / (sum(squares) / 4) for power in error_powers], rel=1e-5)
    assert errors(reference, outputs) == defined
    assert errors(reference * 1000, outputs * 1000) == defined
    assert errors(reference, reference) == [0] * 4


def test_error_of_a_zero_map_is_absolute() -> None:
    zeros = np.zeros((2, 1, 4, 4), dtype=np.float32)
    wrong = zeros.copy()
    wrong[1, 0, 2, 1:3] = -0.5
    assert errors(zeros, zeros) == [0, 0]
    assert errors(zeros, wrong) == [0, 0.5]


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.bool_])
def test_error_of_integers_is_the_share_that_changed(dtype: type[np.generic]) -> None:
    reference = np.array([[0, 1, 1], [0, 0, 1], [1, 1, 1]]).astype(dtype)
    outputs = np.array([[0, 1, 0], [0, 0, 1], [0, 0, 0]]).astype(dtype)
    assert errors(reference, outputs) == pytest.approx([1 / 3, 0, 1])
    assert errors(reference[:, 0], outputs[:, 0]) == [0, 0, 1]


@pytest.mark.parametrize("shape", [(3, 5), (3, 1, 2, 2), (3, 1), (3,)])
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_error_is_infinite_only_for_images_with_outputs_that_are_not_finite(
    shape: tuple[int, ...], wrong: float
) -> None:
    reference, outputs = floats(*shape), floats(*shape)
    outputs.reshape(3, -1)[1, 0] = wrong
    assert errors(reference, outputs) == [0, math.inf, 0]
    other = {"x": np.zeros(3)}
    per_image = per_image_errors([{**other, "y": reference}], [{**other, "y": outputs}])
    assert per_image.tolist() == [0, math.inf, 0]


@pytest.mark.parametrize("shape", [(3, 5), (3, 1, 2, 2)])
def test_reference_that_is_not_finite_gives_no_nan(shape: tuple[int, ...]) -> None:
    reference = floats(*shape)
    reference[1, 0] = -np.inf
    assert not np.isnan(errors(reference, floats(*shape, seed=1))).any()


def test_outputs_have_equal_weight_in_image_error() -> None:
    reference = {"scores": floats(4, 5), "map": floats(4, 2, 3), "place": np.array([1, 2, 3, 4])}
    outputs = {
        "place": np.array([1, 2, 3, 5]),
        "scores": floats(4, 5, seed=1),
        "map": floats(4, 2, 3),
    }
    per_output = [errors(reference[name], outputs[name]) for name in reference]
    assert per_output[1:] == [[0, 0, 0, 0], [0, 0, 0, 1]]
    defined = [sum(image) / 3 for image in zip(*per_output, strict=True)]
    assert per_image_errors([reference], [outputs]).tolist() == pytest.approx(defined)


def test_output_without_a_row_per_image_is_compared() -> None:
    anchors = {"anchors": floats(7, 2)}
    reference, outputs = floats(3, 5), floats(3, 5, seed=1)
    per_image = per_image_errors([{"y": reference, **anchors}], [{"y": outputs, **anchors}])
    assert per_image.tolist() == pytest.approx([error / 2 for error in errors(reference, outputs)])


def boxes(*rows: int, seed: int = 0) -> list[dict[str, Floats]]:
    """Return batches with these numbers of boxes."""
    return [{"boxes": floats(count, 4, seed=seed)} for count in rows]


@pytest.mark.parametrize("rows", [(5,), (1,), (0,)])
def test_different_number_of_boxes_is_an_infinite_error(rows: tuple[int, ...]) -> None:
    # A single box would broadcast against any number of boxes.
    reference, outputs = boxes(*rows), boxes(3)
    for before, after in ((reference, outputs), (outputs, reference)):
        assert noise_to_signal(before, after) == math.inf
        assert sqnr_db(before[0], after[0]) == -math.inf
        assert np.isinf(per_image_errors(before, after)).all()


def test_boxes_are_not_counted_as_images() -> None:
    reference, same, other = boxes(30, 12), boxes(30, 12), boxes(30, 11)
    assert per_image_errors(reference, same, [2, 1]).tolist() == [0, 0, 0]
    assert per_image_errors(reference, other, [2, 1]).tolist() == [0, 0, math.inf]
    assert prediction_changes(reference, other, [2, 1]).tolist() == [0]
    scores = floats(3, 5)
    parts = [scores[:2], scores[2:]]
    before = [{"y": part, **batch} for part, batch in zip(parts, reference, strict=True)]
    after = [{"y": -part, **batch} for part, batch in zip(parts, other, strict=True)]
    assert per_image_errors(before, after).tolist()[2] == math.inf
    assert np.isfinite(per_image_errors(before, after)[:2]).all()
    assert prediction_changes(before, after).tolist() == [1, 1, 1]


def test_output_error_count_depends_on_reference_alone() -> None:
    reference = boxes(5, 0, 3)
    for outputs in (boxes(5, 0, 3, seed=1), boxes(2, 7, 0), boxes(5, 0, 4)):
        assert per_image_errors(reference, outputs).size == 9
        assert prediction_changes(reference, outputs).size == 8
    for outputs in (boxes(5, 0, 3, seed=1), boxes(2, 7, 0)):
        assert per_image_errors(reference, outputs, [4, 4, 1]).size == 9


def test_scores_of_another_shape_count_as_changed() -> None:
    reference, outputs = floats(2, 5), floats(2, 4)
    assert prediction_changes(
        [{"y": reference}] * 2, [{"y": reference}, {"y": outputs}]
    ).tolist() == [0, 0, 1, 1]
    ragged = [{"y": floats(2, 5)}, {"y": floats(2, 7)}]
    assert prediction_changes(ragged, ragged).tolist() == [0] * 4
    assert per_image_errors(ragged, ragged).tolist() == [0] * 4


def test_changed_prediction_is_another_top_class() -> None:
    reference = [{"scores": np.array([[1.0, 2.0], [3.0, 1.0]])}, {"scores": np.array([[0.0, 9.0]])}]
    outputs = [{"scores": np.array([[1.0, 1.5], [1.0, 3.0]])}, {"scores": np.array([[0.0, 1.0]])}]
    assert prediction_changes(reference, outputs).tolist() == [0.0, 1.0, 0.0]
    maps = [{"maps": np.zeros((2, 3, 4))}]
    assert prediction_changes(maps, maps).tolist() == [0.0]


def test_noise_to_signal_of_a_zero_reference_is_absolute() -> None:
    zeros, half = np.zeros((2, 3), np.float32), np.full((2, 3), 0.5, np.float32)
    assert noise_to_signal([{"y": zeros}], [{"y": zeros}]) == 0.0
    assert noise_to_signal([{"y": zeros}], [{"y": half}]) == 1.5
    assert noise_to_signal([{"y": half}], [{"y": half * np.inf}]) == np.inf


def test_integer_outputs_have_no_noise() -> None:
    ones, zeros = np.ones((2, 3), np.int64), np.zeros((2, 3), np.float32)
    assert noise_to_signal([{"y": ones}], [{"y": zeros}]) == 0.0


@pytest.mark.parametrize("shape", [(), (0, 4), (2, 0), (0,)])
def test_scalar_and_empty_outputs_are_compared(shape: tuple[int, ...]) -> None:
    output = {"y": np.ones(shape, np.float32)}
    assert not per_image_errors([output] * 3, [output] * 3).any()
    assert not prediction_changes([output] * 3, [output] * 3).mean()


@pytest.mark.parametrize(
    ("signal", "error", "sqnr"),
    [
        (100.0, 1.0, pytest.approx(20.0)),
        (1.0, 0.0, math.inf),
        (1.0, math.nan, -math.inf),
        (1.0, math.inf, -math.inf),
        (math.nan, 1.0, None),
        (math.inf, math.inf, None),
        (0.0, 1.0, None),
    ],
)
def test_sqnr_is_ten_times_the_logarithm_of_the_ratio_of_powers(
    signal: float, error: float, sqnr: object
) -> None:
    assert sqnr_from_powers(signal, error) == sqnr
