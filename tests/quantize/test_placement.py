"""Placement: layers whose scales are not representable, and nodes restored to float."""

import pytest

from qconvert.backends.ort import open_cpu
from qconvert.core.scales import Range
from qconvert.quantize.apply_plan import apply_plan
from qconvert.quantize.placement import Selection, keep_representable, restore_float
from qconvert.quantize.plan import RestPrecision
from tests.models import floats, mixed
from tests.quantize.quantized_models import layers, model, planned, scheme

X = "(float[N, 16, 8, 8] x) => (float[] y)"


def left(backend: str, rest: RestPrecision, **ranges: Range) -> dict[str, str]:
    body = "c = Conv (x, w) p = GlobalAveragePool (c) y = Conv (p, v)"
    before = model(body, X, w=(16, 16, 3, 3), v=(16, 16, 1, 1))
    usual = {name: Range(-1.0, 1.0) for name in "xcpy"}
    placed = keep_representable(
        before.graph, layers(before, backend), usual | ranges, scheme(backend), rest
    )
    return {name: layer.left for name, layer in placed.items() if layer.left}


@pytest.mark.parametrize("rest", ["fp32", "fp16", "bf16"])
def test_ordinary_ranges_are_representable(rest: RestPrecision) -> None:
    assert left("tensorrt", rest) == {}


def test_range_beyond_fp16_scales_leaves_the_layer_in_float() -> None:
    wide = left("tensorrt", "fp16", x=Range(-1e7, 1e7))
    assert wide == {"c": "the range of `x` is too wide for a scale in fp16"}
    assert left("tensorrt", "bf16", x=Range(-1e7, 1e7)) == {}


def test_range_below_fp16_scales_leaves_the_layer_in_float() -> None:
    fine = left("tensorrt", "fp16", x=Range(-1e-5, 1e-5))
    assert fine == {"c": "the values of `x` are too small for a scale in fp16"}
    assert left("tensorrt", "fp32", x=Range(-1e-5, 1e-5)) == {}
    assert left("tensorrt", "fp16", x=Range(0.0, 0.0)) == {}


def test_pool_with_too_different_scales_stays_in_float() -> None:
    reasons = left("cpu", "fp32", p=Range(-1e-3, 1e-3))
    assert reasons == {
        "p": "the scales of its input and output differ too much for one integer kernel"
    }


@pytest.mark.parametrize("backend", ["cpu", "tensorrt"])
def test_restoring_a_node_equals_excluding_it(backend: str) -> None:
    network = mixed()
    plan = planned(network, backend)
    restored = restore_float(network, plan, scheme(backend), {"wide"}, "restored")
    excluded = planned(network, backend, Selection(exclude=("wide",)))
    assert restored.layers["wide"].left == "restored"
    others = {name: layer for name, layer in restored.layers.items() if name != "wide"}
    assert others == {name: layer for name, layer in excluded.layers.items() if name != "wide"}


def test_clip_fused_with_a_restored_convolution_is_restored_too() -> None:
    network = mixed()
    restored = restore_float(network, planned(network, "cpu"), scheme("cpu"), {"stem"}, "restored")
    assert restored.layers["a"].left == "the operator before it is left in float"


@pytest.mark.parametrize("backend", ["cpu", "tensorrt"])
def test_restored_plan_has_exactly_the_ranges_it_needs(backend: str) -> None:
    network = mixed()
    plan = planned(network, backend)
    feeds = {"image": floats(2, 3, 16, 16)}
    for name in plan.layers:
        restored = restore_float(network, plan, scheme(backend), {name}, "restored")
        restored_model = apply_plan(network, restored)
        quantized = {
            str(node.inputs[0].name).removesuffix("_float")
            for node in restored_model.graph
            if node.op_type == "QuantizeLinear" and node.inputs[0] is not None
        }
        assert quantized == set(restored.tensors)
        assert open_cpu(restored_model)(feeds)["scores"].shape == (2, 24)


def test_plan_with_every_node_restored_gives_the_float_model() -> None:
    network = mixed()
    plan = planned(network, "cpu")
    restored = restore_float(network, plan, scheme("cpu"), set(plan.layers), "restored")
    assert restored.quantized == 0
    assert not restored.tensors
    assert "QuantizeLinear" not in [node.op_type for node in apply_plan(network, restored).graph]
