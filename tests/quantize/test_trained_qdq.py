"""Q/DQ graphs of other tools are read and written again without a change of their answers.

The graphs are written as the tools write them; `benchmarks/foreign_qat.py` makes files with the
tools themselves.
"""

import re
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from qconvert.backends.ort import open_cpu
from qconvert.core.errors import QConvertError
from qconvert.core.tensors import Tensors
from qconvert.graph import patterns
from qconvert.graph.passes import infer_shapes, name_nodes
from qconvert.quantize.apply_plan import apply_plan
from qconvert.quantize.scheme import Scheme
from qconvert.quantize.trained_plan import make_trained_plan
from qconvert.quantize.trained_qdq import TrainedModel, read_qdq
from tests.models import floats, from_text, ops
from tests.quantize.quantized_models import HEAD, scheme

IMAGES: Tensors = {"image": floats(4, 4, 6, 6, seed=7)}
SIGNATURE = "(float[N, 4, 6, 6] image) => (float[N, 4, 6, 6] y)"
INPUT = "q = QuantizeLinear (image, s, z) d = DequantizeLinear (q, s, z)"
STEPS = np.array([0.02, 0.01, 0.03, 0.015], np.float32)
INTEGERS = np.random.default_rng(3).integers(-127, 128, (4, 4, 1, 1)).astype(np.int8)

Array = NDArray[np.generic] | np.generic
NO_ARRAYS: Mapping[str, Array] = {}


def qdq(body: str, arrays: Mapping[str, Array] = NO_ARRAYS, signature: str = SIGNATURE) -> ir.Model:
    """Return a graph with its constants; those that no argument names have their usual values."""
    usual: dict[str, Array] = {
        "s": np.float32(0.03),
        "z": np.int8(0),
        "s2": np.float32(0.05),
        "z2": np.int8(0),
        "w": INTEGERS,
        "ws": STEPS,
        "wz": np.zeros(4, np.int8),
        "b": floats(4, seed=2),
    }
    used = {
        name: np.asarray(array) for name, array in {**usual, **arrays}.items() if _reads(body, name)
    }
    model = from_text(f"{HEAD}net {signature} {{ {body} }}", **used)
    return name_nodes(infer_shapes(model)[0])[0]


def _reads(body: str, name: str) -> bool:
    words = body.replace("(", " ").replace(")", " ").replace(",", " ").split()
    return name in words


def exact(name: str) -> Scheme:
    """Return a scheme that keeps the weights of the training, also where pairs can overflow."""
    return replace(scheme(name), portable=False)


def without_integer_bias(name: str) -> Scheme:
    """Return a scheme in which a bias stays float, so that nothing at all is rounded anew."""
    return replace(exact(name), integer_bias=False)


def largest_change(model: ir.Model, trained: TrainedModel, required: Scheme) -> float:
    """Return the largest difference of an output, both graphs running node by node."""
    saved = make_trained_plan(trained, required)
    result = apply_plan(trained.model, saved.plan, saved.weights)
    assert "DequantizeLinear" in ops(result)
    before, after = (open_cpu(graph, keep_qdq=True)(IMAGES) for graph in (model, result))
    assert list(before) == list(after)
    return max(float(np.abs(before[name] - after[name]).max()) for name in before)


