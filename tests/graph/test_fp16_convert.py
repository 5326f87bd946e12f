"""A graph converted to half precision: the types of its tensors, and its outputs."""

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike

from qconvert.backends.ort import open_cpu
from qconvert.core import onnx_io
from qconvert.core.errors import QConvertError
from qconvert.graph.fp16.convert import HalfModel, HalfPrecision, convert_to_half
from tests.graph.fp16_models import (
    WIDE,
    first_output,
    graph,
    halved,
    newer,
    node,
    read_types,
    require_close,
    require_valid,
    rounded_output,
    types,
)
from tests.models import floats, ops, tiny
from tests.strongly_typed import build

# Types of tensors


def test_network_computes_in_half_between_two_casts() -> None:
    model = tiny()
    model.metadata_props["made by"] = "a test"
    result = halved(model)
    assert ops(model) == ["Conv", "Relu", "GlobalAveragePool", "Flatten", "Gemm"]
    assert ops(result.model) == ["Cast", *ops(model), "Cast"]
    assert types(result.model) == {
        "image": "FLOAT",
        **dict.fromkeys(["conv_weight", "conv_bias", "head_weight", "head_bias"], "FLOAT16"),
        **dict.fromkeys(["image_fp16", "conv", "relu", "pooled", "flat"], "FLOAT16"),
        "scores_fp16": "FLOAT16",
        "scores": "FLOAT",
    }
    assert result.islands == {}
    assert result.model.metadata_props == {"made by": "a test"}
    require_close(model, result.model)


def test_inputs_and_outputs_are_half_without_keep_io() -> None:
    result = convert_to_half(tiny(), "fp16", {}, keep_io=False)
    require_valid(result.model)
    assert ops(result.model) == ops(tiny())
    assert set(types(result.model).values()) == {"FLOAT16"}
    image = floats(2, 3, 8, 8)
    got = first_output(result.model, {"image": image.astype(np.float16)})
    np.testing.assert_allclose(got, first_output(tiny(), {"image": image}), rtol=5e-3, atol=5e-3)


def test_half_input_beyond_the_range_is_rejected() -> None:
    with pytest.raises(QConvertError, match="`image` reaches 1e\\+06") as caught:
        convert_to_half(tiny(), "fp16", {"image": WIDE}, keep_io=False)
    assert "float32" in caught.value.hint


Case = tuple[str, dict[str, ArrayLike], int | list[str | None], dict[str, str]]

SLOTS: dict[str, Case] = {
    "Resize": (
        'h = Relu (x) y = Resize <mode: string = "linear"> (h, , scales)',
        {"scales": np.array([1, 1, 2, 2], np.float32)},
        ["FLOAT16", None, "FLOAT"],
        {"y_fp16": "FLOAT16"},
    ),
    "Concat": ("y = Concat <axis: int = 1> (x, w, x)", {"w": floats(1, 4, 4, 4)}, 3, {}),
    "Max": ("y = Max (x, w, x, v)", {"w": floats(1), "v": floats(1, 4, 1, 1)}, 4, {}),
    "LayerNormalization": (
        "y, mean, spread = LayerNormalization <axis: int = 1> (x, w)",
        {"w": floats(4, 4, 4)},
        2,
        {"y_fp16": "FLOAT16", "mean": "FLOAT", "spread": "FLOAT"},
    ),
    "Gather": ("y = Gather <axis: int = 1> (x, i)", {"i": [2, 0]}, ["FLOAT16", "INT64"], {}),
    "Clip": ("y = Clip (x, , w)", {"w": 0.5}, ["FLOAT16", None, "FLOAT16"], {}),
    "BatchNormalization": (
        "y = BatchNormalization (x, w, w, w, w)", {"w": np.ones(4, np.float32)}, 5, {}
    ),
}  # fmt: skip


@pytest.mark.parametrize("op", SLOTS)
def test_half_conversion_follows_operator_input_types(op: str) -> None:
    body, weights, slots, output_types = SLOTS[op]
    model = graph(f"g (float[1, 4, 4, 4] x) => (float[a, b, c, d] y) {{ {body} }}", **weights)
    result = halved(model)
    expected = ["FLOAT16"] * slots if isinstance(slots, int) else slots
    assert read_types(result.model, op) == expected
    assert types(result.model).items() >= output_types.items()
    require_close(model, result.model)


