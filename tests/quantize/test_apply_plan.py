"""What the rewritten graph computes is what its plan says, layer by layer, in ONNX Runtime."""

from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from qconvert.backends.ort import open_cpu
from qconvert.calibrate.calibration import Calibration, CalibrationImage, Origin
from qconvert.calibrate.collect import collect, make_tapped_runner
from qconvert.core import onnx_io
from qconvert.core.errors import QConvertError, UsageError
from qconvert.core.tensors import Tensors
from qconvert.graph.fp16.convert import convert_to_half
from qconvert.graph.passes import infer_shapes
from qconvert.graph.taps import add_calibration_taps
from qconvert.quantize.apply_plan import apply_plan
from qconvert.quantize.placement import QuantizeOptions, make_plan
from qconvert.quantize.plan import Plan
from tests.models import MIXED_SHAPES, floats, from_text
from tests.models import mixed as net
from tests.quantize.layers_in_numpy import Array, computed
from tests.quantize.quantized_models import scheme


def images(count: int = 8) -> Tensors:
    return {"image": floats(count, 3, 16, 16, seed=7)}


def seen(model: ir.Model) -> Calibration:
    tapped = add_calibration_taps(model)
    names = tuple(CalibrationImage(str(number), "") for number in range(8))
    start = Calibration(Origin("", tuple(tap.tensor for tap in tapped.taps), names, {}, "", False))
    run = make_tapped_runner(open_cpu(tapped.model), tapped)
    return collect([run((range(8), images()))], tapped, start, lambda collector: None)


def plan(model: ir.Model, backend: str, wishes: QuantizeOptions | None = None) -> Plan:
    return make_plan(model, scheme(backend), seen(model).summaries, wishes or QuantizeOptions())


def exposed(model: ir.Model) -> tuple[ir.Model, list[str]]:
    """Return a copy that outputs every tensor of integers too."""
    copy = model.clone()
    integers = [node.outputs[0] for node in copy.graph if node.op_type == "QuantizeLinear"]
    copy.graph.outputs.extend(value for value in integers if value not in copy.graph.outputs)
    return copy, [str(value.name) for value in integers]


@pytest.mark.parametrize("backend", ["cpu", "tensorrt"])
@pytest.mark.parametrize("rest", ["fp32", "fp16", "bf16"])
def test_quantized_layers_match_numpy_within_one_step(backend: str, rest: str) -> None:
    model = net()
    rewritten = apply_plan(model, plan(model, backend, QuantizeOptions(rest=rest)))  # type: ignore[arg-type]
    watched, names = exposed(rewritten)
    got = open_cpu(watched)(images())
    values_of: dict[str, Array] = {name: got[name] for name in names} | images()
    checked = 0
    for node in rewritten.graph:
        value = node.outputs[0]
        inputs = [None if value is None else _value(value, values_of) for value in node.inputs]
        if node.op_type == "QuantizeLinear":
            expected = _quantized(inputs)
            # The step may fall to either side of a tie, or of what float32 rounds on the way.
            assert np.abs(expected - got[str(value.name)].astype(np.int64)).max() <= 1
            assert (expected == got[str(value.name)]).mean() > 0.99
            checked += 1
        elif node.op_type == "DequantizeLinear":
            values_of[str(value.name)] = _dequantized(node, inputs)
        else:
            values_of[str(value.name)] = computed(node, inputs)
    assert checked == len(names) > 5
    assert np.allclose(values_of["scores"], got["scores"], rtol=1e-3, atol=1e-3)


def _value(value: ir.Value, values_of: dict[str, Array]) -> Array:
    return values_of[str(value.name)] if value.name in values_of else _constant(value)


def _constant(value: ir.Value) -> Array:
    tensor = ir.convenience.get_const_tensor(value)
    assert tensor is not None
    return np.array(tensor.numpy())


