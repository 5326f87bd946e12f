"""Blocks put back into float: nothing dangles, and the plan still runs."""

import pytest

from qconvert.backends.ort import open_cpu
from qconvert.quantize.apply_plan import apply_plan
from qconvert.quantize.placement import restore_float
from qconvert.quantize.selection import Selection
from tests.models import floats, mixed
from tests.quantize.quantized_models import planned, scheme


@pytest.mark.parametrize("backend", ["cpu", "tensorrt"])
def test_restoring_a_node_equals_excluding_it(backend: str) -> None:
    model = mixed()
    plan = planned(model, backend)
    restored = restore_float(model, plan, scheme(backend), {"wide"}, "restored")
    excluded = planned(model, backend, Selection(exclude=("wide",)))
    assert restored.layers["wide"].left == "restored"
    others = {name: layer for name, layer in restored.layers.items() if name != "wide"}
    assert others == {name: layer for name, layer in excluded.layers.items() if name != "wide"}


def test_clip_fused_with_a_restored_convolution_is_restored_too() -> None:
    model = mixed()
    restored = restore_float(model, planned(model, "cpu"), scheme("cpu"), {"stem"}, "restored")
    assert restored.layers["a"].left == "the operator before it is left in float"


@pytest.mark.parametrize("backend", ["cpu", "tensorrt"])
def test_restored_plan_has_exactly_the_ranges_it_needs(backend: str) -> None:
    model = mixed()
    plan = planned(model, backend)
    feeds = {"image": floats(2, 3, 16, 16)}
    for name in plan.layers:
        restored = restore_float(model, plan, scheme(backend), {name}, "restored")
        restored_model = apply_plan(model, restored)
        rounded = {
            str(node.inputs[0].name).removesuffix("_float")
            for node in restored_model.graph
            if node.op_type == "QuantizeLinear" and node.inputs[0] is not None
        }
        assert rounded == set(restored.tensors)
        assert open_cpu(restored_model)(feeds)["scores"].shape == (2, 24)


def test_plan_with_every_node_restored_gives_the_float_model() -> None:
    model = mixed()
    plan = planned(model, "cpu")
    restored = restore_float(model, plan, scheme("cpu"), set(plan.layers), "restored")
    assert restored.quantized == 0
    assert not restored.tensors
    assert "QuantizeLinear" not in [node.op_type for node in apply_plan(model, restored).graph]