NAMED = {
    "a cast of integers": "c = Cast <to: int = 1> (i)",
    "a cast of truth": "b = Cast <to: int = 9> (i) c = Cast <to: int = 1> (b)",
    "a cast like": "c = CastLike (i, x)",
    "zeros by default": "s = Shape (x) c = ConstantOfShape (s)",
    "a number repeated": "s = Shape (x) c = ConstantOfShape <value: tensor = float[1] {2.5}> (s)",
    "a constant tensor": "c = Constant <value: tensor = float[1] {2.5}> ()",
    "a constant number": "c = Constant <value_float: float = 2.5> ()",
    "constant numbers": "c = Constant <value_floats: floats = [2.5, 1.5, 0.5]> ()",
}


@pytest.mark.parametrize("case", NAMED)
def test_type_attribute_is_set_to_half(case: str) -> None:
    model = graph(
        "g (float[3, 3] x, int64[3, 3] i) => (float[3, 3] y) { " + NAMED[case] + " y = Add (x, c) }"
    )
    result = halved(model)
    assert read_types(result.model, "Add")[0] == read_types(result.model, "Add")[1] == "FLOAT16"
    assert [op for op in ops(result.model) if op != "Constant"].count("Add") == 1
    assert result.islands == {}
    require_close(model, result.model)


def test_integers_bools_and_doubles_keep_their_types() -> None:
    model = graph(
        "g (int64[N, 3] i, double[N, 3] d) => (int64[N, 3] a, double[N, 3] b) "
        "{ a = Add (i, i) b = Mul (d, d) }"
    )
    assert convert_to_half(model, "fp16", {}) == HalfModel(model, {})


def test_half_model_is_returned_unchanged() -> None:
    first = convert_to_half(tiny(), "fp16", {"conv": WIDE}).model
    assert convert_to_half(first, "fp16", {"conv": WIDE}) == HalfModel(first, {})
    assert convert_to_half(first, "bf16", {}) == HalfModel(first, {})


def test_cast_from_half_in_the_model_is_removed() -> None:
    model = graph(
        "g (float16[N, 4] x) => (float[N, 2] y) "
        "{ wide = Cast <to: int = 1> (x) y = MatMul (wide, w) }",
        w=floats(4, 2),
    )
    result = halved(model)
    assert ops(result.model) == ["MatMul", "Cast"]
    require_close(model, result.model)


# Tensors read in both types


def test_readers_share_one_cast_and_weights_are_stored_in_both_types() -> None:
    model = graph(
        "g (float[N, 4] x) => (float[N, 4] y) { h = Relu (x) a = Mul (h, w) b = Mul (h, w) "
        "c = Neg (h) d = Neg (h) s = Add (a, b) t = Add (c, d) y = Add (s, t) }",
        w=floats(4),
    )
    result = halved(model, {"a": WIDE, "b": WIDE, "s": WIDE})
    # s and y have float32 inputs; the products share one copy of h and one of w.
    assert set(result.islands) == {"a", "b", "s", "y"}
    readers = [
        value for node in result.model.graph for value in node.inputs if node.op_type == "Mul"
    ]
    assert [str(value and value.name) for value in readers] == ["h_fp32", "w", "h_fp32", "w"]
    assert sorted(ops(result.model)) == sorted([*ops(model), "Cast", "Cast", "Cast"])
    require_close(model, result.model)

    half_too = halved(model, {"a": WIDE})
    assert types(half_too.model).items() >= {"w": "FLOAT", "w_fp16": "FLOAT16"}.items()
    require_close(model, half_too.model)


def test_shape_and_cast_read_float32_without_a_cast() -> None:
    model = graph(
        "g (float[N, 4] x) => (int64[2] s, int64[N, 1] i, float[N, 1] y) "
        "{ h = Relu (x) t = ReduceSum (h, a) "
        "s = Shape (t) i = Cast <to: int = 7> (t) y = Neg (t) }",
        a=[1],
    )
    result = halved(model)
    assert list(result.islands) == ["t"]
    assert read_types(result.model, "Shape") == ["FLOAT"]
    readers = [
        node.op_type
        for node in result.model.graph
        if node.inputs[0] is not None and node.inputs[0].name == "t"
    ]
    assert sorted(readers) == ["Cast", "Cast", "Shape"]  # one Cast is the model's own


def test_cast_output_gets_a_unique_name() -> None:
    model = graph("g (float[N] x) => (float[N] y) { x_fp16 = Relu (x) y = Exp (x_fp16) }")
    result = halved(model)
    assert node(result.model, "Relu").inputs[0] is not None
    assert types(result.model).items() >= {"x": "FLOAT", "x_fp16": "FLOAT16"}.items()
    assert ops(result.model) == ["Cast", "Relu", "Exp", "Cast"]
    require_close(model, result.model)


