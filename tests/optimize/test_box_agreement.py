"""Boxes are read from outputs by the decoder that fits them, and compared with those of FP32."""

import numpy as np

from qconvert.core.scales import FloatArray
from qconvert.core.tensors import Tensors, TensorSpec
from qconvert.optimize.box_agreement import find_box_reader

SIZE = 320
FEEDS: Tensors = {"image": np.zeros((2, 3, SIZE, SIZE), np.float32)}
SPECS = (TensorSpec("image", np.dtype(np.float32), ("N", 3, SIZE, SIZE)),)


def head() -> FloatArray:
    """Return a YOLO head of three classes with one object in each of two pictures."""
    rows = np.zeros((2, 7, 2100), np.float32)
    rows[:, :4] = 100.0
    rows[0, 4, 10] = rows[1, 6, 20] = 0.9
    return rows


def test_lost_box_lowers_the_agreement() -> None:
    reference = {"output": head()}
    reader = find_box_reader(SPECS, FEEDS, reference)
    assert reader is not None
    assert reader.agreement([reference], [reference]) == 1.0
    lost = head()
    lost[1, 6, 20] = 0.1
    assert reader.agreement([reference], [{"output": lost}]) == 2 / 3


def test_agreement_without_boxes_is_unknown() -> None:
    reference = {"output": head()}
    reader = find_box_reader(SPECS, FEEDS, reference)
    empty = {"output": head() * 0}
    assert reader is not None
    assert reader.agreement([empty], [empty]) is None


def test_outputs_that_are_no_boxes_have_no_reader() -> None:
    logits = {"logits": np.zeros((2, 21, SIZE, SIZE), np.float32)}
    assert find_box_reader(SPECS, FEEDS, logits) is None
    assert find_box_reader(SPECS, FEEDS, {"features": np.zeros((2, 5), np.float32)}) is None
    two_inputs = (*SPECS, TensorSpec("size", np.dtype(np.float32), ("N", 2)))
    assert find_box_reader(two_inputs, FEEDS, {"output": head()}) is None
