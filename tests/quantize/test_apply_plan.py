"""The rewritten graph computes its plan in ONNX Runtime, layer by layer."""

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from qconvert.backends.ort import open_cpu
from qconvert.core import onnx_io
from qconvert.core.errors import QConvertError, UsageError
from qconvert.core.tensors import Tensors
from qconvert.graph.fp16.convert import convert_to_half
from qconvert.graph.passes import infer_shapes
from qconvert.measure.output_error import sqnr_db
from qconvert.quantize.apply_plan import apply_plan
from qconvert.quantize.placement import QuantizeOptions, Selection, make_plan
from qconvert.quantize.plan import Plan, RestPrecision
from qconvert.quantize.saturation import find_saturation
from tests.calibrate.activations import summarize
from tests.models import MIXED_SHAPES, floats, from_text
from tests.models import mixed as net
from tests.quantize.quantized_models import planned, scheme

IMAGES: Tensors = {"image": floats(8, 3, 16, 16, seed=7)}


def plan(
    model: ir.Model, backend: str, options: QuantizeOptions | None = None, feeds: Tensors = IMAGES
) -> Plan:
    """Return the plan of a backend for a model that was calibrated on these images."""
    return make_plan(model, scheme(backend), summarize(model, feeds), options or QuantizeOptions())


def exposed(model: ir.Model) -> tuple[ir.Model, list[str]]:
    """Return a copy that outputs every tensor of integers too."""
    copy = model.clone()
    integers = [node.outputs[0] for node in copy.graph if node.op_type == "QuantizeLinear"]
    copy.graph.outputs.extend(value for value in integers if value not in copy.graph.outputs)
    return copy, [str(value.name) for value in integers]