RETURNED = {
    "an input": ("float[N, 3] x", "h = Relu (x) y = Neg (h)"),
    "a weight": ("float[3] w", "h = Relu (x) y = Add (h, w)"),
    "a weight read in float32": ("float[3] w", "h = Relu (x) t = Mul (h, w) y = Neg (t)"),
    "a constant": ("float c", "c = Constant <value_float: float = 2.5> () y = Add (x, c)"),
    "what is read on": ("float[N, 3] h", "h = Relu (x) y = Neg (h)"),
    "what is read on in float32": ("float[N, 3] h", "h = Relu (x) t = Exp (h) y = Neg (t)"),
}  # fmt: skip


@pytest.mark.parametrize("keep_io", [True, False])
@pytest.mark.parametrize("case", RETURNED)
def test_graph_outputs_keep_their_names(case: str, keep_io: bool) -> None:
    output, body = RETURNED[case]
    weights: dict[str, ArrayLike] = {"w": floats(3)} if "w)" in body else {}
    model = graph(f"g (float[N, 3] x) => ({output}, float[N, 3] y) {{ {body} }}", **weights)
    if weights:
        model.graph.outputs[0] = model.graph.initializers["w"]
    before = onnx_io.serialize(model)
    result = convert_to_half(model, "fp16", {"t": WIDE}, keep_io=keep_io)
    assert onnx_io.serialize(model) == before
    require_valid(result.model)
    assert [value.name for value in result.model.graph.outputs] == [output.split()[-1], "y"]
    dtype = np.float32 if keep_io else np.float16
    x = floats(2, 3)
    got = open_cpu(result.model)({"x": x.astype(dtype)})
    for name, value in open_cpu(model)({"x": x}).items():
        assert got[name].dtype == dtype
        np.testing.assert_allclose(got[name], value, rtol=5e-3)


# Quantized models

QDQ = (
    "g (float[N, 4] x) => (float[N, 3] y) { r = Relu (x) q = QuantizeLinear (r, s, z) "
    "d = DequantizeLinear (q, s, z) w = DequantizeLinear <axis: int = 0> (wq, ws, wz) "
    "b = DequantizeLinear <axis: int = 0> (bq, bs) y = Gemm <transB: int = 1> (d, w, b) }"
)


def quantized(scale: float) -> ir.Model:
    return graph(
        QDQ,
        s=scale,
        z=np.zeros((), np.int8),
        wq=np.arange(-6, 6, dtype=np.int8).reshape(3, 4),
        ws=np.array([0.1, 0.2, 0.3], np.float32),
        wz=np.zeros(3, np.int8),
        bq=np.array([1000, -1000, 3], np.int32),
        bs=np.array([0.1, 0.2, 0.3], np.float32) * np.float32(scale),
    )


def test_quantization_scales_become_half() -> None:
    model = quantized(0.02)
    result = halved(model)
    assert result.islands == {"b": "it reads int32, which float16 cannot hold"}
    assert (
        types(result.model).items()
        >= {
            **{"s": "FLOAT16", "ws": "FLOAT16", "bs": "FLOAT", "z": "INT8", "wq": "INT8"},
            **{"q": "INT8", "d": "FLOAT16", "w": "FLOAT16", "b": "FLOAT", "b_fp16": "FLOAT16"},
        }.items()
    )
    np.testing.assert_allclose(
        first_output(result.model), first_output(model), rtol=1e-2, atol=2e-2
    )


def test_scale_that_underflows_keeps_its_qdq_pair_in_float32() -> None:
    result = halved(quantized(1e-9))
    assert result.islands["q"] == "its scale of 1e-09 would be 0 in float16"
    assert result.islands["d"] == "its scale of 1e-09 would be 0 in float16"
    assert types(result.model)["s"] == "FLOAT"


def test_half_scales_are_rejected_below_opset_19() -> None:
    model = quantized(0.02)
    model.graph.opset_imports[""] = 18
    with pytest.raises(QConvertError, match="opset 18") as caught:
        convert_to_half(model, "fp16", {})
    assert "--opset 19" in caught.value.hint


# bfloat16


def test_bfloat16_needs_no_range_islands() -> None:
    model = newer(
        "g (float[N, 64] x) => (float[N, 1] y) "
        "{ big = Mul (x, w) s = ReduceSum (big, axis) e = Exp (s) y = Log (e) }",
        w=np.full(64, 1e5, np.float32),
        axis=np.array([1]),
    )
    assert halved(model, {"big": WIDE, "s": 80.0}, "bf16").islands == {}
    assert len(halved(model, {"big": WIDE, "s": 80.0}, "fp16").islands) == 3


