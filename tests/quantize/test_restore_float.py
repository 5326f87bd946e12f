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
    lifted = restore_float(model, plan, scheme(backend), {"wide"}, "lifted")
    excluded = planned(model, backend, Selection(exclude=("wide",)))
    assert lifted.layers["wide"].left == "lifted"
    others = {name: layer for name, layer in lifted.layers.items() if name != "wide"}
    assert others == {name: each for name, each in excluded.layers.items() if name != "wide"}


def test_clip_fused_with_a_restored_convolution_is_restored_too() -> None:
    model = mixed()
    lifted = restore_float(model, planned(model, "cpu"), scheme("cpu"), {"stem"}, "lifted")
    assert lifted.layers["a"].left == "the operator before it is left in float"


@pytest.mark.parametrize("backend", ["cpu", "tensorrt"])
def test_restored_plan_has_exactly_the_ranges_it_needs(backend: str) -> None:
    model = mixed()
    plan = planned(model, backend)
    feeds = {"image": floats(2, 3, 16, 16)}
    for name in plan.layers:
        lifted = restore_float(model, plan, scheme(backend), {name}, "lifted")
        made = apply_plan(model, lifted)
        rounded = {
            str(node.inputs[0].name).removesuffix("_float")
            for node in made.graph
            if node.op_type == "QuantizeLinear" and node.inputs[0] is not None
        }
        assert rounded == set(lifted.tensors)
        assert open_cpu(made)(feeds)["scores"].shape == (2, 24)


def test_plan_with_every_node_restored_gives_the_float_model() -> None:
    model = mixed()
    plan = planned(model, "cpu")
    lifted = restore_float(model, plan, scheme("cpu"), set(plan.layers), "lifted")
    assert lifted.quantized == 0
    assert not lifted.tensors
    assert "QuantizeLinear" not in [node.op_type for node in apply_plan(model, lifted).graph]
