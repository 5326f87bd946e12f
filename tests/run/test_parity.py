"""Parity: the exported ONNX gives the same outputs as the original."""

from collections.abc import Callable

import numpy as np
import pytest

from qconvert.core.errors import QConvertError
from qconvert.core.tensors import Tensors
from qconvert.run.export import Parity, measure_parity, require_parity

LOGITS = np.array([[1.0, 2.0, 3.0], [3.0, 1.0, 2.0]], np.float32)
SWAPPED = np.array([[3.0, 2.0, 1.0], [3.0, 1.0, 2.0]], np.float32)
MASKED = np.array([[-np.inf, 1.0, 2.0]], np.float32)  # as of an attention mask
NAN = np.array([[np.nan, 1.0, 2.0]], np.float32)
IMAGE = np.ones((1, 3, 2, 2), np.float32)


def returns(outputs: Tensors) -> Callable[[Tensors], Tensors]:
    return lambda feeds: dict(outputs)


def measure(expected: Tensors, actual: Tensors) -> Parity:
    return measure_parity(returns(expected), returns(actual), [{"x": LOGITS}] * 4)


@pytest.mark.parametrize(
    ("array", "text"),
    [
        (LOGITS, "top-1 8/8, relative error 0.0e+00"),
        (MASKED, "top-1 4/4, relative error 0.0e+00"),
        (NAN, "top-1 4/4, relative error 0.0e+00"),
        (IMAGE, "relative error 0.0e+00"),
    ],
)
def test_equal_outputs_pass_parity(array: np.ndarray, text: str) -> None:
    result = measure({"y": array}, {"y": array})
    assert str(result) == text
    require_parity(result, 1e-3)


@pytest.mark.parametrize(
    ("expected", "actual", "error"),
    [
        (LOGITS, LOGITS + np.float32(0.006), 0.002),
        (MASKED, MASKED + np.float32(1.0), 0.5),  # the values beside an infinity count
        (LOGITS, LOGITS[:, :2], np.inf),
        (LOGITS, LOGITS * np.float32("nan"), np.inf),
        (LOGITS * np.float32("nan"), LOGITS, np.inf),
        (LOGITS * 0, LOGITS, np.inf),
        (MASKED, -MASKED, np.inf),
        (MASKED, NAN, np.inf),
        (NAN, MASKED, np.inf),
        (MASKED, np.ones_like(MASKED), np.inf),
        (np.ones_like(MASKED), MASKED, np.inf),
    ],
)
def test_error_is_relative_to_the_largest_finite_output(
    expected: np.ndarray, actual: np.ndarray, error: float
) -> None:
    result = measure({"y": expected}, {"y": actual})
    assert result.max_rel == pytest.approx(error, rel=1e-3)
    with pytest.raises(QConvertError, match="differ from PyTorch"):
        require_parity(result, min(0.9 * error, 1.0))


def test_parity_is_decided_by_worst_output() -> None:
    result = measure({"a": LOGITS, "b": LOGITS}, {"a": LOGITS, "b": LOGITS * np.float32(1.1)})
    assert result.worst == "b"
    with pytest.raises(QConvertError, match="in `b`"):
        require_parity(result, 1e-3)


def test_different_top1_is_rejected_at_any_tolerance() -> None:
    result = measure({"y": LOGITS}, {"y": SWAPPED})
    assert result.same_top1 == 4
    with pytest.raises(QConvertError, match="top-1 agrees on 4 of 8 inputs, largest error 2"):
        require_parity(result, 10.0)


def test_tied_scores_count_as_same_class() -> None:
    tied = np.array([[2.0, 2.0 - 1e-6, 0.0]], np.float32)
    assert measure({"y": tied}, {"y": tied[:, [1, 0, 2]]}).same_top1 == 4


def test_parity_rows_and_inputs_are_counted_separately() -> None:
    """The output with the lowest share of equal classes counts; scalars have none."""
    expected: Tensors = {"loss": np.array(1.0), "boxes": np.tile(LOGITS, (3, 1)), "y": LOGITS}
    result = measure(expected, expected)
    assert (result.inputs, result.same_top1, result.rows) == (8, 24, 24)
    result = measure(expected, {**expected, "y": LOGITS[:, ::-1]})
    assert (result.inputs, result.same_top1, result.rows) == (8, 0, 8)
    swapped = returns({"y": LOGITS[::-1]})
    result = measure_parity(returns({"y": LOGITS}), swapped, [{"x": LOGITS[:1]}] * 3)
    assert (result.inputs, result.rows) == (3, 6)
    with pytest.raises(QConvertError, match="top-1 agrees on 0 of 6 rows"):
        require_parity(result, 1e-3)


def test_missing_outputs_and_inputs_are_rejected() -> None:
    with pytest.raises(QConvertError, match="no output `y`"):
        measure({"y": LOGITS}, {"z": LOGITS})
    with pytest.raises(QConvertError, match="no inputs on which to compare") as caught:
        measure_parity(returns({"y": LOGITS}), returns({"y": LOGITS}), iter(()))
    assert caught.value.hint
