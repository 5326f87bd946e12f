"""The errors of layers, over batches that need not fit into memory together."""

import math

import numpy as np
import onnx_ir as ir
import pytest

from qconvert.core.errors import QConvertError
from qconvert.graph.fp16.convert import convert_to_half
from qconvert.measure.layer_errors import decibels, measure_layer_errors
from qconvert.quantize.apply_plan import apply_plan
from tests.models import floats, mixed, tiny
from tests.quantize.quantized_models import planned

IMAGES = floats(12, 3, 16, 16)


def quantized() -> ir.Model:
    return apply_plan(mixed(), planned(mixed(), "cpu"))


def split(size: int) -> list[dict[str, np.ndarray]]:
    return [{"image": IMAGES[start : start + size]} for start in range(0, 12, size)]


def test_errors_are_told_in_the_order_of_the_network() -> None:
    layers = {each.tensor: each for each in measure_layer_errors(mixed(), quantized(), split(4))}
    assert [*layers][:2] == ["image", "a"]
    assert [*layers][-1] == "scores"
    assert layers["image"].op == "input"
    assert (layers["a"].node, layers["a"].op, layers["a"].precision) == ("a", "Clip", "int8")
    for each in layers.values():
        assert each.arriving_db is not None
        assert each.made_db is not None
        assert 0 < each.arriving_db < 80
    # The first tensor has nothing before it, the last carries the errors of all.
    assert layers["image"].arriving_db == layers["image"].made_db
    assert (layers["scores"].arriving_db or 0) < (layers["scores"].made_db or 0)


def test_how_images_are_split_changes_nothing_but_the_last_bits() -> None:
    one, many = (measure_layer_errors(mixed(), quantized(), split(size)) for size in (12, 3))
    for a, b in zip(one, many, strict=True):
        assert a.arriving_db == pytest.approx(b.arriving_db, abs=1e-3)
        assert a.made_db == pytest.approx(b.made_db, abs=1e-3)
        assert a.cosine == pytest.approx(b.cosine, abs=1e-6)
        assert (a.saturated, a.clipped) == (b.saturated, b.clipped)


def test_a_network_held_against_itself_has_no_error() -> None:
    for each in measure_layer_errors(mixed(), mixed(), split(12)):
        assert (each.arriving_db, each.made_db) == (math.inf, math.inf)
        assert each.cosine == pytest.approx(1.0)
        assert (each.saturated, each.clipped) == (None, None)


def test_values_outside_of_the_range_are_clipped_and_saturate() -> None:
    narrow = planned(mixed(), "cpu")
    tensors = {**narrow.tensors, "a": type(narrow.tensors["a"])(0.0, 0.1)}
    model = apply_plan(mixed(), type(narrow)(**{**vars(narrow), "tensors": tensors}))
    layers = {each.tensor: each for each in measure_layer_errors(mixed(), model, split(12))}
    clipped, saturated = layers["a"].clipped, layers["a"].saturated
    assert clipped is not None
    assert saturated is not None
    assert 20 < clipped <= saturated < 60


def test_models_of_different_making_are_refused() -> None:
    other = tiny()
    for node in other.graph:
        node.outputs[0].name = f"other_{node.outputs[0].name}"
    other.graph.inputs[0].name = "picture"
    with pytest.raises(QConvertError, match="no tensor in common"):
        measure_layer_errors(mixed(), other, split(12))


def test_what_is_not_finite_tells_nothing() -> None:
    assert decibels(math.nan, 1.0) is None
    assert decibels(math.inf, math.inf) is None
    assert decibels(0.0, 1.0) is None


@pytest.mark.parametrize("error", [math.nan, math.inf])
def test_an_error_that_is_not_finite_is_an_infinite_one(error: float) -> None:
    assert decibels(1.0, error) == -math.inf


def test_a_layer_that_overflows_makes_an_infinite_error() -> None:
    loud = mixed(w5=floats(32, 32, 1, 1) * np.float32(1e4))
    halved = convert_to_half(loud, "fp16", {}).model
    layers = {each.tensor: each for each in measure_layer_errors(loud, halved, split(12))}
    assert layers["c"].made_db == layers["c"].arriving_db == -math.inf
    assert layers["all"].made_db is not None
    assert layers["all"].made_db > 0
    assert decibels(100.0, 1.0) == pytest.approx(20.0)