CONV = "c = Conv (d, f, b)"
WEIGHT = "f = DequantizeLinear <axis: int = 0> (w, ws, wz)"
TO_OUTPUT = "p = QuantizeLinear (c, s2, z2) y = DequantizeLinear (p, s2, z2)"
NORM = "(c, gamma, beta, mean, variance)"
NORM_ARRAYS: dict[str, Array] = {
    "gamma": np.array([1.5, -0.5, 0.8, 1.0], np.float32),
    "beta": floats(4, seed=5),
    "mean": floats(4, seed=6),
    "variance": np.array([0.5, 1, 2, 4], np.float32),
}
CASES: dict[str, tuple[str, dict[str, Array], str]] = {
    "int8 as it is": (f"{INPUT} {WEIGHT} {CONV} {TO_OUTPUT}", {}, ""),
    "omitted zero points": (
        "q = QuantizeLinear (image, s, z) d = DequantizeLinear (q, s) "
        f"f = DequantizeLinear <axis: int = 0> (w, ws) {CONV} {TO_OUTPUT}",
        {},
        "",
    ),
    "uint8 with 128 as zero": (
        f"{INPUT} {WEIGHT} {CONV} {TO_OUTPUT}",
        {"z": np.uint8(128), "z2": np.uint8(128)},
        "",
    ),
    "uint8 weights with 128 as zero": (
        f"{INPUT} {WEIGHT} {CONV} {TO_OUTPUT}",
        {"w": (INTEGERS.astype(int) + 128).astype(np.uint8), "wz": np.full(4, 128, np.uint8)},
        "",
    ),
    "a weight of -128": (
        f"{INPUT} {WEIGHT} {CONV} {TO_OUTPUT}",
        {"w": np.where(INTEGERS < -100, -128, INTEGERS).astype(np.int8)},
        "",
    ),
    "one scale for the whole weight": (
        f"{INPUT} f = DequantizeLinear (w, ws, wz) {CONV} {TO_OUTPUT}",
        {"ws": np.float32(0.02), "wz": np.int8(0)},
        "",
    ),
    "float weights that the graph rounds": (
        f"{INPUT} wq = QuantizeLinear <axis: int = 0> (w, ws, wz) "
        f"f = DequantizeLinear <axis: int = 0> (wq, ws, wz) {CONV} {TO_OUTPUT}",
        {"w": floats(4, 4, 1, 1, seed=4)},
        "",
    ),
    "a Clip for four bits": (
        f"{INPUT} wq = QuantizeLinear <axis: int = 0> (w, ws, wz) k = Clip (wq, lo, hi) "
        f"f = DequantizeLinear <axis: int = 0> (k, ws, wz) {CONV} "
        "p = QuantizeLinear (c, s2, z2) g = Clip (p, lo, hi) y = DequantizeLinear (g, s2, z2)",
        {
            "w": floats(4, 4, 1, 1, seed=4),
            "ws": 10 * STEPS,
            "lo": np.int8(-7),
            "hi": np.int8(7),
            "s2": np.float32(0.2),
        },
        "grids of fewer than 256 integers",
    ),
    "an integer bias": (
        f"{INPUT} {WEIGHT} bf = DequantizeLinear <axis: int = 0> (bq, bs) "
        f"c = Conv (d, f, bf) {TO_OUTPUT}",
        {"bq": np.array([100, -2000, 30, 7], np.int32), "bs": STEPS * np.float32(0.03)},
        "",
    ),
    "scales in Constant nodes": (
        "k = Constant <value: tensor = float {0.03}> () "
        f"q = QuantizeLinear (image, k, z) d = DequantizeLinear (q, k, z) {WEIGHT} {CONV} "
        f"{TO_OUTPUT}",
        {},
        "",
    ),
    "repeated pairs": (
        f"{INPUT} e = QuantizeLinear (d, s, z) h = DequantizeLinear (e, s, z) {WEIGHT} "
        f"c = Conv (h, f, b) {TO_OUTPUT}",
        {},
        "repeated Q/DQ pairs",
    ),
    "a second grid behind the first": (
        f"{INPUT} e = QuantizeLinear (d, s2, z2) h = DequantizeLinear (e, s2, z2) {WEIGHT} "
        f"c = Conv (h, f, b) {TO_OUTPUT}",
        {},
        "",
    ),
    "two grids of one tensor": (
        f"{INPUT} e = QuantizeLinear (image, s2, z2) h = DequantizeLinear (e, s2, z2) {WEIGHT} "
        f"{CONV} y = Add (c, h)",
        {},
        "",
    ),
    "normalization behind a quantized weight": (
        f"{INPUT} {WEIGHT} {CONV} n = BatchNormalization {NORM} "
        "p = QuantizeLinear (n, s2, z2) y = DequantizeLinear (p, s2, z2)",
        NORM_ARRAYS,
        "normalizations folded into integer weights",
    ),
    "a quantizer between convolution and normalization": (
        f"{INPUT} {WEIGHT} {CONV} p = QuantizeLinear (c, s2, z2) "
        "o = DequantizeLinear (p, s2, z2) y = BatchNormalization (o, gamma, beta, mean, variance)",
        NORM_ARRAYS,
        "",
    ),
    "a quantizer between convolution and Relu": (
        f"{INPUT} {WEIGHT} {CONV} p = QuantizeLinear (c, s2, z2) "
        "o = DequantizeLinear (p, s2, z2) r = Relu (o) y = Conv (r, f)",
        {},
        "quantizers between an operator and its activation",
    ),
    "a quantizer before a Clip whose limit is off the grid": (
        f"{INPUT} {WEIGHT} {CONV} p = QuantizeLinear (c, s2, z2) "
        "o = DequantizeLinear (p, s2, z2) r = Clip (o, none, limit) y = Conv (r, f)",
        {"none": np.float32(0), "limit": np.float32(1.024)},
        "",
    ),
    "Concat of two grids": (
        f"{INPUT} e = QuantizeLinear (image, s2, z2) h = DequantizeLinear (e, s2, z2) "
        f"all = Concat <axis: int = 1> (d, h) part = Slice (all, start, end, one) {WEIGHT} "
        f"y = Conv (part, f, b)",
        {"start": np.array([2]), "end": np.array([6]), "one": np.array([1])},
        "",
    ),
    "a weight that is transposed behind its quantizer": (
        f"{INPUT} {WEIGHT} t = Transpose <perm: ints = [0, 1, 3, 2]> (f) "
        f"c = Conv <pads: ints = [1, 0, 1, 0]> (d, t, b) {TO_OUTPUT}",
        {"w": np.random.default_rng(3).integers(-127, 128, (4, 4, 1, 3)).astype(np.int8)},
        "",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_plan_of_a_read_graph_computes_the_same_answers(case: str) -> None:
    body, arrays, repair = CASES[case]
    model = qdq(body, arrays)
    trained = read_qdq(model)
    assert not {"QuantizeLinear", "DequantizeLinear"} & set(ops(trained.model))
    assert (repair in trained.repairs) == bool(repair)
    for name in ("cpu", "tensorrt"):
        assert largest_change(model, trained, without_integer_bias(name)) < 2e-6


@pytest.mark.parametrize(("dtype", "zero_point"), [(np.uint8, 37), (np.int8, -91), (np.uint8, 0)])
def test_asymmetric_activations_have_the_same_grid_on_the_cpu(
    dtype: type[np.generic], zero_point: int
) -> None:
    z = np.array(zero_point, dtype)
    model = qdq(f"{INPUT} {WEIGHT} {CONV} {TO_OUTPUT}", {"z": z, "z2": z})
    assert largest_change(model, read_qdq(model), without_integer_bias("cpu")) < 2e-6


def test_integer_bias_comes_back_as_the_same_integers() -> None:
    body, arrays, _ = CASES["an integer bias"]
    trained = read_qdq(qdq(body, arrays))
    saved = make_trained_plan(trained, exact("cpu"))
    result = apply_plan(trained.model, saved.plan, saved.weights)
    conv = next(node for node in result.graph if node.op_type == "Conv")
    assert conv.inputs[2] is not None
    bias = conv.inputs[2].producer()
    assert bias is not None
    stored = patterns.constant_array(bias.inputs[0])
    assert stored is not None
    assert stored.tolist() == np.asarray(arrays["bq"]).tolist()


def test_float_model_keeps_the_weights_of_the_training() -> None:
    body, arrays, _ = CASES["float weights that the graph rounds"]
    trained = read_qdq(qdq(body, arrays))
    conv = next(node for node in trained.model.graph if node.op_type == "Conv")
    weight = patterns.constant_array(conv.inputs[1])
    assert weight is not None
    assert np.array_equal(weight, np.asarray(arrays["w"]))


def test_activation_that_a_quantizer_replaced_is_a_clip_of_the_float_model() -> None:
    model = qdq(f"{INPUT} {WEIGHT} {CONV} {TO_OUTPUT}", {"z2": np.uint8(0), "s2": np.float32(1)})
    trained = read_qdq(model)
    assert "Clip" in ops(trained.model)
    outputs = open_cpu(trained.model)(IMAGES)["y"]
    assert outputs.min() == 0
    assert np.abs(outputs - open_cpu(model, keep_qdq=True)(IMAGES)["y"]).max() < 1.5


def test_relu_before_a_symmetric_grid_has_quantizers_on_both_sides_on_the_cpu() -> None:
    body = f"{INPUT} {WEIGHT} {CONV} r = Relu (c) p = QuantizeLinear (r, s2, z2) "
    model = qdq(body + "y = DequantizeLinear (p, s2, z2)")
    trained = read_qdq(model)
    for name, activation in (("cpu", "LeakyRelu"), ("tensorrt", "Relu")):
        required = without_integer_bias(name)
        assert largest_change(model, trained, required) < 2e-6
        saved = make_trained_plan(trained, replace(required, integer_bias=name == "cpu"))
        written = ops(apply_plan(trained.model, saved.plan, saved.weights))
        assert activation in written
        assert written[written.index(activation) - 1] == (
            "DequantizeLinear" if name == "cpu" else "Conv"
        )


@pytest.mark.parametrize(
    ("body", "arrays", "reason"),
    [
        ("y = DequantizeLinear (w, ws, wz)", {}, "returns the constant `y`"),
        (
            "q = QuantizeLinear (image, s, z) d = DequantizeLinear (q, s2, z) y = Relu (d)",
            {},
            "with another scale or zero point",
        ),
        (f"{INPUT} y = Relu (d)", {"z": np.uint16(0)}, "quantizes to uint16"),
        (
            "q = QuantizeLinear <axis: int = 1> (image, ws, wz) "
            "d = DequantizeLinear <axis: int = 1> (q, ws, wz) y = Relu (d)",
            {},
            "a scale for each channel of an activation",
        ),
        (
            "q = QuantizeLinear (image, s, z) m = MaxPool <kernel_shape: ints = [1, 1]> (q) "
            "y = DequantizeLinear (m, s, z)",
            {},
            r"\(MaxPool\) reads the integers",
        ),
        (
            "q, k, v = DynamicQuantizeLinear (image) y = DequantizeLinear (q, k, v)",
            {},
            "chooses its scale anew",
        ),
    ],
)
def test_graph_that_cannot_be_read_exactly_is_refused_with_the_node(
    body: str, arrays: dict[str, Array], reason: str
) -> None:
    signature = SIGNATURE.replace("[N, 4, 6, 6] y", "[4, 4, 1, 1] y") if "ws" in body[:30] else ""
    with pytest.raises(QConvertError) as error:
        read_qdq(qdq(body, arrays, signature or SIGNATURE))
    assert error.match("cannot be read without changing its answers")
    assert any(re.search(reason, line) for line in error.value.details)


def test_scale_of_zero_is_refused() -> None:
    with pytest.raises(QConvertError, match="not above zero"):
        read_qdq(qdq(f"{INPUT} y = Relu (d)", {"s": np.float32(0)}))


def test_scale_that_the_graph_computes_is_refused() -> None:
    body = "k = ReduceMax <keepdims: int = 0> (image) q = QuantizeLinear (image, k, z) "
    with pytest.raises(QConvertError, match="dynamic quantization"):
        read_qdq(qdq(body + "y = DequantizeLinear (q, k, z)"))


def test_operators_that_compute_in_integers_are_refused_with_the_format_to_choose() -> None:
    body = f"{INPUT} {WEIGHT} q2 = QLinearConv (q, s, z, w, ws, wz, s2, z2) "
    with pytest.raises(QConvertError) as error:
        read_qdq(qdq(body + "y = DequantizeLinear (q2, s2, z2)"))
    assert "QuantFormat.QDQ" in (error.value.hint or "")
    assert "QLinearConv" in error.value.details[0]


@pytest.mark.parametrize(
    ("case", "remark"),
    [
        ({"wz": np.array([3, 0, 0, 0], np.int8)}, "its weight is asymmetric"),
        ({"ws": np.full((4, 1, 1, 1), 0.02, np.float32)}, ""),
    ],
)
def test_weight_without_integers_for_the_kernels_stays_exact_in_float(
    case: dict[str, Array], remark: str
) -> None:
    if not remark:  # a scale for each input channel
        body = f"{INPUT} f = DequantizeLinear <axis: int = 1> (w, ws, wz) {CONV} {TO_OUTPUT}"
        model, remark = qdq(body), "the scales of its weight differ within an output channel"
    else:
        weight = INTEGERS.copy()
        weight[0] = -127
        model = qdq(f"{INPUT} {WEIGHT} {CONV} {TO_OUTPUT}", {"w": weight, **case})
    trained = read_qdq(model)
    assert any(text.startswith(remark) for text in trained.remarks.values())
    assert largest_change(model, trained, without_integer_bias("cpu")) < 2e-6


def test_layer_of_which_only_the_weight_is_quantized_is_left_in_float() -> None:
    model = qdq(f"{WEIGHT} c = Conv (image, f, b) {TO_OUTPUT}")
    trained = read_qdq(model)
    plan = make_trained_plan(trained, exact("cpu")).plan
    (conv,) = (layer for layer in plan.layers.values() if layer.op == "Conv")
    assert "only its weight" in (conv.left or conv.note)
    assert largest_change(model, trained, without_integer_bias("cpu")) < 2e-6


def test_symmetric_backend_refuses_asymmetric_activations_with_their_names() -> None:
    trained = read_qdq(qdq(f"{INPUT} {WEIGHT} {CONV} {TO_OUTPUT}", {"z": np.int8(-5)}))
    with pytest.raises(QConvertError, match="has only symmetric activations") as error:
        make_trained_plan(trained, exact("tensorrt"))
    assert "`image`, read by `Conv_0`: zero point -5 in int8" in error.value.details
    assert "--backend cpu" in (error.value.hint or "")


def test_few_integers_above_zero_fit_the_symmetric_grid() -> None:
    clip = "q = QuantizeLinear (image, s, z) k = Clip (q, lo, hi) d = DequantizeLinear (k, s, z) "
    arrays: dict[str, Array] = {"z": np.uint8(0), "lo": np.uint8(0), "hi": np.uint8(15)}
    model = qdq(f"{clip} {WEIGHT} y = Conv (d, f, b)", arrays)
    assert largest_change(model, read_qdq(model), exact("tensorrt")) < 2e-6
