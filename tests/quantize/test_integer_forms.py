"""Operators without an integer kernel compute the same function in their integer form."""

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx.reference import ReferenceEvaluator

from qconvert.backends.ort import open_cpu
from qconvert.core import onnx_io
from qconvert.core.scales import Grid, Range, choose_qparams
from qconvert.graph.passes import infer_shapes
from qconvert.quantize.apply_plan import apply_plan
from qconvert.quantize.integer_forms import use_integer_forms
from qconvert.quantize.placement import keep_representable
from qconvert.quantize.plan import LayerPlan
from qconvert.quantize.qdq_builder import QDQBuilder
from tests.models import floats, from_text
from tests.quantize.quantized_models import model as parsed
from tests.quantize.quantized_models import scheme
from tests.quantize.test_apply_plan import plan

UNSIGNED, SIGNED = Grid(8, symmetric=False, signed=False), Grid(8, symmetric=False, signed=True)
SYMMETRIC = Grid(8)
PLACES = "a = Constant <value: tensor = int64[2] {2, 3}> ()"
# A node, the range of its output, its largest error in steps of that range, and what replaces it.
FORMS: dict[str, tuple[str, Range, float, set[str]]] = {
    "HardSwish": ("y = HardSwish (x)", Range(-0.375, 8.0), 1.1, {"Add", "Mul"}),
    "HardSigmoid": ("y = HardSigmoid (x)", Range(0.0, 1.0), 0.51, {"Add"}),
    "a steep HardSigmoid that never reaches 1": (
        "y = HardSigmoid <alpha: float = 2, beta: float = 0.1> (x)",
        Range(0.0, 0.75), 0.51, {"Add"},
    ),
    "ReduceMean": (
        f"{PLACES} y = ReduceMean (x, a)", Range(-1.0, 1.0), 0.51, {"GlobalAveragePool"},
    ),
    "ReduceMean without its axes": (
        f"{PLACES} y = ReduceMean <keepdims: int = 0> (x, a)", Range(-1.0, 1.0), 0.51,
        {"GlobalAveragePool", "Flatten"},
    ),
}  # fmt: skip
# Of these the quantizer would clip at other values than the operator.
UNCHANGED = {
    "a range beyond 1": ("y = HardSigmoid (x)", Range(0.0, 1.5)),
    "a range below 0": ("y = HardSigmoid (x)", Range(-0.5, 1.0)),
    "a falling slope": ("y = HardSigmoid <alpha: float = -0.2> (x)", Range(0.0, 1.0)),
    "no shift": ("y = HardSigmoid <beta: float = 0> (x)", Range(0.0, 1.0)),
}


def rewritten(text: str, output: Range, grid: Grid) -> tuple[ir.Model, set[str]]:
    """Return a net of one node between quantizers, and the operators that compute it."""
    model = parsed(text, "(float[2, 4, 8, 8] x) => (float[] y)")
    node = model.graph[-1]
    node.name = "n"
    builder = QDQBuilder(model.graph)
    value = node.outputs[0]
    node.replace_input_with(
        0, builder.quantize(model.graph.inputs[0], choose_qparams(Range(-8, 8), grid))
    )
    result = builder.quantize(value, choose_qparams(output, grid))
    model.graph.outputs[:] = [result]
    use_integer_forms(builder, {node: LayerPlan(node.op_type, (0,), output=True)}, grid)
    aside = {"QuantizeLinear", "DequantizeLinear", "Constant"}
    onnx.checker.check_model(onnx.load_from_string(onnx_io.serialize(model)), full_check=True)
    return model, {node.op_type for node in model.graph} - aside


