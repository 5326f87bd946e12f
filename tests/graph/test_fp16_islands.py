"""The nodes that stay in float32 when the rest becomes half precision, and the reasons."""

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import ArrayLike, NDArray

from qconvert.backends.ort import open_cpu
from tests.graph.fp16_models import (
    first_output,
    graph,
    halved,
    node,
    read_types,
    require_close,
    rounded_output,
)
from tests.models import floats, from_text, ops


def test_tensor_that_overflows_keeps_producer_and_readers_in_float32() -> None:
    model = graph(
        "g (float[N, 4] x) => (float[N, 4] y) "
        "{ r = Relu (x) big = Mul (r, w) back = Div (big, w) y = Add (back, r) }",
        w=np.full(4, 60000, np.float32),
    )
    feeds = {"x": np.full((2, 4), 3, np.float32)}
    np.testing.assert_array_equal(rounded_output(halved(model).model, feeds), np.inf)
    result = halved(model, {"x": 3.0, "big": 180000.0, "back": 3.0, "y": 6.0})
    assert result.islands == {
        "big": "`big` reaches 1.8e+05, float16 only 65504",
        "back": "`big` reaches 1.8e+05, float16 only 65504",
    }
    np.testing.assert_array_equal(rounded_output(result.model, feeds), 6)
    require_close(model, result.model, feeds)


MOVED = "it only moves values between float32 nodes"
HALF: dict[str, list[str]] = {}
# A graph, its measured ranges, the islands, and the input types of an operator.
CASES: dict[str, tuple[str, dict[str, float], dict[str, str], dict[str, list[str]]]] = {
    "a value at half of the limit": (
        "float[N] x) => (float[N] y) { h = Relu (x) y = Neg (h) }", {"h": 32752.0}, {}, HALF
    ),
    "a value beyond half of the limit": (
        "float[N] x) => (float[N] y) { h = Relu (x) y = Neg (h) }", {"h": 32753.0},
        dict.fromkeys("hy", "`h` reaches 3.275e+04, float16 only 65504"), {"Neg": ["FLOAT"]},
    ),
    "a constant that overflows": (
        "float[N, 4] x) => (float[N, 4] y) { h = Relu (x) a = Add (h, large) y = Sub (a, large) }",
        {}, dict.fromkeys("ay", "`large` reaches 1e+05, float16 only 65504"),
        {"Add": ["FLOAT", "FLOAT"]},
    ),
    "an infinite constant": (
        "float[N, 2] x) => (float[N, 2] y) { m = Add (x, mask) y = Softmax (m) }", {}, {},
        {"Add": ["FLOAT16", "FLOAT16"]},
    ),
    "a mover between float32 nodes": (
        "float[2, 3] x) => (float[3, 1] y) { a = Exp (x) "
        "t = Transpose <perm: ints = [1, 0]> (a) y = ReduceSum (t, axis) }",
        {"x": 30.0},
        {"a": "e to the power of 30 exceeds float16", "t": MOVED,
         "y": "it adds up values whose range was not measured"}, {"Transpose": ["FLOAT"]},
    ),
    "a sum of unknown length": (
        "float[N, H] x) => (float[N] y) { y = ReduceSum <keepdims: int = 0> (x, axis) }",
        {"x": 1.0}, {"y": "how many values it adds up is unknown"}, HALF,
    ),
    "a layer norm with float32 statistics": (
        "float[N, 256] x) => (float[N, 256] y) { y = LayerNormalization (x, ones) }",
        {"x": 1000.0}, {}, {"LayerNormalization": ["FLOAT16", "FLOAT16"]},
    ),
    "a sequence": (
        "float[N, 4] x) => (float[N, 4] y) { a = Relu (x) b = Neg (a) "
        "s = SequenceConstruct (a, b) t = SequenceAt (s, one) y = Abs (t) }",
        {},
        {"s": "`s` is not a tensor, or its type is unknown",
         "t": "`s` is not a tensor, or its type is unknown"},
        {"SequenceConstruct": ["FLOAT", "FLOAT"]},
    ),
    "an operator without a schema": (
        "float[N, 4] x) => (float[N, 4] y) "
        "<float[N, 4] b> { a = Relu (x) b = my.Op (a) y = Neg (b) }",
        {}, {"b": "the input and output types of `my.Op` are unknown"},
        {"Op": ["FLOAT"], "Neg": ["FLOAT16"]},
    ),
    "a tensor of unknown type": (
        "float[N, 4] x) => (float[N, 4] y) { a = Relu (x) b = my.Op (a) y = Add (a, b) }", {},
        {"b": "the input and output types of `my.Op` are unknown",
         "y": "`b` is not a tensor, or its type is unknown"}, {"Relu": ["FLOAT16"]},
    ),
    "a function of the model": (
        "float[N, 4] x) => (float[N, 4] y) "
        "<float[N, 4] b> { a = Relu (x) b = my.twice (a) y = Neg (b) }\n"
        '<domain: "my", opset_import: ["": 20]>\ntwice (p) => (q) { q = Add (p, p) }',
        {}, {"b": "it holds a graph of its own"}, {"twice": ["FLOAT"]},
    ),
}  # fmt: skip
CONSTANTS: dict[str, NDArray[np.generic]] = {
    "large": np.full(4, 1e5, np.float32),
    "mask": np.array([0, -np.inf], np.float32),
    "ones": np.ones(256, np.float32),
    "axis": np.array([1]),
    "one": np.array(1),
}


