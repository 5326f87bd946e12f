"""Boxes are read from outputs by the decoder that fits them, and compared with those of FP32."""

import numpy as np
import pytest

from qconvert.core.scales import FloatArray
from qconvert.core.tensors import Tensors, TensorSpec
from qconvert.optimize.box_error import MIN_BOXES, BoxReader, find_box_reader

SIZE = 320
FEEDS: Tensors = {"image": np.zeros((2, 3, SIZE, SIZE), np.float32)}
SPECS = (TensorSpec("image", np.dtype(np.float32), ("N", 3, SIZE, SIZE)),)
COUNTS = [2]


def head(objects: int = MIN_BOXES // 2, score: float = 0.8) -> FloatArray:
    """Return a YOLO head of three classes with so many objects in each of two pictures."""
    rows = np.zeros((2, 7, 2100), np.float32)
    rows[:, 2:4] = 30.0
    for number in range(objects):
        rows[:, 0:2, number] = 20.0 + 35.0 * number
        rows[:, 4, number] = score
    return rows


def reader_of(outputs: Tensors) -> BoxReader:
    reader = find_box_reader(SPECS, FEEDS, outputs)
    assert reader is not None
    return reader


def errors(changed: FloatArray) -> list[float]:
    reference = {"output": head()}
    result = reader_of(reference).errors([reference], [{"output": changed}], COUNTS)
    assert result is not None
    return [round(float(error), 6) for error in result]


def test_same_boxes_have_no_error() -> None:
    assert errors(head()) == [0.0, 0.0]


def test_lost_box_counts_for_its_picture() -> None:
    changed = head()
    changed[1, 4, 0] = 0.0
    assert errors(changed) == [0.0, 0.125]
    assert errors(head() * 0) == [0.5, 0.5]


def test_box_that_moves_within_the_overlap_counts_a_little() -> None:
    changed = head()
    changed[1, 2, 0] = 27.0  # an IoU of .9, which reaches .8 of the thresholds from .5 to 1
    assert errors(changed) == pytest.approx([0.0, 0.05], abs=1e-4)


def test_lower_score_counts_a_little() -> None:
    changed = head()
    changed[1, 4, 0] = 0.6
    lost = (0.8**2 - 0.6**2) / 0.8**2 / 8
    assert errors(changed) == pytest.approx([0.0, lost], abs=1e-4)


def test_new_box_counts_like_a_lost_one() -> None:
    assert errors(head(MIN_BOXES // 2 + 1)) == [0.125, 0.125]


def test_too_few_boxes_tell_nothing() -> None:
    reference = {"output": head()}
    few = {"output": head(1)}
    assert reader_of(reference).errors([few], [reference], COUNTS) is None


def test_outputs_that_are_no_boxes_have_no_reader() -> None:
    logits = {"logits": np.zeros((2, 21, SIZE, SIZE), np.float32)}
    assert find_box_reader(SPECS, FEEDS, logits) is None
    assert find_box_reader(SPECS, FEEDS, {"features": np.zeros((2, 5), np.float32)}) is None
    two_inputs = (*SPECS, TensorSpec("size", np.dtype(np.float32), ("N", 2)))
    assert find_box_reader(two_inputs, FEEDS, {"output": head()}) is None