@pytest.mark.parametrize("case", FORMS)
@pytest.mark.parametrize("grid", [UNSIGNED, SIGNED], ids=["unsigned", "signed"])
def test_integer_form_computes_the_operator_to_a_step(case: str, grid: Grid) -> None:
    text, output, steps, operators = FORMS[case]
    model, used = rewritten(text, output, grid)
    assert used == operators
    image = np.linspace(-8, 8, 512, dtype=np.float32).reshape(2, 4, 8, 8)
    # What the operator itself makes of the rounded input.
    quantizer = next(node for node in model.graph if node.op_type == "QuantizeLinear")
    scale = float(quantizer.inputs[1].const_value.numpy())  # type: ignore[union-attr]
    exact = parsed(text, "(float[2, 4, 8, 8] x) => (float[] y)")
    proto = onnx.load_from_string(onnx_io.serialize(exact))
    (expected,) = ReferenceEvaluator(proto).run(None, {"x": np.rint(image / scale) * scale})
    expected = np.clip(expected, output.low, output.high)
    step = (output.high - output.low) / 255
    for keep_qdq in (True, False):  # as the graph says, and by integer kernels
        (actual,) = open_cpu(model, keep_qdq=keep_qdq)({"x": image}).values()
        assert actual.shape == expected.shape
        assert np.abs(actual - expected).max() <= steps * step


@pytest.mark.parametrize("case", UNCHANGED)
def test_operator_that_its_quantizer_would_clip_elsewhere_stays(case: str) -> None:
    assert rewritten(*UNCHANGED[case], UNSIGNED)[1] == {"HardSigmoid"}


@pytest.mark.parametrize("case", FORMS)
def test_symmetric_grid_has_no_integer_forms(case: str) -> None:
    text, output, _, operators = FORMS[case]
    used = rewritten(text, output, SYMMETRIC)[1]
    assert used <= {"HardSwish", "HardSigmoid", "ReduceMean"}
    assert not used & operators


BLOCK = """<ir_version: 10, opset_import: ["": 20]>
block (float[N, 3, 16, 16] image) => (float[N, 8] scores) {
    stem = Conv <pads: ints = [1, 1, 1, 1]> (image, w, b)
    swish = HardSwish (stem)
    squeezed = ReduceMean (swish, places)
    reduced = Conv (squeezed, w1)
    relu = Relu (reduced)
    expanded = Conv (relu, w2)
    gate = HardSigmoid <alpha: float = 0.1666667> (expanded)
    excited = Mul (swish, gate)
    deep = Conv <pads: ints = [1, 1, 1, 1]> (excited, v)
    active = HardSwish (deep)
    pooled = ReduceMean <keepdims: int = 0> (active, places)
    scores = Gemm (pooled, head)
}"""

IMAGES = {"image": floats(8, 3, 16, 16, seed=7)}


@pytest.fixture(scope="module")
def block() -> ir.Model:
    weights = {
        "w": floats(16, 3, 3, 3), "b": floats(16), "places": np.array([2, 3]),
        "w1": floats(8, 16, 1, 1), "w2": floats(16, 8, 1, 1), "v": floats(16, 16, 3, 3) / 8,
        "head": floats(16, 8),
    }  # fmt: skip
    net = infer_shapes(from_text(BLOCK, **weights))[0]
    for node in net.graph:
        node.name = node.outputs[0].name
    return net


def test_mean_with_too_different_scales_stays_in_float(block: ir.Model) -> None:
    made = plan(block, "cpu", feeds=IMAGES)
    ranges = {**made.tensors, "squeezed": Range(-1e-3, 1e-3)}
    layers = keep_representable(block.graph, made.layers, ranges, scheme("cpu"), "fp32")
    assert [name for name, layer in layers.items() if layer.left] == ["squeezed"]


def test_squeeze_excitation_of_hard_swish_is_one_chain_of_integer_kernels(block: ir.Model) -> None:
    quantized = apply_plan(block, plan(block, "cpu", feeds=IMAGES))
    assert {node.name for node in block.graph} <= {node.name for node in quantized.graph} | {"gate"}
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = "optimized.onnx", 4
    content = onnx_io.serialize(quantized)
    onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    operators = Counter(node.op_type for node in onnx.load("optimized.onnx").graph.node)
    moving = {"Transpose", "Flatten", "Reshape", "Squeeze"}
    assert {op: n for op, n in operators.items() if op not in moving} == {
        "QuantizeLinear": 1, "QLinearConv": 4, "QLinearAdd": 3, "QLinearMul": 3,
        "QLinearGlobalAveragePool": 2, "QGemm": 1,
    }  # fmt: skip
    expected, outputs = (open_cpu(variant)(IMAGES)["scores"] for variant in (block, quantized))
    assert np.square(expected).sum() > 1000 * np.square(expected - outputs).sum()