def _quantized(inputs: list[Array | None]) -> Array:
    values, step, zero = inputs
    assert values is not None
    assert step is not None
    assert zero is not None
    limits = np.iinfo(zero.dtype)
    integers = np.rint(values / step.astype(np.float64)) + zero
    clipped: Array = np.clip(integers, limits.min, limits.max).astype(np.int64)
    return clipped


def _dequantized(node: ir.Node, inputs: list[Array | None]) -> Array:
    integers, steps = inputs[0], inputs[1]
    assert integers is not None
    assert steps is not None
    zero = inputs[2] if len(inputs) > 2 and inputs[2] is not None else np.zeros_like(steps)
    axis = node.attributes.get_int("axis", 1)
    spread = [1] * integers.ndim
    if steps.ndim:
        spread[axis] = -1
    return (integers.astype(np.float64) - zero.reshape(spread)) * steps.reshape(spread)


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
    expected, outputs = (open_cpu(variant)(images())["scores"] for variant in (model, rewritten))
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
    chosen = _ranged(model)
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
    x = floats(1, 16, 4, 4, seed=3)
    expected, outputs = (open_cpu(variant)({"x": x})["y"] for variant in (model, rewritten))
    assert np.allclose(expected, outputs, atol=chosen.tensors["y"].max_abs / 100)


def test_layer_with_a_large_bias_gets_its_own_weight() -> None:
    text = """<ir_version: 10, opset_import: ["": 20]>
    net (float[N, 16, 4, 4] x) => (float[N, 16, 4, 4] y, float[N, 16, 4, 4] z) {
        y = Conv (x, w, b)
        none = Sub (x, x)
        z = Conv (none, w, large)
    }"""
    model = _shared(text, floats(16, 16, 1, 1), floats(16) * np.float32(1e3))
    rewritten = apply_plan(model, _ranged(model))
    x = {"x": floats(1, 16, 4, 4, seed=3)}
    expected, outputs = (open_cpu(variant)(x) for variant in (model, rewritten))
    for name, array in expected.items():
        assert np.square(array).sum() / np.square(array - outputs[name]).sum() > 300, name
    stored = {name for name in rewritten.graph.initializers if name.startswith("w_quantized")}
    assert stored >= {"w_quantized", "w_quantized_1"}


def _shared(text: str, weight: Array, large: Array) -> ir.Model:
    model = infer_shapes(from_text(text, w=weight, b=floats(16), large=large))[0]
    for node in model.graph:
        node.name = node.outputs[0].name
    return model


def _ranged(model: ir.Model) -> Plan:
    tapped = add_calibration_taps(model)
    start = Calibration(
        Origin(
            "",
            tuple(tap.tensor for tap in tapped.taps),
            (CalibrationImage("0", ""),),
            {},
            "",
            False,
        )
    )
    run = make_tapped_runner(open_cpu(tapped.model), tapped)
    outputs = run(([0], {"x": floats(1, 16, 4, 4, seed=3)}))
    calibration = collect([outputs], tapped, start, lambda collector: None)
    return make_plan(model, scheme("cpu"), calibration.summaries, QuantizeOptions())


def test_channel_of_zeros_keeps_its_bias() -> None:
    weight = floats(16, 3, 3, 3)
    weight[3] = 0.0
    model = net(w1=weight)
    for backend in ("cpu", "tensorrt"):
        rewritten, names = exposed(apply_plan(model, plan(model, backend)))
        expected, outputs = (
            open_cpu(variant)(images())["scores"] for variant in (model, rewritten)
        )
        assert np.isfinite(outputs).all()
        assert np.square(expected).sum() / np.square(expected - outputs).sum() > 100
        assert names


def test_non_finite_weight_is_rejected_by_name() -> None:
    model = net()
    chosen = plan(model, "cpu")
    weight = floats(*MIXED_SHAPES["w2"])
    weight[0, 0, 0, 0] = np.nan
    broken = net(w2=weight)
    chosen = replace(chosen, model=onnx_io.fingerprint(broken))
    with pytest.raises(QConvertError, match="the weight `w2` of `wide` has 1 values"):
        apply_plan(broken, chosen)


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
