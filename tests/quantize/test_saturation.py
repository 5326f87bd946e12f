"""The sums that are called safe are safe, for every kernel that adds pairs and no other."""

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from qconvert.graph.passes import infer_shapes
from qconvert.graph.patterns import is_quantized
from qconvert.quantize import saturation
from qconvert.quantize.apply_plan import apply_plan
from tests.any_cpu import kernels
from tests.models import from_text, tiny
from tests.quantize.quantized_models import planned

HEAD = '<ir_version: 10, opset_import: ["": 20, "com.microsoft": 1]>\n'


def quantized(
    operator: str, weight: NDArray[np.generic], shape: str, activations: str = "u8", **changes: str
) -> ir.Model:
    """Return a layer among Q/DQ nodes; `changes` replace the lines before and after it."""
    before = changes.get("before", f"x = DequantizeLinear (bytes, one, {activations}_zero)")
    filters = changes.get("filters", "w = DequantizeLinear (weight, one, s8_zero)")
    after = changes.get("after", "z = QuantizeLinear (y, one, u8_zero)")
    dtype = {"u8": "uint8", "s8": "int8", "u16": "uint16"}[activations]
    result = after.rsplit("=", 1)[0].split()[-1]
    kind = "uint8" if "QuantizeLinear" in after.rsplit("=", 1)[1] else "float"
    constants = {
        "one": np.float32(1),
        "u8_zero": np.uint8(0),
        "s8_zero": np.int8(0),
        "u16_zero": np.uint16(0),
        "weight": weight,
    }
    body = f"{before}\n{filters}\ny = {operator}\n{after}"
    used = {name: np.asarray(value) for name, value in constants.items() if name in body}
    text = f"{HEAD}net ({dtype}[{shape}] bytes) => ({kind} {result}) {{ {body} }}"
    return from_text(text, **used)


def filters(*shape: int, places: tuple[int, int]) -> NDArray[np.int8]:
    """Return zeros but for two weights of 127 in channel 1."""
    weight = np.zeros((shape[0], int(np.prod(shape[1:]))), np.int8)
    weight[1, list(places)] = 127
    return weight.reshape(shape)


def saturating(model: ir.Model) -> list[int]:
    """Return the number of channels that saturate, by layer."""
    return [sums.saturating_channels for sums in saturation.find_saturation(model)]


# In ONNX's layout the second channel of a 3x3 filter begins 9 places behind the first.
@pytest.mark.parametrize(
    ("channels", "places", "count"),
    [
        pytest.param(4, (0, 9), 1, id="channels 0 and 1 of the first place"),
        pytest.param(4, (9, 18), 0, id="channels 1 and 2"),
        pytest.param(4, (0, 1), 0, id="the first two places of channel 0"),
        pytest.param(3, (18, 1), 1, id="three channels: 2 of one place and 0 of the next"),
        pytest.param(3, (0, 9), 1, id="three channels: 0 and 1"),
        pytest.param(3, (9, 18), 0, id="three channels: 1 and 2"),
        pytest.param(1, (0, 1), 1, id="one channel: two places"),
        pytest.param(1, (7, 8), 0, id="one channel: the last place has no partner"),
    ],
)
def test_convolutions_add_channels_of_one_place_first(
    channels: int, places: tuple[int, int], count: int
) -> None:
    weight = filters(2, channels, 3, 3, places=places)
    assert saturating(quantized("Conv (x, w)", weight, f"1, {channels}, 8, 8")) == [count]


@pytest.mark.parametrize(
    ("operator", "shape", "activations", "expected"),
    [
        ("Conv <group = 2> (x, w)", (4, 4, 1, 1), "1, 8, 5, 5", [1]),
        ("Conv <group = 2> (x, w)", (4, 1, 3, 3), "1, 2, 5, 5", [1]),  # a multiplier of 2
        ("Conv <group = 4> (x, w)", (4, 1, 3, 3), "1, 4, 5, 5", []),  # depthwise
        ("Conv (x, w)", (2, 4, 3), "1, 4, 9", [1]),
        ("Gemm <transB = 1> (x, w)", (4, 6), "1, 6", [1]),
    ],
)
def test_pairs_of_groups_and_of_other_operators(
    operator: str, shape: tuple[int, ...], activations: str, expected: list[int]
) -> None:
    places = (0, 3) if shape == (2, 4, 3) else (0, 1)
    model = quantized(operator, filters(*shape, places=places), activations)
    assert saturating(model) == expected


@pytest.mark.parametrize("operator", ["MatMul (x, w)", "Gemm (x, w)"])
def test_matrices_add_pairs_of_rows(operator: str) -> None:
    weight = np.zeros((6, 4), np.int8)
    weight[2:4, 0] = 127
    weight[3:5, 1] = 127
    weight[2:4, 2] = -128
    assert saturating(quantized(operator, weight, "1, 6")) == [2]


