"""The errors of layers, over more batches than fit into memory."""

import math

import numpy as np
import onnx_ir as ir
import pytest

from qconvert.core.errors import QConvertError
from qconvert.graph.fp16.convert import convert_to_half
from qconvert.measure.layer_errors import LayerError, measure_layer_errors
from qconvert.quantize.apply_plan import apply_plan
from tests.models import floats, mixed, tiny
from tests.quantize.quantized_models import planned

IMAGES = floats(12, 3, 16, 16)


def quantized() -> ir.Model:
    return apply_plan(mixed(), planned(mixed(), "cpu"))


def split(size: int) -> list[dict[str, np.ndarray]]:
    return [{"image": IMAGES[start : start + size]} for start in range(0, 12, size)]


def by_tensor(reference: ir.Model, model: ir.Model, size: int) -> dict[str, LayerError]:
    layers = measure_layer_errors(reference, model, split(size))
    return {layer.tensor: layer for layer in layers}


def test_layers_are_in_the_order_of_the_network() -> None:
    layers = by_tensor(mixed(), quantized(), 4)
    assert [*layers][:2] == ["image", "a"]
    assert [*layers][-1] == "scores"
    assert layers["image"].op == "input"
    assert (layers["a"].node, layers["a"].op, layers["a"].precision) == ("a", "Clip", "int8")
    for layer in layers.values():
        assert layer.arriving_db is not None
        assert layer.made_db is not None
        assert 0 < layer.arriving_db < 80
    # The first tensor has no incoming error, the last has the errors of all layers.
    assert layers["image"].arriving_db == layers["image"].made_db
    assert (layers["scores"].arriving_db or 0) < (layers["scores"].made_db or 0)


def test_layer_errors_do_not_depend_on_the_batches() -> None:
    at_once, in_parts = (
        measure_layer_errors(mixed(), quantized(), split(size)) for size in (12, 3)
    )
    for a, b in zip(at_once, in_parts, strict=True):
        assert a.arriving_db == pytest.approx(b.arriving_db, abs=1e-3)
        assert a.made_db == pytest.approx(b.made_db, abs=1e-3)
        assert a.cosine == pytest.approx(b.cosine, abs=1e-6)
        assert (a.saturated, a.clipped) == (b.saturated, b.clipped)


def test_network_compared_with_itself_has_no_error() -> None:
    for layer in measure_layer_errors(mixed(), mixed(), split(12)):
        assert (layer.arriving_db, layer.made_db) == (math.inf, math.inf)
        assert layer.cosine == pytest.approx(1.0)
        assert (layer.saturated, layer.clipped) == (None, None)


def test_values_outside_the_range_are_clipped_and_saturate() -> None:
    narrow = planned(mixed(), "cpu")
    tensors = {**narrow.tensors, "a": type(narrow.tensors["a"])(0.0, 0.1)}
    model = apply_plan(mixed(), type(narrow)(**{**vars(narrow), "tensors": tensors}))
    layers = by_tensor(mixed(), model, 12)
    clipped, saturated = layers["a"].clipped, layers["a"].saturated
    assert clipped is not None
    assert saturated is not None
    assert 20 < clipped <= saturated < 60


def test_models_without_a_common_tensor_are_refused() -> None:
    other = tiny()
    for node in other.graph:
        node.outputs[0].name = f"other_{node.outputs[0].name}"
    other.graph.inputs[0].name = "picture"
    with pytest.raises(QConvertError, match="no tensor in common"):
        measure_layer_errors(mixed(), other, split(12))


def test_overflowing_layer_makes_an_infinite_error() -> None:
    loud = mixed(w5=floats(32, 32, 1, 1) * np.float32(1e4))
    halved = convert_to_half(loud, "fp16", {}).model
    layers = by_tensor(loud, halved, 12)
    assert layers["c"].made_db == layers["c"].arriving_db == -math.inf
    assert layers["all"].made_db is not None
    assert layers["all"].made_db > 0
