"""Whether two forms of one network say the same."""

from collections.abc import Callable

import numpy as np
import pytest

from qconvert.core.errors import QConvertError
from qconvert.core.tensors import Tensors
from qconvert.sources import parity

LOGITS = np.array([[1.0, 2.0, 3.0], [3.0, 1.0, 2.0]], np.float32)


def says(**outputs: np.ndarray) -> Callable[[Tensors], Tensors]:
    return lambda feeds: dict(outputs)


def measured(wanted: dict[str, np.ndarray], got: dict[str, np.ndarray]) -> parity.Parity:
    return parity.measure(says(**wanted), says(**got), [{"x": LOGITS}] * 4)


def test_equal_outputs_hold() -> None:
    found = measured({"y": LOGITS}, {"y": LOGITS})
    assert (found.inputs, found.same_top1, found.max_abs) == (8, 8, 0.0)
    parity.require(found, 1e-3)


def test_the_error_is_relative_to_the_largest_output() -> None:
    found = measured({"y": LOGITS}, {"y": LOGITS + np.float32(0.006)})
    assert found.max_rel == pytest.approx(0.002, rel=1e-3)
    assert found.holds(0.0021)
    assert not found.holds(0.0019)


def test_the_worst_output_decides() -> None:
    wanted = {"a": LOGITS, "b": LOGITS}
    found = measured(wanted, {"a": LOGITS, "b": LOGITS * np.float32(1.1)})
    assert found.worst == "b"
    with pytest.raises(QConvertError, match="in `b`"):
        parity.require(found, 1e-3)


def test_another_top1_is_refused_whatever_the_tolerance() -> None:
    swapped = LOGITS.copy()
    swapped[0] = [3.0, 2.0, 1.0]
    found = measured({"y": LOGITS}, {"y": swapped})
    assert found.same_top1 == 4
    with pytest.raises(QConvertError, match="top-1 agrees on 4 of 8 inputs, largest difference 2"):
        parity.require(found, 10.0)


def test_a_tie_is_not_a_different_answer() -> None:
    tied = np.array([[2.0, 2.0 - 1e-6, 0.0]], np.float32)
    other = np.array([[2.0 - 1e-6, 2.0, 0.0]], np.float32)
    assert measured({"y": tied}, {"y": other}).same_top1 == 4


def test_shapes_nan_and_missing_outputs_never_pass() -> None:
    assert not measured({"y": LOGITS}, {"y": LOGITS[:, :2]}).holds(1.0)
    assert not measured({"y": LOGITS}, {"y": LOGITS * np.float32("nan")}).holds(1.0)
    assert not measured({"y": LOGITS * np.float32("nan")}, {"y": LOGITS}).holds(1.0)
    assert not measured({"y": LOGITS * 0}, {"y": LOGITS}).holds(1.0)
    with pytest.raises(QConvertError, match="no output `y`"):
        measured({"y": LOGITS}, {"z": LOGITS})


def test_outputs_that_are_no_scores_have_no_top1() -> None:
    image = np.zeros((1, 3, 2, 2), np.float32) + 1
    found = measured({"y": image}, {"y": image})
    assert not found.has_top1
    assert str(found) == "relative error 0.0e+00"


def test_an_infinite_value_hides_no_difference() -> None:
    """A mask of infinities is usual in attention; the values beside it count as ever."""
    masked = np.array([[-np.inf, 1.0, 2.0]], np.float32)
    assert measured({"y": masked}, {"y": masked}).holds(1e-3)
    found = measured({"y": masked}, {"y": masked + np.float32(1.0)})
    assert found.max_rel == pytest.approx(0.5)
    assert not found.holds(1e-3)


@pytest.mark.parametrize("other", [np.inf, np.nan, 1.0])
def test_values_that_are_not_finite_must_be_the_very_same(other: float) -> None:
    wanted = np.array([[-np.inf, 1.0, 2.0]], np.float32)
    got = wanted.copy()
    got[0, 0] = other
    assert measured({"y": wanted}, {"y": got}).max_rel == np.inf
    assert measured({"y": got}, {"y": wanted}).max_rel == np.inf


def test_the_same_nan_on_both_sides_holds() -> None:
    wanted = np.array([[np.nan, 1.0, 2.0]], np.float32)
    found = measured({"y": wanted}, {"y": wanted})
    assert str(found) == "top-1 4/4, relative error 0.0e+00"
    assert found.holds(1e-3)


def test_outputs_may_be_numbers_or_have_rows_of_their_own() -> None:
    boxes = np.tile(LOGITS, (3, 1))
    wanted: dict[str, np.ndarray] = {"loss": np.array(1.0), "boxes": boxes, "y": LOGITS}
    found = measured(wanted, wanted)
    assert (found.inputs, found.same_top1, found.rows) == (8, 24, 24)
    swapped = LOGITS[:, ::-1].copy()
    found = measured(wanted, {**wanted, "y": swapped})
    assert (found.inputs, found.same_top1, found.rows) == (8, 0, 8)


def test_inputs_are_counted_apart_from_rows() -> None:
    found = parity.measure(says(y=LOGITS), says(y=LOGITS[::-1]), [{"x": LOGITS[:1]}] * 3)
    assert (found.inputs, found.rows) == (3, 6)
    with pytest.raises(QConvertError, match="top-1 agrees on 0 of 6 rows"):
        parity.require(found, 1e-3)


def test_no_input_at_all_is_told() -> None:
    with pytest.raises(QConvertError, match="no input to compare") as caught:
        parity.measure(says(y=LOGITS), says(y=LOGITS), iter(()))
    assert caught.value.hint
