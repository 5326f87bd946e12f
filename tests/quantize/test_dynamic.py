"""Dynamic INT8: what is quantized, what the graph computes, and what ONNX Runtime fuses."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from qconvert import backends
from qconvert.backends.base import LoadSpec, scheme_for
from qconvert.backends.ort import open_cpu
from qconvert.backends.ort_coverage import optimized_graph
from qconvert.core import onnx_io
from qconvert.core.config import QuantizeConfig
from qconvert.core.errors import QConvertError
from qconvert.graph.patterns import set_constant
from qconvert.quantize.apply_plan import apply_plan
from qconvert.quantize.placement import QuantizeOptions, make_plan
from qconvert.quantize.plan import Plan
from qconvert.quantize.saturation import find_saturation, is_pair_safe
from tests.models import floats
from tests.quantize.quantized_models import model

ROWS = "(float[N, 64] x)"
STACK = "(float[N, 10, 64] x)"


def plan_of(before: ir.Model, settings: QuantizeConfig | None = None) -> Plan:
    for node in before.graph:
        node.name = node.outputs[0].name
    requirements = backends.requirements("cpu")
    scheme = scheme_for(settings or QuantizeConfig(), requirements, "int8-dynamic")
    return make_plan(before, scheme, {}, QuantizeOptions("at run time"), "int8-dynamic")


def rewritten(before: ir.Model, settings: QuantizeConfig | None = None) -> ir.Model:
    plan = plan_of(before, settings)
    after = apply_plan(before, plan)
    onnx_io.require_valid(after)
    return after


def signature(inputs: str) -> str:
    return f"{inputs} => (float[N] y)"


def quantize_at_run_time(x: NDArray[np.float32]) -> tuple[NDArray[np.int64], np.float32]:
    """Return integers without their zero point, and the scale, as ONNX defines them."""
    low, high = min(x.min(), np.float32(0)), max(x.max(), np.float32(0))
    scale = np.float32((high - low) / np.float32(255))
    zero_point = np.clip(np.rint(-low / scale), 0, 255)
    integers = np.clip(np.rint(x / scale) + zero_point, 0, 255)
    return (integers - zero_point).astype(np.int64), scale


Shapes = dict[str, tuple[int, ...]]
SQUARE: Shapes = {"w": (64, 64)}
PRODUCTS: dict[str, tuple[str, str, Shapes, float, float, bool]] = {
    "a product of stacked rows": ("y = MatMul (x, w)", STACK, SQUARE, 1, 0, False),
    "a product and its bias": (
        "h = MatMul (x, w) y = Add (h, b)", STACK, {**SQUARE, "b": (64,)}, 1, 1, False,
    ),
    "a Gemm": ("y = Gemm (x, w, b)", ROWS, {**SQUARE, "b": (64,)}, 1, 1, False),
    "a Gemm without a bias": ("y = Gemm (x, w)", ROWS, SQUARE, 1, 0, False),
    "a Gemm of a transposed weight, with alpha and beta": (
        "y = Gemm <transB: int = 1, alpha: float = 0.5, beta: float = -2.0> (x, w, b)",
        ROWS, {"w": (80, 64), "b": (80,)}, 0.5, -2.0, True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PRODUCTS)
def test_graph_computes_the_formula(name: str) -> None:
    body, inputs, shapes, alpha, beta, transposed = PRODUCTS[name]
    after = rewritten(model(body, signature(inputs), **shapes))
    x = floats(*((4, 10, 64) if inputs is STACK else (4, 64)), seed=3)
    integers, scale = quantize_at_run_time(x)
    constants = after.graph.initializers
    weight, steps = (constants[f"w_{part}"].const_value for part in ("quantized", "scale"))
    assert weight is not None
    assert steps is not None
    assert weight.dtype is ir.DataType.INT8
    sums = integers @ weight.numpy().astype(np.int64)
    expected = sums * (scale * steps.numpy())
    bias = floats(shapes["b"][0]) if beta else np.float32(0)
    outputs = open_cpu(after)({"x": x})["y"]
    np.testing.assert_allclose(outputs, expected + beta * bias, rtol=1e-4, atol=1e-4)
    original = floats(*shapes["w"])
    exact = alpha * (x @ (original.T if transposed else original)) + beta * bias
    error = np.square(exact - outputs).sum()
    assert 10 * np.log10(np.square(exact).sum() / error) > 30


def kernels(after: ir.Model, folder: Path) -> list[str]:
    """Return the operators that ONNX Runtime runs, without those that hold no products."""
    onnx_io.save(after, folder / "graph.onnx")
    spec = LoadSpec((("CPUExecutionProvider", {}),), ())
    graph = optimized_graph(folder / "graph.onnx", spec)
    return [node.op_type for node in graph if "Mat" in node.op_type or "Quant" in node.op_type]


@pytest.mark.parametrize("name", PRODUCTS)
def test_runtime_fuses_a_product_into_one_kernel(name: str, tmp_path: Path) -> None:
    body, inputs, shapes, *_ = PRODUCTS[name]
    after = rewritten(model(body, signature(inputs), **shapes))
    assert kernels(after, tmp_path) == ["DynamicQuantizeMatMul"]


def test_tensor_that_several_products_read_is_quantized_once(tmp_path: Path) -> None:
    body = "q = MatMul (x, w) k = MatMul (x, v) r = Relu (q) y = Add (r, k)"
    after = rewritten(model(body, signature(STACK), w=(64, 64), v=(64, 64)))
    assert kernels(after, tmp_path) == ["DynamicQuantizeLinear", *["MatMulIntegerToFloat"] * 2]


def test_weight_that_two_products_share_is_stored_once() -> None:
    body = "h = MatMul (x, w) r = Relu (h) y = MatMul (r, w)"
    after = rewritten(model(body, signature(STACK), **SQUARE))
    stored = [value for value in after.graph.initializers.values() if len(value.shape or ()) == 2]
    assert [value.dtype for value in stored] == [ir.DataType.INT8]


def test_computed_bias_of_a_gemm_is_multiplied_by_beta() -> None:
    body = "b = Neg (c) y = Gemm <beta: float = 3.0> (x, w, b)"
    before = model(body, "(float[N, 64] x, float[64] c) => (float[N, 64] y)", **SQUARE)
    feeds = {"x": floats(4, 64, seed=3), "c": 10 * floats(64, seed=4)}
    expected, outputs = (open_cpu(graph)(feeds)["y"] for graph in (before, rewritten(before)))
    assert np.square(expected).sum() / np.square(expected - outputs).sum() > 1000


LSTM = 'y, h = LSTM <hidden_size: int = 32, direction: string = "{}"> (x, w, r, b)'
SEQUENCE = "(float[T, N, 40] x)"


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("portable", [True, False])
def test_lstm_gets_integer_weights(directions: int, portable: bool) -> None:
    body = LSTM.format("bidirectional" if directions == 2 else "forward")
    shapes = {"w": (directions, 128, 40), "r": (directions, 128, 32), "b": (directions, 256)}
    before = model(body, f"{SEQUENCE} => (float[T, {directions}, N, 32] y)", **shapes)
    for name in "wr":
        set_constant(before.graph.initializers[name], floats(*shapes[name]) / np.float32(6))
    after = rewritten(before, QuantizeConfig(portable=portable))
    assert [node.op_type for node in after.graph] == ["DynamicQuantizeLSTM"]
    assert [sums.operator for sums in find_saturation(after)] == ["DynamicQuantizeLSTM"] * 2
    assert is_pair_safe(after) == portable
    x = {"x": floats(10, 3, 40, seed=3)}
    expected, outputs = (open_cpu(graph)(x)["y"] for graph in (before, after))
    assert np.square(expected).sum() / np.square(expected - outputs).sum() > 300
    assert not {"w", "r"} & after.graph.initializers.keys()


LEFT: dict[str, tuple[str, str, Shapes, str]] = {
    "attention": ("y = MatMul (x, x)", "(float[N, 32, 32] x)", {}, "it multiplies two activations"),
    "a computed weight": (
        "t = Neg (v) y = MatMul (t, x)", "(float[N, 32, 32] x)", {"v": (32, 32)},
        "it multiplies two activations",
    ),
    "a transposed input": (
        "y = Gemm <transA: int = 1> (x, w)", "(float[64, N] x)", SQUARE, "it transposes its input",
    ),
    "a constant on the left": (
        "y = MatMul (v, x)", "(float[N, 32, 32] x)", {"v": (32, 32)}, "its weight is not constant",
    ),
    "a stack of weights": (
        "y = MatMul (x, w)", "(float[4, 10, 64] x)", {"w": (4, 64, 64)},
        "its weight is not one matrix",
    ),
    "a small weight": (
        "y = MatMul (x, w)", STACK, {"w": (64, 63)}, "a 64x63 weight is too small",
    ),
    "a narrow weight": (
        "y = MatMul (x, w)", STACK, {"w": (64, 31)}, "a 64x31 weight is too small",
    ),
    "a GRU": (
        "y, h = GRU <hidden_size: int = 32> (x, w, r)", SEQUENCE,
        {"w": (1, 96, 40), "r": (1, 96, 32)}, "ONNX Runtime has no integer kernel for it",
    ),
    "an LSTM of few inputs": (
        "y, h = LSTM <hidden_size: int = 32> (x, w, r)", "(float[T, N, 8] x)",
        {"w": (1, 128, 8), "r": (1, 128, 32)}, "weights of 8 inputs are too few",
    ),
    "an LSTM with its batch first": (
        "y, h = LSTM <hidden_size: int = 32, layout: int = 1> (x, w, r)", SEQUENCE,
        {"w": (1, 128, 40), "r": (1, 128, 32)}, "its batch comes before its steps",
    ),
    "a convolution": (
        "y = Conv (x, w)", "(float[N, 16, 8, 8] x)", {"w": (16, 16, 1, 1)},
        "a convolution is 5 to 30 times slower than in float",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LEFT)
def test_model_without_a_product_that_gains_is_refused_with_the_reason(name: str) -> None:
    body, inputs, shapes, reason = LEFT[name]
    before = model(body, signature(inputs), **shapes)
    with pytest.raises(QConvertError, match="nothing to quantize") as refused:
        plan_of(before)
    assert reason in " ".join(refused.value.details)


def test_convolutions_stay_in_float_beside_a_product() -> None:
    body = "c = Conv (x, v) f = Flatten (c) y = Gemm (f, w)"
    before = model(body, signature("(float[N, 16, 4, 4] x)"), v=(16, 16, 1, 1), w=(256, 32))
    assert {layer.op: not layer.left for layer in plan_of(before).layers.values()} == {
        "Conv": False, "Gemm": True,
    }  # fmt: skip


@pytest.mark.parametrize("portable", [True, False])
def test_portable_weights_are_exact_on_every_x86(portable: bool) -> None:
    before = model("y = MatMul (x, w)", signature(STACK), w=(64, 64))
    after = rewritten(before, QuantizeConfig(portable=portable))
    assert [sums.operator for sums in find_saturation(after)] == ["MatMulInteger"]
    assert is_pair_safe(after) == portable


def test_fewer_bits_of_weights_use_fewer_integers() -> None:
    before = model("y = MatMul (x, w)", signature(STACK), **SQUARE)
    after = rewritten(before, QuantizeConfig(weight_bits=4))
    weight = after.graph.initializers["w_quantized"].const_value
    assert weight is not None
    assert np.abs(weight.numpy()).max() <= 7