def test_batches_of_matrices_are_channels_too() -> None:
    weight = np.zeros((3, 6, 4), np.int8)
    weight[2, 2:4] = 127
    (sums,) = saturation.find_saturation(quantized("MatMul (x, w)", weight, "3, 5, 6"))
    assert (sums.channels, sums.saturating_channels) == (12, 4)


@pytest.mark.parametrize(
    ("first", "second", "safe"),
    [
        (64, 64, True),
        (65, 64, False),
        (-64, -64, True),
        (-64, -65, False),
        (127, -128, True),
        (1, 127, True),
        (-128, 0, True),
        (-128, -1, False),
    ],
)
def test_limit_is_exact(first: int, second: int, safe: bool) -> None:
    weight = np.array([[first, second]], np.int8)
    assert saturation.is_pair_safe(quantized("Gemm <transB=1> (x, w)", weight, "1, 2")) is safe


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(-128, 127), min_size=5, max_size=5), min_size=1, max_size=6))
def test_layer_is_safe_if_and_only_if_no_activation_changes_a_sum(rows: list[list[int]]) -> None:
    weight = np.array(rows, np.int8)
    # The sums are extreme where every activation is.
    choices = np.array(np.meshgrid(*[(0, 255)] * 5), np.uint8).reshape(5, -1).T
    computed, true = kernels.avx2(choices, weight), kernels.exact(choices, weight)
    (sums,) = saturation.find_saturation(quantized("Gemm <transB=1> (x, w)", weight, "1, 5"))
    assert sums.saturating_channels == np.count_nonzero((computed != true).any(axis=0))
    pairs = np.pad(weight, ((0, 0), (0, 1))).reshape(len(weight), 3, 2).astype(np.int32)
    ends = [(part * (part * sign > 0)).sum(axis=-1) for part in [pairs] for sign in (1, -1)]
    assert sums.largest == 255 * max(np.abs(end).max() for end in ends)


BOTH = filters(2, 4, 1, 1, places=(0, 1))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        pytest.param({"after": "z = Relu (y)"}, [], id="a convolution with a float output"),
        pytest.param(
            {"after": "r = Relu (y)\nz = QuantizeLinear (r, one, u8_zero)"}, [1], id="a Relu"
        ),
        pytest.param(
            {"after": "p = GlobalMaxPool (y)\nz = QuantizeLinear (p, one, u8_zero)"},
            [1],
            id="quantized behind an operator that moves values",
        ),
        pytest.param(
            {"before": "f = DequantizeLinear (bytes, one, u8_zero)\nx = Identity (f)"},
            [1],
            id="dequantized before an operator that moves values",
        ),
        pytest.param({"before": "x = Cast <to = 1> (bytes)"}, [], id="float activations"),
        pytest.param({"activations": "s8"}, [1], id="signed activations"),
        pytest.param({"activations": "u16"}, [], id="activations of 16 bits"),
    ],
)
def test_only_integer_kernels_count(changes: dict[str, str], expected: list[int]) -> None:
    assert saturating(quantized("Conv (x, w)", BOTH, "1, 4, 5, 5", **changes)) == expected


def test_unsigned_weights_have_an_exact_kernel() -> None:
    filters = "w = DequantizeLinear (weight, one, u8_zero)"
    model = quantized("Conv (x, w)", BOTH.astype(np.uint8), "1, 4, 5, 5", filters=filters)
    assert saturating(model) == []


@pytest.mark.parametrize(
    ("operator", "weight", "after", "expected"),
    [
        ("Conv (x, weight)", np.ones((2, 4, 1, 1)), "z = QuantizeLinear (y, one, u8_zero)", [2]),
        ("Gemm (x, weight)", np.ones((4, 2)), "z = QuantizeLinear (y, one, u8_zero)", [2]),
        # With one zero point for the whole weight, zeros next to positive weights are not zero.
        ("Gemm (x, weight)", np.eye(4, 2), "z = QuantizeLinear (y, one, u8_zero)", [2]),
        ("Gemm (x, weight)", np.ones((4, 2)), "z = Relu (y)", []),
        ("MatMul (x, weight)", np.ones((4, 2)), "z = QuantizeLinear (y, one, u8_zero)", []),
    ],
)
def test_float_weights_count_as_the_runtime_quantizes_them(
    operator: str, weight: NDArray[np.float64], after: str, expected: list[int]
) -> None:
    shape = "1, 4, 5, 5" if weight.ndim == 4 else "1, 4"
    floats, changes = weight.astype(np.float32), {"filters": "", "after": after}
    assert saturating(quantized(operator, floats, shape, **changes)) == expected