@pytest.mark.parametrize("case", CASES)
def test_islands_have_reasons_and_outputs_stay_close(case: str) -> None:
    text, magnitudes, islands, read = CASES[case]
    opsets = '"": 20, "my": 1' if "my." in text else '"": 20'
    constants = {name: array for name, array in CONSTANTS.items() if f"{name})" in text}
    head = f"<ir_version: 10, opset_import: [{opsets}]>\ng ("
    model = from_text(head + text, **constants)
    result = halved(model, magnitudes)
    assert result.islands == islands
    for op, kinds in read.items():
        assert read_types(result.model, op) == kinds
    if "my.Op" not in text and "H]" not in text:
        require_close(model, result.model)


@pytest.mark.parametrize("op", ["Max", "Min", "Clip"])
def test_clamping_bound_beyond_float16_is_not_an_island(op: str) -> None:
    lowest = np.float32(np.finfo(np.float32).min if op != "Min" else np.finfo(np.float32).max)
    model = graph(f"g (float[N, 4] x) => (float[N, 4] y) {{ y = {op} (x, w) }}", w=lowest)
    result = halved(model)
    assert result.islands == {}
    require_close(model, result.model)


def test_epsilon_does_not_become_zero_in_float16() -> None:
    model = graph(
        "g (float[2, 3] x) => (float[2, 3] y) "
        "{ n = ReduceL2 <keepdims: int = 1> (x, axis) m = Max (n, eps) y = Div (x, m) }",
        axis=[1],
        eps=1e-12,
    )
    result = halved(model, {"x": 1.0, "n": 1.0})
    feeds = {"x": np.array([[0, 0, 0], [0.3, 0.4, 0]], np.float32)}
    assert result.islands == {}
    np.testing.assert_allclose(
        rounded_output(result.model, feeds), first_output(model, feeds), atol=1e-3
    )
    require_close(model, result.model, feeds)


SUMS = {
    "ReduceSum": ("ReduceSum (x, a)", 100, "it adds up 1024 values of up to 100"),
    "ReduceMean": ("ReduceMean (x, a)", 100, "it adds up 1024 values of up to 100"),
    "ReduceL2": ("ReduceL2 (x, a)", 10, "it adds up 1024 squares of values of up to 10"),
    "ReduceLogSumExp": (
        "ReduceLogSumExp (x, a)",
        4,
        "it adds up 1024 powers of e with exponents of up to 4",
    ),
    "GlobalAveragePool": ("GlobalAveragePool (x)", 100, "it adds up 1024 values of up to 100"),
    "AveragePool": ("AveragePool <kernel_shape: ints = [8, 8]> (x)", 600, "it adds up 64 values"),
    "InstanceNormalization": ("InstanceNormalization (x, w, w)", 10, "it adds up 1024 squares"),
    "LpNormalization": ("LpNormalization <axis: int = 3> (x)", 40, "it adds up 32 squares"),
    "LRN": ("LRN <size: int = 3> (x)", 200, "it adds up 3 squares of values of up to 200"),
    "LayerNormalization": (
        "LayerNormalization <axis: int = 1, stash_type: int = 10> (x, v)",
        10,
        "it adds up 2048 squares of values of up to 10",
    ),
    "Exp": ("Exp (x)", 11, "e to the power of 11"),
}


def summing(op: str) -> ir.Model:
    text = (
        "g (float[N, 2, 32, 32] image) => (float[a, b, c, d] y) "
        f"{{ x = Relu (image) y = {SUMS[op][0]} }}"
    )
    constants: dict[str, ArrayLike] = {
        "a": [2, 3],
        "w": np.ones(2, np.float32),
        "v": np.ones((2, 32, 32), np.float32),
    }
    return graph(text, **{name: array for name, array in constants.items() if f"{name})" in text})


