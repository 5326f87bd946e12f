"""Symmetric grids shifted behind a Clip at zero: the same numbers with zero points of zero."""

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from qconvert.backends.ort import open_cpu
from qconvert.core.errors import UsageError
from qconvert.core.tensors import Tensors
from qconvert.graph import patterns
from qconvert.graph.fp16.convert import convert_to_half
from qconvert.measure.layer_errors import measure_layer_errors
from qconvert.measure.output_error import sqnr_db
from qconvert.quantize import plan_files
from qconvert.quantize.apply_plan import apply_plan
from qconvert.quantize.placement import QuantizeOptions, make_plan, restore_float
from qconvert.quantize.plan import Plan
from qconvert.quantize.plan_files import PLAN_METADATA_KEY
from qconvert.quantize.shifted_tensors import find_shiftable
from tests.calibrate.activations import summarize
from tests.models import floats
from tests.quantize.quantized_models import model, scheme

FEEDS: Tensors = {"image": floats(8, 3, 12, 12, seed=7)}
PAD = "<pads: ints = [1, 1, 1, 1]>"
SHIFTABLE = ["r", "s", "f"]


def network() -> ir.Model:
    """Return a network with three tensors to shift, and others whose readers do not allow it."""
    net = model(
        f"""
        c = Conv {PAD} (image, w) r = Clip (c, low, high)
        d = Conv (r, v) s = Relu (d)
        e = Conv (s, u, b) p = Clip (e, low, high)
        g = Conv {PAD} (p, t) h = Relu (g)
        m = GlobalAveragePool (h) n = Flatten (m)
        o = Gemm <transB: int = 1> (n, k, kb) f = Clip (o, low, high)
        y = Gemm (f, q)""",
        "(float[N, 3, 12, 12] image) => (float[] y)",
        w=(32, 3, 3, 3), v=(48, 32, 1, 1), u=(48, 48, 3, 3), b=(48,), t=(32, 48, 3, 3),
        k=(64, 32), kb=(64,), q=(64, 40), low=(), high=(),
    )  # fmt: skip
    for name, limit in (("low", 0.0), ("high", 6.0)):
        net.graph.initializers[name].const_value = ir.tensor(np.float32(limit), name=name)
    for node in net.graph:
        node.name = str(node.outputs[0].name)
    return net


def plans(net: ir.Model) -> tuple[Plan, Plan]:
    """Return the plan of TensorRT, and the same with all that can be shifted."""
    options = QuantizeOptions("minmax")
    plan = make_plan(net, scheme("tensorrt"), summarize(net, FEEDS), options)
    return plan, replace(plan, shifted=tuple(find_shiftable(net.graph, plan)))


def run(net: ir.Model) -> Tensors:
    return open_cpu(net, keep_qdq=True)(FEEDS)


def test_readers_without_padding_and_producers_with_bias_allow_a_shift() -> None:
    net = network()
    plan, _ = plans(net)
    assert find_shiftable(net.graph, plan) == SHIFTABLE
    asymmetric = make_plan(net, scheme("cpu"), summarize(net, FEEDS), QuantizeOptions())
    assert find_shiftable(net.graph, asymmetric) == []


def test_shift_gives_the_numbers_of_zero_points_and_leaves_none() -> None:
    net = network()
    plan, shifted = plans(net)
    graph = apply_plan(net, shifted)
    with_zero_points = apply_plan(net, shifted, keep_values=True)
    assert sqnr_db(run(with_zero_points), run(graph)) > 40  # halves may round otherwise
    points = {
        int(array)
        for node in graph.graph
        if node.op_type == "QuantizeLinear"
        and (array := patterns.constant_array(node.inputs[2])) is not None
    }
    assert points == {0}
    before, after = ([node.op_type for node in row.graph] for row in (apply_plan(net, plan), graph))
    relu = before.index("Relu")
    assert after == [*before[:relu], "Clip", *before[relu + 1 :]]
    exact = open_cpu(net)(FEEDS)
    assert sqnr_db(exact, run(graph)) > sqnr_db(exact, run(apply_plan(net, plan))) + 0.5


def test_shifted_tensor_uses_all_integers() -> None:
    net = network()
    _, shifted = plans(net)
    graph = apply_plan(net, shifted).graph
    (quantize,) = [node for node in graph if node.op_type == "QuantizeLinear"
                   and node.inputs[0] is not None and node.inputs[0].name == "s"]  # fmt: skip
    watched = ir.Model(graph, ir_version=10)
    watched.graph.outputs.append(quantize.outputs[0])
    integers = run(watched)[str(quantize.outputs[0].name)]
    assert integers.min() == -128
    assert integers.max() == 127


def test_half_precision_around_a_shift_keeps_the_numbers() -> None:
    net = network()
    _, shifted = plans(net)
    graph = apply_plan(net, replace(shifted, rest="fp16"))
    half = convert_to_half(graph, "fp16", dict.fromkeys(shifted.tensors, 10.0)).model
    assert sqnr_db(run(graph), run(half)) > 30


def test_layer_whose_reader_stays_in_float_is_shifted_all_the_same() -> None:
    net = network()
    _, shifted = plans(net)
    partly = restore_float(net, shifted, scheme("tensorrt"), {"d"}, "for its accuracy")
    exact = open_cpu(net)(FEEDS)
    assert sqnr_db(exact, run(apply_plan(net, partly))) > 20


@pytest.mark.parametrize("name", ["p", "h", "image", "nowhere"])
def test_tensor_that_cannot_be_shifted_is_refused(name: str) -> None:
    net = network()
    plan, _ = plans(net)
    with pytest.raises(UsageError, match=f"the plan shifts `{name}`"):
        apply_plan(net, replace(plan, shifted=(name,)))


def test_plan_file_keeps_the_shifts() -> None:
    _, shifted = plans(network())
    text = plan_files.format_plan(shifted)
    assert plan_files.parse_plan(text, "plan.json") == shifted


def test_layer_errors_leave_out_tensors_with_other_values() -> None:
    net = network()
    _, shifted = plans(net)
    graph = apply_plan(net, shifted)
    graph.metadata_props[PLAN_METADATA_KEY] = plan_files.format_plan(shifted)
    layers = {layer.tensor: layer for layer in measure_layer_errors(net, graph, [FEEDS])}
    assert not {"c", "r", "d", "s", "o", "f"} & layers.keys()
    for name in ("p", "h", "y"):
        assert (layers[name].arriving_db or 0) > 20