@pytest.mark.parametrize(
    "lines",
    [
        "i = Identity (weight)\nw = DequantizeLinear (i, one, s8_zero)",
        "q = QuantizeLinear (weight, one, s8_zero)\nw = DequantizeLinear (q, one, s8_zero)",
        "t = DequantizeLinear (weight, one, s8_zero)\nw = Transpose <perm = [1, 0]> (t)",
        "t = Transpose (weight)\nw = DequantizeLinear (t, one, s8_zero)",
    ],
)
def test_weights_count_as_they_are_folded(lines: str) -> None:
    weight = np.array([[127, 127, 0, 0], [0, 127, 127, 0]], np.int8)
    held: NDArray[np.generic] = weight.astype(np.float32) if "= Quantize" in lines else weight
    transposed = held if "Transpose" in lines else held.T
    model = quantized("MatMul (x, w)", np.ascontiguousarray(transposed), "1, 4", filters=lines)
    assert saturating(model) == [1]


def test_two_activations_have_an_exact_kernel() -> None:
    text = f"""{HEAD}net (uint8[2, 4] a, int8[4, 3] b) => (float[2, 3] y) {{
        x = DequantizeLinear (a, one, u8_zero)
        w = DequantizeLinear (b, one, s8_zero)
        y = MatMul (x, w)
    }}"""
    constants = {"one": np.float32(1), "u8_zero": np.uint8(0), "s8_zero": np.int8(0)}
    arrays = {name: np.asarray(value) for name, value in constants.items()}
    assert saturating(from_text(text, **arrays)) == []


@pytest.mark.parametrize(("kind", "expected"), [("uint8", [1]), ("int8", [])])
def test_quantized_operators(kind: str, expected: list[int]) -> None:
    text = f"""{HEAD}net ({kind}[1, 4, 5, 5] x) => ({kind} y) {{
        y = QLinearConv (x, one, zero, weight, one, weight_zero, one, zero)
    }}"""
    zero = np.zeros((), kind)
    constants = {"one": np.float32(1), "zero": zero, "weight_zero": np.int8(0), "weight": BOTH}
    arrays = {name: np.asarray(value) for name, value in constants.items()}
    assert saturating(from_text(text, **arrays)) == expected


def test_integer_matrix_product() -> None:
    text = f"""{HEAD}net (float[1, 4] x) => (int32[1, 2] y) {{
        q, scale, zero = DynamicQuantizeLinear (x)
        y = MatMulInteger (q, weight, zero)
    }}"""
    weight = np.array([[127, 0], [127, 127], [0, 127], [0, 0]], np.int8)
    assert saturating(from_text(text, weight=weight)) == [1]


CONTRIBUTED = {
    "DynamicQuantizeMatMul": ("float", "y = {} (x, weight, one, weight_zero)", [1]),
    "QAttention": (
        "uint8",
        "y = {} <num_heads: int = 1> (x, weight, bias, one, one, none, zero, weight_zero)",
        [1],
    ),
    "DynamicQuantizeLSTM": (
        "float",
        "y = {} <hidden_size: int = 1> "
        "(x, stacked, stacked, none, none, none, none, none, ones, zeros, ones, zeros)",
        [1, 1],
    ),
}


@pytest.mark.parametrize("operator", CONTRIBUTED)
def test_operators_of_the_runtime_itself(operator: str) -> None:
    kind, line, expected = CONTRIBUTED[operator]
    line = line.format(f"com.microsoft.{operator}")
    weight = np.array([[127, 0, 0], [127, 127, 0], [0, 127, 0], [0, 0, 127]], np.int8)
    constants = {
        "weight": weight,
        "stacked": weight[np.newaxis],
        "bias": np.zeros(3, np.float32),
        "one": np.float32(1),
        "ones": np.ones(1, np.float32),
        "zero": np.uint8(0),
        "zeros": np.zeros(1, np.int8),
        "weight_zero": np.int8(0),
    }
    words = line.replace(",", " ").replace("(", " ").replace(")", " ").split()
    used = {name: np.asarray(array) for name, array in constants.items() if name in words}
    text = f"{HEAD}net ({kind}[1, 4, 4] x, float[1] none) => (float y) {{ {line} }}"
    model = from_text(text, **used)
    assert is_quantized(model)
    assert saturating(model) == expected


def test_layers_of_a_plan_are_named() -> None:
    before, _ = infer_shapes(tiny())
    model = apply_plan(before, planned(before, "cpu"))
    layers = saturation.find_saturation(model)
    assert [(layer.operator, layer.channels) for layer in layers] == [("Conv", 4), ("Gemm", 5)]
    assert [layer.node for layer in layers] == ["conv", "scores"]
