"""The range of a tensor follows what its rounding does to the answers, not to the tensor."""

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from qconvert.backends.ort import open_cpu
from qconvert.core.scales import Grid, Range
from qconvert.core.tensors import Tensors
from qconvert.graph.simplify import infer_shapes
from qconvert.optimize import per_tensor_methods
from qconvert.optimize.per_tensor_methods import ProbeSet, QuantizerSpec, choose_methods
from tests.models import from_text
from tests.quantize.quantized_models import HEAD

ROUNDING = QuantizerSpec(Grid(8), "fp32")
WIDE, NARROW = Range(-100.0, 100.0), Range(-1.0, 1.0)


def net(largest_counts: bool) -> ir.Model:
    """Return a net whose answer is the largest value of a tensor, or all others."""
    after = "y = ReduceMax (a)" if largest_counts else "s = Clip (a, low, high) y = Relu (s)"
    limits = {"low": np.array(-1, np.float32), "high": np.array(1, np.float32)}
    text = f"{HEAD}net (float[N, 64] x) => (float[] y) {{ a = Identity (x) {after} }}"
    model = infer_shapes(from_text(text, **({} if largest_counts else limits)))[0]
    for node in model.graph:
        node.name = node.outputs[0].name
    return model


def parts(count: int = 3) -> list[Tensors]:
    """Return images whose values lie within 1, but for one in each that is near 100."""
    random = np.random.default_rng(0)
    values = random.uniform(-1, 1, (count, 4, 64)).astype(np.float32)
    values[:, :, 0] = random.uniform(90, 100, (count, 4))
    return [{"x": each} for each in values]


def chosen(model: ir.Model, ranges: dict[str, Range]) -> str:
    given = {method: {"a": each} for method, each in ranges.items()}
    return dict(choose_methods(model, given, ROUNDING, ProbeSet(parts(), open_cpu)))["a"]


def test_where_the_largest_value_decides_nothing_of_it_is_cut() -> None:
    assert chosen(net(largest_counts=True), {"cut": NARROW, "whole": WIDE}) == "whole"


def test_where_nobody_cares_for_the_largest_value_the_rest_gets_all_integers() -> None:
    assert chosen(net(largest_counts=False), {"whole": WIDE, "cut": NARROW}) == "cut"


def test_the_usual_method_stays_unless_another_is_clearly_better() -> None:
    little_better = {"usual": Range(-1.12, 1.12), "other": Range(-1.0, 1.0)}
    assert chosen(net(largest_counts=False), little_better) == "usual"


def test_tensors_for_which_all_methods_have_the_same_range_are_not_tried() -> None:
    model = net(largest_counts=True)
    same = {"usual": {"a": WIDE}, "other": {"a": Range(-99.0, 100.0)}}
    assert per_tensor_methods.contested_tensors(model, same) == []


@pytest.mark.parametrize("kind", [np.float32, np.int64])
def test_answers_that_are_no_numbers_decide_nothing(kind: type[np.generic]) -> None:
    wanted: dict[str, NDArray[np.generic]] = {"y": np.ones((2, 3), np.int64)}
    assert per_tensor_methods._squared_error(wanted, {"y": np.zeros((2, 3), kind)}) == 0.0


def test_answers_of_another_size_are_as_far_off_as_can_be() -> None:
    wanted = {"y": np.ones((2, 3), np.float32)}
    assert per_tensor_methods._squared_error(wanted, {"y": np.ones((4, 3), np.float32)}) == np.inf