@pytest.mark.parametrize("op", SUMS)
def test_sum_that_may_overflow_is_computed_in_float32(op: str) -> None:
    _, top, reason = SUMS[op]
    model = summing(op)
    result = halved(model, {"image": 1.0, "x": float(top)})
    assert list(result.islands) == ["y"]
    assert result.islands["y"].startswith(reason)
    assert read_types(result.model, op)[0] == "FLOAT"
    assert halved(model, {"image": 1.0, "x": 0.1}).islands == {}
    feeds = {"image": np.abs(floats(1, 2, 32, 32))}
    if op != "LayerNormalization":  # ONNX Runtime refuses that stash type
        require_close(model, result.model, feeds)


def test_heavy_sums_stay_in_float32_without_calibration() -> None:
    islands = {op for op in SUMS if halved(summing(op)).islands}
    assert islands == set(SUMS) - {"GlobalAveragePool", "AveragePool", "Exp"}


def test_sum_of_an_unmeasured_tensor_stays_in_float32() -> None:
    for op in SUMS:
        (reason,) = halved(summing(op), {"image": 1.0}).islands.values()
        assert "was not measured" in reason


def test_decomposed_norm_computes_squares_and_roots_in_float32() -> None:
    model = graph(
        "g (float[N, 64] x) => (float[N, 64] y) { s = Pow (x, two) m = ReduceMean (s, axis) "
        "e = Add (m, eps) r = Sqrt (e) y = Div (x, r) }",
        two=2.0,
        axis=[-1],
        eps=1e-06,
    )
    result = halved(model)
    assert set(result.islands) == {"s", "m", "e", "r"}
    assert ops(result.model) == [
        *("Cast", "Pow", "ReduceMean", "Add", "Sqrt", "Cast", "Div", "Cast")
    ]
    feeds = {"x": np.full((2, 64), 300, np.float32)}  # and their squares are beyond float16
    np.testing.assert_allclose(rounded_output(result.model, feeds), 1, rtol=1e-2)
    require_close(model, result.model, feeds)


def test_softmax_over_long_rows_stays_in_float32() -> None:
    text = "g (float[N, {}] x) => (float[N, {}] y) {{ h = Neg (x) y = Softmax (h) }}"
    assert halved(graph(text.format(2048, 2048))).islands == {}
    result = halved(graph(text.format(5000, 5000)))
    assert result.islands == {"y": "its rows of 5000 are longer than float16 can count"}
    require_close(graph(text.format(5000, 5000)), result.model)


def test_sizes_and_positions_stay_in_float32() -> None:
    model = graph(
        "g (float[N, 3001] x) => (float[N, 1] y, int64[1] n) { s = Shape <start: int = 1> (x) "
        "f = Cast <to: int = 1> (s) t = Mul (f, one) n = Cast <to: int = 7> (t) "
        "h = Neg (x) m = ReduceMax (h, s1) y = Div (m, t) }",
        one=1.0,
        s1=[1],
    )
    result = halved(model)
    assert set(result.islands) == {"f", "t"}
    assert "whole numbers" in result.islands["t"]
    assert open_cpu(result.model)({"x": floats(1, 3001)})["n"] == 3001


def test_operator_without_a_half_type_stays_in_float32() -> None:
    model = graph(
        "g (float[1, 6, 4] b, float[1, 1, 6] s) => (int64[n, 3] chosen, float[1, 6, 4] c) "
        "{ c = Relu (b) chosen = NonMaxSuppression (c, s, most) }",
        most=[2],
    )
    result = halved(model)
    assert result.islands == {"chosen": "`NonMaxSuppression` has no float16 in opset 20"}
    assert read_types(result.model, "NonMaxSuppression")[1] == "FLOAT"
    boxes = np.array([[[0, 0, k, k] for k in range(1, 7)]], np.float32)
    feeds = {"b": boxes, "s": np.arange(6, dtype=np.float32).reshape(1, 1, 6)}
    np.testing.assert_array_equal(first_output(result.model, feeds), first_output(model, feeds))


def test_subgraph_keeps_reading_float32() -> None:
    model = graph(
        "g (float[N, 4] x, bool c) => (float[N, 4] y) { h = Mul (x, w) "
        "i = If (c) <then_branch = a () => (float[N, 4] p) { p = Mul (h, w) }, "
        "else_branch = b () => (float[N, 4] q) { q = Neg (x) }> y = Add (i, h) }",
        w=floats(4),
    )
    result = halved(model)
    assert result.islands == {"i": "it holds a graph of its own"}
    inside = node(result.model, "If").attributes["then_branch"].as_graph()
    assert [str(value and value.dtype) for value in inside[0].inputs] == ["FLOAT", "FLOAT"]
    assert read_types(result.model, "Add")[0] == "FLOAT16"
    for truth in (True, False):
        require_close(model, result.model, {"x": floats(2, 4), "c": np.array(truth)})
