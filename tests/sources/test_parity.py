"""Parity: whether the exported ONNX computes what the original does."""

from collections.abc import Callable

import numpy as np
import pytest

from qconvert.core.errors import QConvertError
from qconvert.core.tensors import Tensors
from qconvert.sources import parity

LOGITS = np.array([[1.0, 2.0, 3.0], [3.0, 1.0, 2.0]], np.float32)


def returns(**outputs: np.ndarray) -> Callable[[Tensors], Tensors]:
    return lambda feeds: dict(outputs)


def measure(expected: dict[str, np.ndarray], actual: dict[str, np.ndarray]) -> parity.Parity:
    return parity.measure(returns(**expected), returns(**actual), [{"x": LOGITS}] * 4)


def test_equal_outputs_hold() -> None:
    result = measure({"y": LOGITS}, {"y": LOGITS})
    assert (result.inputs, result.same_top1, result.max_abs) == (8, 8, 0.0)
    parity.require(result, 1e-3)


def test_error_is_relative_to_the_largest_output() -> None:
    result = measure({"y": LOGITS}, {"y": LOGITS + np.float32(0.006)})
    assert result.max_rel == pytest.approx(0.002, rel=1e-3)
    assert result.holds(0.0021)
    assert not result.holds(0.0019)


def test_worst_output_decides() -> None:
    expected = {"a": LOGITS, "b": LOGITS}
    result = measure(expected, {"a": LOGITS, "b": LOGITS * np.float32(1.1)})
    assert result.worst == "b"
    with pytest.raises(QConvertError, match="in `b`"):
        parity.require(result, 1e-3)


def test_different_top1_is_rejected_at_any_tolerance() -> None:
    swapped = LOGITS.copy()
    swapped[0] = [3.0, 2.0, 1.0]
    result = measure({"y": LOGITS}, {"y": swapped})
    assert result.same_top1 == 4
    with pytest.raises(QConvertError, match="top-1 agrees on 4 of 8 inputs, largest error 2"):
        parity.require(result, 10.0)


def test_tie_is_no_different_class() -> None:
    tied = np.array([[2.0, 2.0 - 1e-6, 0.0]], np.float32)
    other = np.array([[2.0 - 1e-6, 2.0, 0.0]], np.float32)
    assert measure({"y": tied}, {"y": other}).same_top1 == 4


def test_different_shapes_nan_and_missing_outputs_are_rejected() -> None:
    assert not measure({"y": LOGITS}, {"y": LOGITS[:, :2]}).holds(1.0)
    assert not measure({"y": LOGITS}, {"y": LOGITS * np.float32("nan")}).holds(1.0)
    assert not measure({"y": LOGITS * np.float32("nan")}, {"y": LOGITS}).holds(1.0)
    assert not measure({"y": LOGITS * 0}, {"y": LOGITS}).holds(1.0)
    with pytest.raises(QConvertError, match="no output `y`"):
        measure({"y": LOGITS}, {"z": LOGITS})


def test_outputs_that_are_not_scores_have_no_top1() -> None:
    image = np.zeros((1, 3, 2, 2), np.float32) + 1
    result = measure({"y": image}, {"y": image})
    assert not result.has_top1
    assert str(result) == "relative error 0.0e+00"


def test_infinite_value_hides_no_difference() -> None:
    """Attention masks have infinities; the values beside them still count."""
    masked = np.array([[-np.inf, 1.0, 2.0]], np.float32)
    assert measure({"y": masked}, {"y": masked}).holds(1e-3)
    result = measure({"y": masked}, {"y": masked + np.float32(1.0)})
    assert result.max_rel == pytest.approx(0.5)
    assert not result.holds(1e-3)


@pytest.mark.parametrize("other", [np.inf, np.nan, 1.0])
def test_infinities_and_nan_must_be_equal(other: float) -> None:
    expected = np.array([[-np.inf, 1.0, 2.0]], np.float32)
    actual = expected.copy()
    actual[0, 0] = other
    assert measure({"y": expected}, {"y": actual}).max_rel == np.inf
    assert measure({"y": actual}, {"y": expected}).max_rel == np.inf


def test_equal_nan_holds() -> None:
    expected = np.array([[np.nan, 1.0, 2.0]], np.float32)
    result = measure({"y": expected}, {"y": expected})
    assert str(result) == "top-1 4/4, relative error 0.0e+00"
    assert result.holds(1e-3)


def test_scalar_outputs_and_outputs_with_more_rows_than_inputs() -> None:
    boxes = np.tile(LOGITS, (3, 1))
    expected: dict[str, np.ndarray] = {"loss": np.array(1.0), "boxes": boxes, "y": LOGITS}
    result = measure(expected, expected)
    assert (result.inputs, result.same_top1, result.rows) == (8, 24, 24)
    swapped = LOGITS[:, ::-1].copy()
    result = measure(expected, {**expected, "y": swapped})
    assert (result.inputs, result.same_top1, result.rows) == (8, 0, 8)


def test_inputs_are_not_counted_as_rows() -> None:
    result = parity.measure(returns(y=LOGITS), returns(y=LOGITS[::-1]), [{"x": LOGITS[:1]}] * 3)
    assert (result.inputs, result.rows) == (3, 6)
    with pytest.raises(QConvertError, match="top-1 agrees on 0 of 6 rows"):
        parity.require(result, 1e-3)


def test_no_input_is_rejected() -> None:
    with pytest.raises(QConvertError, match="no input to compare") as caught:
        parity.measure(returns(y=LOGITS), returns(y=LOGITS), iter(()))
    assert caught.value.hint
