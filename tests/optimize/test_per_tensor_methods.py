"""The range method of a tensor follows the error of the outputs, not that of the tensor."""

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from qconvert.core.scales import Grid, Range
from qconvert.core.tensors import Tensors
from qconvert.graph.passes import infer_shapes
from qconvert.optimize.plan_selection import choose_methods, contested_tensors, relative_error
from tests.models import from_text
from tests.quantize.quantized_models import HEAD

WIDE, NARROW = Range(-100.0, 100.0), Range(-1.0, 1.0)


def net(largest_counts: bool) -> ir.Model:
    """Return a net whose output is the largest value of a tensor, or all others."""
    after = "y = ReduceMax (a)" if largest_counts else "s = Clip (a, low, high) y = Relu (s)"
    limits = {"low": np.array(-1, np.float32), "high": np.array(1, np.float32)}
    text = f"{HEAD}net (float[N, 64] x) => (float[] y) {{ a = Identity (x) {after} }}"
    model = infer_shapes(from_text(text, **({} if largest_counts else limits)))[0]
    for node in model.graph:
        node.name = node.outputs[0].name
    return model


def batches() -> list[Tensors]:
    """Return images whose values lie within 1, but for one in each that is near 100."""
    random = np.random.default_rng(0)
    values = random.uniform(-1, 1, (3, 4, 64)).astype(np.float32)
    values[:, :, 0] = random.uniform(90, 100, (3, 4))
    return [{"x": batch} for batch in values]


def method_of(model: ir.Model, ranges: dict[str, Range]) -> str:
    by_method = {method: {"a": value_range} for method, value_range in ranges.items()}
    return dict(choose_methods(model, by_method, batches(), Grid(8), "fp32"))["a"]


def test_range_is_not_cut_if_the_output_is_the_largest_value() -> None:
    assert method_of(net(largest_counts=True), {"cut": NARROW, "whole": WIDE}) == "whole"


def test_range_is_cut_if_the_output_ignores_the_largest_value() -> None:
    assert method_of(net(largest_counts=False), {"whole": WIDE, "cut": NARROW}) == "cut"


def test_default_stays_unless_another_method_is_clearly_better() -> None:
    similar = {"default": Range(-1.12, 1.12), "other": Range(-1.0, 1.0)}
    assert method_of(net(largest_counts=False), similar) == "default"


def test_tensors_with_the_same_range_from_all_methods_are_not_contested() -> None:
    same = {"default": {"a": WIDE}, "other": {"a": Range(-99.0, 100.0)}}
    assert contested_tensors(net(largest_counts=True), same) == []


@pytest.mark.parametrize("dtype", [np.float32, np.int64])
def test_integer_outputs_have_no_error(dtype: type[np.generic]) -> None:
    reference: dict[str, NDArray[np.generic]] = {"y": np.ones((2, 3), np.int64)}
    assert relative_error(reference, {"y": np.zeros((2, 3), dtype)}) == 0.0


def test_outputs_of_another_shape_have_an_infinite_error() -> None:
    reference = {"y": np.ones((2, 3), np.float32)}
    assert relative_error(reference, {"y": np.ones((4, 3), np.float32)}) == np.inf