@pytest.mark.parametrize("backend", ["cpu", "tensorrt"])
@pytest.mark.parametrize("rest", ["fp32", "fp16", "bf16"])
def test_quantized_layers_match_onnx_reference_within_one_step(
    backend: str, rest: RestPrecision
) -> None:
    model = net()
    watched, names = exposed(apply_plan(model, plan(model, backend, QuantizeOptions(rest=rest))))
    outputs = open_cpu(watched)(IMAGES)
    values: dict[str, NDArray[Any]] = {name: outputs[name] for name in names} | IMAGES
    for name, value in watched.graph.initializers.items():
        assert value.const_value is not None
        values[name] = value.const_value.numpy()
    for node in watched.graph:
        proto = ir.to_proto(node)
        feeds = {name: values[name] for name in proto.input if name}
        (result,) = ReferenceEvaluator(proto).run(None, feeds)
        assert isinstance(result, np.ndarray)
        name = proto.output[0]
        if node.op_type == "QuantizeLinear":
            # Ties and float32 rounding may move a value by one step.
            difference = np.abs(result.astype(np.int64) - outputs[name])
            assert difference.max() <= 1
            assert (difference == 0).mean() > 0.99
        else:
            values[name] = result
    assert len(names) > 5
    assert np.allclose(values["scores"], outputs["scores"], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("backend", ["cpu", "tensorrt"])
def test_quantized_model_is_valid_small_close_and_deterministic(backend: str) -> None:
    model = net()
    before = onnx_io.serialize(model)
    chosen = plan(model, backend)
    rewritten = apply_plan(model, chosen)
    data = onnx_io.serialize(rewritten)
    onnx.checker.check_model(onnx.load_from_string(data), full_check=True)
    assert onnx_io.serialize(apply_plan(model, chosen)) == data
    assert onnx_io.serialize(model) == before
    assert onnx_io.weight_bytes(rewritten) < 0.5 * onnx_io.weight_bytes(model)
    expected, outputs = (open_cpu(variant)(IMAGES)["scores"] for variant in (model, rewritten))
    assert np.square(expected).sum() / np.square(expected - outputs).sum() > 100


def test_ort_runs_every_convolution_as_an_integer_kernel() -> None:
    import onnxruntime

    model = net()
    rewritten = apply_plan(model, plan(model, "cpu"))
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = "optimized.onnx", 4
    onnxruntime.InferenceSession(
        onnx_io.serialize(rewritten), options, providers=["CPUExecutionProvider"]
    )
    ops = [node.op_type for node in onnx.load("optimized.onnx").graph.node]
    assert ops.count("QLinearConv") == 5
    assert {"QGemm", "QLinearAdd", "QLinearMul", "QLinearSigmoid", "QLinearConcat"} <= set(ops)
    assert not {"Conv", "Gemm", "Relu", "Clip", "Add", "Mul"} & set(ops)


def test_scales_are_exact_in_the_half_type() -> None:
    model = net()
    rewritten = apply_plan(model, plan(model, "tensorrt", QuantizeOptions(rest="fp16")))
    halved = convert_to_half(
        rewritten, "fp16", dict.fromkeys(("image", "c", "c_rounded", "mean"), 10.0)
    )
    steps = {
        name: value.const_value.numpy()
        for name, value in rewritten.graph.initializers.items()
        if name.endswith("_scale") and value.const_value is not None
    }
    assert steps
    for name, array in steps.items():
        assert (array.astype(np.float16).astype(np.float32) == array).all(), name
    for node in halved.model.graph:
        if node.op_type == "DequantizeLinear" and node.inputs[1] is not None:
            assert node.inputs[1].dtype is node.outputs[0].dtype is ir.DataType.FLOAT16


def test_shared_weight_is_stored_once_with_room_for_both_biases() -> None:
    text = """<ir_version: 10, opset_import: ["": 20]>
    net (float[N, 16, 4, 4] x) => (float[N, 16, 4, 4] y) {
        h = Conv (x, w, b)
        y = Conv (h, w, large)
    }"""
    model = _shared(text, floats(16, 16, 1, 1), floats(16) * np.float32(1e3))
    images = {"x": floats(1, 16, 4, 4, seed=3)}
    chosen = plan(model, "cpu", feeds=images)
    rewritten = apply_plan(model, chosen)
    stored = [name for name in rewritten.graph.initializers if name.startswith("w_quantized")]
    biases = [
        value.const_value.numpy()
        for value in rewritten.graph.initializers.values()
        if value.dtype is ir.DataType.INT32 and value.const_value is not None
    ]
    assert stored == ["w_quantized"]
    assert len(biases) == 2
    assert all(np.abs(bias.astype(np.int64)).max() < 1.01 * 2**30 for bias in biases)
    expected, outputs = (open_cpu(variant)(images)["y"] for variant in (model, rewritten))
    assert np.allclose(expected, outputs, atol=chosen.tensors["y"].max_abs / 100)


def test_layer_with_a_large_bias_gets_its_own_weight() -> None:
    text = """<ir_version: 10, opset_import: ["": 20]>
    net (float[N, 16, 4, 4] x) => (float[N, 16, 4, 4] y, float[N, 16, 4, 4] z) {
        y = Conv (x, w, b)
        none = Sub (x, x)
        z = Conv (none, w, large)
    }"""
    model = _shared(text, floats(16, 16, 1, 1), floats(16) * np.float32(1e3))
    images = {"x": floats(1, 16, 4, 4, seed=3)}
    rewritten = apply_plan(model, plan(model, "cpu", feeds=images))
    expected, outputs = (open_cpu(variant)(images) for variant in (model, rewritten))
    for name, array in expected.items():
        assert np.square(array).sum() / np.square(array - outputs[name]).sum() > 300, name
    stored = {name for name in rewritten.graph.initializers if name.startswith("w_quantized")}
    assert stored >= {"w_quantized", "w_quantized_1"}


def _shared(text: str, weight: NDArray[Any], large: NDArray[Any]) -> ir.Model:
    model = infer_shapes(from_text(text, w=weight, b=floats(16), large=large))[0]
    for node in model.graph:
        node.name = node.outputs[0].name
    return model


def test_plan_for_another_model_is_rejected() -> None:
    with pytest.raises(UsageError, match="another model"):
        apply_plan(net(w1=floats(*MIXED_SHAPES["w1"], seed=99)), plan(net(), "cpu"))


def test_quantized_model_is_rejected() -> None:
    model = net()
    with pytest.raises(QConvertError, match="already quantized"):
        plan(apply_plan(model, plan(model, "cpu")), "cpu")


def test_model_without_weights_has_nothing_to_quantize() -> None:
    text = """<ir_version: 10, opset_import: ["": 20]>
    net (float[N, 16, 4, 4] x) => (float[N, 16, 4, 4] y) { h = Elu (x) y = Softmax (h) }"""
    model = infer_shapes(from_text(text))[0]
    with pytest.raises(QConvertError, match="nothing to quantize") as refused:
        make_plan(model, scheme("cpu"), {}, QuantizeOptions())
    assert list(refused.value.details) == ["Softmax: 8 bits are too few for probabilities"]


CHAIN = """
<ir_version: 10, opset_import: ["": 20]>
chain (float[N, 8, 16, 16] image) => (float[N, 8, 16, 16] y) {{
    first = Conv (image, w1, b1)
    {inner}
    y = Conv ({last}, w3, b3)
}}
"""
CONV = "mid = Conv <pads: ints = [1, 1, 1, 1], group: int = 8> (first, w2, b2)"
BODIES = {
    "alone": (CONV, "mid"),
    "relu": (f"{CONV} r = Relu (mid)", "r"),
    "moved behind": (f"{CONV} r = Relu (mid) p = MaxPool <kernel_shape = [2, 2]> (r)", "p"),
    "moved before": (
        f"p = MaxPool <kernel_shape = [2, 2]> (first) {CONV.replace('first', 'p')}", "mid",
    ),
    "transposed": ("mid = ConvTranspose <pads: ints = [1, 1, 1, 1], group: int = 8> "
                   "(first, w2, b2)", "mid"),
}  # fmt: skip


def chain(kind: str) -> ir.Model:
    """Return three convolutions; one filter of the middle one is large, and its input small."""
    inner, last = BODIES[kind]
    w1, w2 = floats(8, 8, 1, 1), floats(8, 1, 3, 3, seed=2)
    w1[0], w2[0] = w1[0] / 100, w2[0] * 100
    model = from_text(
        CHAIN.format(inner=inner, last=last),
        w1=w1, b1=np.zeros(8, np.float32), w2=w2, b2=floats(8, seed=3),
        w3=floats(8, 8, 1, 1, seed=4), b3=floats(8, seed=5),
    )  # fmt: skip
    model = infer_shapes(model)[0]
    for node in model.graph:
        node.name = node.outputs[0].name
    return model


@pytest.mark.parametrize("kind", BODIES)
def test_float_layer_between_integers_keeps_its_weights(kind: str) -> None:
    model = chain(kind)
    exclude = () if kind == "transposed" else ("mid",)
    rewritten = apply_plan(model, planned(model, "cpu", Selection(exclude)))
    assert [node.op_type for node in rewritten.graph].count("LeakyRelu") == 1
    feeds = {"image": floats(4, 8, 16, 16, seed=9)}
    expected = open_cpu(rewritten, keep_qdq=True)(feeds)
    actual = open_cpu(rewritten)(feeds)
    assert sqnr_db(expected, actual) > 45


@pytest.mark.parametrize("kind", ["alone", "relu"])
def test_float_layer_that_the_graph_returns_keeps_its_weights(kind: str) -> None:
    model = chain(kind)
    returned = next(node for node in model.graph if node.name == BODIES[kind][1])
    model.graph.outputs.append(returned.outputs[0])
    rewritten = apply_plan(model, planned(model, "cpu", Selection(("mid",))))
    assert [value.name for value in rewritten.graph.outputs] == ["y", returned.name]
    feeds = {"image": floats(4, 8, 16, 16, seed=9)}
    expected = open_cpu(rewritten, keep_qdq=True)(feeds)
    actual = open_cpu(rewritten)(feeds)
    assert sqnr_db(expected, actual) > 45


def test_float_layer_with_another_reader_is_not_taken_for_an_integer_kernel() -> None:
    model = chain("alone")
    middle = next(node for node in model.graph if node.name == "mid").outputs[0]
    other = ir.node("Tanh", [middle], name="other")
    other.outputs[0].name = "other"
    other.outputs[0].type, other.outputs[0].shape = middle.type, middle.shape
    model.graph.append(other)
    model.graph.outputs.append(other.outputs[0])
    rewritten = apply_plan(model, planned(model, "cpu", Selection(("mid",))))
    assert "mid" not in {sums.node for sums in find_saturation(rewritten)}
    feeds = {"image": floats(4, 8, 16, 16, seed=9)}
    assert sqnr_db(open_cpu(rewritten, keep_qdq=True)(feeds), open_cpu(rewritten)(feeds)) > 45


def test_ort_quantizes_float_weights_without_the_guard() -> None:
    model = chain("relu")
    unguarded = replace(planned(model, "cpu", Selection(("mid",))), integer_bias=False)
    bare = apply_plan(model, unguarded)
    feeds = {"image": floats(4, 8, 16, 16, seed=9)}
    assert sqnr_db(open_cpu(bare, keep_qdq=True)(feeds), open_cpu(bare)(feeds)) < 20


def test_fully_quantized_graph_has_no_guard() -> None:
    model = chain("relu")
    rewritten = apply_plan(model, planned(model, "cpu"))
    assert "LeakyRelu" not in [node.op_type for node in rewritten.graph]