def test_layer_norm_statistics_stay_float32_in_bfloat16() -> None:
    model = newer(
        "g (float[N, 8] x) => (float[N, 8] y, float[N, 1] spread) "
        "{ y, mean, spread = LayerNormalization (x, w) }",
        w=np.ones(8, np.float32),
    )
    result = halved(model, kind="bf16")
    output_types = {"y_bf16": "BFLOAT16", "mean": "FLOAT", "spread": "FLOAT"}
    assert types(result.model).items() >= output_types.items()


def test_bfloat16_outputs_are_close_to_float32() -> None:
    model = newer(
        "g (float[N, 8] x) => (float[N, 4] y) { h = MatMul (x, w) r = Relu (h) y = Add (r, b) }",
        w=floats(8, 4),
        b=floats(4, seed=1),
    )
    result = halved(model, kind="bf16")
    assert set(types(result.model).values()) == {"FLOAT", "BFLOAT16"}
    feeds = {"x": floats(2, 8, seed=2)}
    np.testing.assert_allclose(
        rounded_output(result.model, feeds), first_output(model, feeds), rtol=0.05, atol=0.1
    )


def test_bfloat16_is_rejected_below_opset_22() -> None:
    with pytest.raises(QConvertError, match="opset 20, in which `Conv`") as caught:
        convert_to_half(tiny(), "bf16", {})
    assert "--opset 22" in caught.value.hint


# Any choice of islands


BRANCHES = (
    "g (float[N, 4, 6, 6] x) => (float[N, 8, 3, 3] y, float[N, 4, 6, 6] skip) "
    "{ a = Conv <pads: ints = [1, 1, 1, 1]> (x, w) r = Relu (a) skip = Add (r, x) "
    "t = Transpose <perm: ints = [0, 2, 3, 1]> (skip) l = LayerNormalization (t, g) "
    "u = Transpose <perm: ints = [0, 3, 1, 2]> (l) c = Concat <axis: int = 1> (u, r) "
    "y = MaxPool <kernel_shape: ints = [2, 2], strides: ints = [2, 2]> (c) }"
)
TENSORS = ("x", "a", "r", "skip", "t", "l", "u", "c", "y")


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.sets(st.sampled_from(TENSORS)), st.sampled_from(["fp16", "bf16"]), st.booleans())
def test_any_set_of_islands_gives_a_valid_graph_and_close_outputs(
    wide: set[str], kind: HalfPrecision, keep_io: bool
) -> None:
    model = newer(BRANCHES, w=floats(4, 4, 3, 3), g=np.ones(4, np.float32))
    outside = {"x", "skip", "y"} if not keep_io else set()
    result = convert_to_half(
        model, kind, dict.fromkeys(sorted(wide - outside), WIDE), keep_io=keep_io
    )
    require_valid(result.model)
    casts = [node for node in result.model.graph if node.op_type == "Cast"]
    assert len({(cast.inputs[0], cast.outputs[0].dtype) for cast in casts}) == len(casts)
    assert not any(cast.inputs[0].producer() in casts for cast in casts if cast.inputs[0])
    if kind == "fp16":
        x = floats(2, 4, 6, 6)
        got = open_cpu(result.model)({"x": x if keep_io else x.astype(np.float16)})
        for name, value in open_cpu(model)({"x": x}).items():
            np.testing.assert_allclose(got[name], value, rtol=2e-2, atol=2e-2)


# Strongly typed engines


@pytest.mark.parametrize("largest", [{}, {"h": WIDE, "r": WIDE, "x": 1.0}])
def test_engine_is_built_with_and_without_islands(largest: dict[str, float]) -> None:
    model = graph(
        "g (float[N, 4, 8, 8] x) => (float[N, 4] y) { h = Conv (x, w) r = Relu (h) "
        "p = GlobalAveragePool (r) f = Flatten (p) y = Gemm (f, v) }",
        w=floats(8, 4, 3, 3),
        v=floats(8, 4),
    )
    result = halved(model, largest)
    assert list(result.islands) == (["h", "r", "p"] if largest else [])
    assert build(result.model) > 0


@pytest.mark.parametrize("op", ["HardSwish (x)", "ConvTranspose (x, w)", "Mish (x)", "Elu (x)"])
@pytest.mark.parametrize("kind", ["fp16", "bf16"])
def test_engine_is_built_for_operators_tensorrt_has_in_one_half_type(
    op: str, kind: HalfPrecision
) -> None:
    weights: dict[str, ArrayLike] = {"w": floats(4, 4, 2, 2)} if "w)" in op else {}
    text = f"g (float[N, 4, 8, 8] x) => (float[N, 4, a, b] y) {{ y = {op} }}"
    result = halved(newer(text, **weights), kind=kind)
    assert bool(result.islands) == (kind == "bf16" and op != "Elu (x)")
    assert build(result.model) > 0
