"""TensorRT's rules, each with the graph before and after; `~x` is a tensor read from integers."""

import pytest

from qconvert.core.scales import Range
from qconvert.quantize.placement import Selection
from qconvert.quantize.ranges import share_ranges
from tests.quantize.quantized_models import after, layers, model, planned

X = "(float[N, 16, 8, 8] x) => (float[] y)"
PAD = "<pads: ints = [1, 1, 1, 1]>"
CONV = f"c = Conv {PAD} (x, w)"
W = (16, 16, 3, 3)


def rewritten(body: str, signature: str = X, **shapes: tuple[int, ...]) -> list[str]:
    return after(model(body, signature, **shapes), "tensorrt")


def reasons(body: str, signature: str = X, **shapes: tuple[int, ...]) -> dict[str, str]:
    left = layers(model(body, signature, **shapes), "tensorrt")
    return {name: layer.left for name, layer in left.items() if layer.left}


def test_inputs_are_quantized_and_outputs_and_biases_are_not() -> None:
    body = f"c = Conv {PAD} (x, w, b) r = Relu (c) y = Conv (r, v)"
    assert rewritten(body, w=W, b=(16,), v=W) == [
        "c = Conv(~x, ~w, b)",
        "r = Relu(c)",
        "y = Conv(~r, ~v)",
    ]


def test_nothing_is_quantized_between_convolution_norm_and_activation() -> None:
    norm = "n = BatchNormalization (c, g, g, g, g) s = Sigmoid (n) m = Mul (n, s)"
    assert rewritten(f"{CONV} {norm} y = Conv (m, v)", w=W, g=(16,), v=W) == [
        "c = Conv(~x, ~w)",
        "n = BatchNormalization(c, g, g, g, g)",
        "s = Sigmoid(n)",
        "m = Mul(n, s)",
        "y = Conv(~m, ~v)",
    ]


def test_transposed_convolution_is_quantized() -> None:
    assert rewritten("y = ConvTranspose (x, w)", w=W) == ["y = ConvTranspose(~x, ~w)"]


def test_shortcut_of_an_add_is_quantized() -> None:
    body = f"{CONV} r = Relu (c) d = Conv {PAD} (r, v) s = Add (d, x) y = Relu (s)"
    assert "s = Add(d, ~x)" in rewritten(body, w=W, v=W)


def test_shorter_of_two_convolution_branches_is_the_shortcut() -> None:
    body = f"""{CONV} r = Relu (c) d = Conv {PAD} (r, v)
    short = Conv <kernel_shape: ints = [1, 1]> (x, u) s = Add (d, short) y = Relu (s)"""
    shapes = {"w": W, "v": W, "u": (16, 16, 1, 1)}
    assert "s = Add(d, ~short)" in rewritten(body, X, **shapes)
    turned = body.replace("Add (d, short)", "Add (short, d)")
    assert "s = Add(~short, d)" in rewritten(turned, X, **shapes)


def test_add_without_a_convolution_stays_in_float() -> None:
    flat = "(float[N, 10, 32] x) => (float[] y)"
    body = "h = MatMul (x, w) y = Add (x, h)"
    assert reasons(body, flat, w=(32, 32)) == {"y": "no convolution can be fused with it"}


def test_add_with_an_excluded_convolution_stays_in_float() -> None:
    before = model(f"{CONV} y = Add (c, x)", X, w=W)
    left = layers(before, "tensorrt", Selection(exclude=("c",)))
    assert left["y"].left == "the convolution it is fused with is left in float"


def test_concat_inputs_share_one_scale() -> None:
    body = f"""{CONV} d = Conv {PAD} (c, v) t = Concat <axis: int = 1> (c, d)
    e = Elu (d) h = Conv {PAD} (e, v) y = Conv (t, u)"""
    plan = planned(model(body, X, w=W, v=W, u=(16, 32, 1, 1)), "tensorrt")
    assert plan.layers["t"].note == "its inputs share one scale"
    assert plan.tensors["c"] == plan.tensors["d"] == plan.tensors["t"]
    assert plan.tensors["e"] != plan.tensors["t"]
    assert plan.tensors["t"] == Range(-plan.tensors["t"].high, plan.tensors["t"].high)


def test_concat_without_quantized_readers_shares_no_scale() -> None:
    body = f"{CONV} d = Conv {PAD} (c, v) t = Concat <axis: int = 1> (c, d) y = Elu (t)"
    assert reasons(body, w=W, v=W) == {"t": "nothing that reads it is quantized"}


def test_max_pool_passes_the_scale_through() -> None:
    body = f"{CONV} p = MaxPool <kernel_shape: ints = [2, 2]> (c) y = Conv (p, v)"
    before = model(body, X, w=W, v=W)
    assert after(before, "tensorrt") == ["c = Conv(~x, ~w)", "p = MaxPool(c)", "y = Conv(~p, ~v)"]
    assert layers(before, "tensorrt")["p"].note == "passes the scale of its input through"


def test_pools_are_quantized_only_beside_quantized_operators() -> None:
    flat = "f = Flatten (p) y = Gemm (f, v)"
    pooled = f"{CONV} r = Relu (c) p = GlobalAveragePool (r) {flat}"
    assert "p = GlobalAveragePool(~r)" in rewritten(pooled, w=W, v=(16, 32))
    left = reasons(f"e = Elu (x) p = GlobalAveragePool (e) {flat}", v=(16, 8))
    assert left["p"] == "neither the operator before it nor one after it is quantized"


@pytest.mark.parametrize(
    ("batch", "weight", "why"),
    [
        ("1", (32, 64), "a product of one row (a fixed batch of 1) is no faster in integers"),
        ("N", (32, 64), ""),
        ("4", (32, 64), ""),
        ("N", (32, 1), "a product with one column is no faster in integers"),
        ("N", (32, 10), "a 32x10 weight is too small for integer kernels"),
        ("N", (8, 64), "a 8x64 weight is too small for integer kernels"),
    ],
)
def test_small_products_stay_in_float(batch: str, weight: tuple[int, int], why: str) -> None:
    signature = f"(float[{batch}, {weight[0]}] x) => (float[] y)"
    assert reasons("y = Gemm (x, w)", signature, w=weight).get("y", "") == why
    turned = reasons("y = Gemm <transB: int = 1> (x, w)", signature, w=weight[::-1])
    assert turned.get("y", "") == why


@pytest.mark.parametrize(
    ("channels", "weight", "group", "quantized"),
    [
        (3, (16, 3, 3, 3), 1, True),  # the first layer of most networks
        (3, (12, 3, 3, 3), 1, False),
        (8, (8, 8, 3, 5), 1, False),
        (16, (8, 16, 1, 1), 1, True),
        (16, (16, 1, 3, 3), 16, True),  # depthwise
        (16, (16, 1, 1, 1), 16, False),
        (12, (12, 1, 3, 3), 12, False),
        (16, (16, 1, 2, 2), 16, False),
    ],
)
def test_convolutions_of_few_channels_stay_in_float(
    channels: int, weight: tuple[int, ...], group: int, quantized: bool
) -> None:
    signature = f"(float[N, {channels}, 8, 8] x) => (float[] y)"
    left = reasons(f"y = Conv <group: int = {group}> (x, w)", signature, w=weight)
    assert (not left) == quantized
    assert quantized or "too few for integer kernels" in left["y"]


def test_few_input_channels_are_quantized_in_the_first_layer_only() -> None:
    body = "e = Elu (x) y = Conv (e, w)"
    left = reasons(body, "(float[N, 3, 8, 8] x) => (float[] y)", w=(8, 3, 3, 3))
    assert left == {"y": "3 to 8 channels and a 3x3 kernel are too few for integer kernels"}


def test_attention_products_and_softmax_stay_in_float() -> None:
    body = "q = MatMul (x, w) s = MatMul (q, x) p = Softmax (s) y = MatMul (p, x)"
    assert reasons(body, "(float[N, 32, 32] x) => (float[] y)", w=(32, 32)) == {
        "s": "a product of two activations runs fused in float",
        "p": "it loses too much in 8 bits",
        "y": "a product of two activations runs fused in float",
    }


def test_first_and_last_layers_can_be_kept_in_float() -> None:
    body = f"{CONV} d = Conv {PAD} (c, v) y = Conv (d, u)"
    before = model(body, X, w=W, v=W, u=W)
    assert after(before, "tensorrt", Selection(keep=("first", "last"))) == [
        "c = Conv(x, w)",
        "d = Conv(~c, ~v)",
        "y = Conv(d, u)",
    ]


def test_convolution_that_feeds_both_branches_is_not_fused() -> None:
    body = f"{CONV} e = Elu (c) y = Add (c, e)"
    assert reasons(body, w=W) == {"y": "no convolution can be fused with it"}
    assert reasons(f"{CONV} y = Add (c, c)", w=W) == {"y": "no convolution can be fused with it"}


def test_shortcut_directly_from_a_convolution_is_quantized() -> None:
    body = f"{CONV} d = Conv {PAD} (c, v) e = Relu (d) f = Conv {PAD} (e, u) y = Add (c, f)"
    assert rewritten(body, w=W, v=W, u=W)[-1] == "y = Add(~c, f)"


def test_concat_input_much_narrower_than_the_rest_keeps_its_scale() -> None:
    body = f"""{CONV} d = Conv {PAD} (x, v) t = Concat <axis: int = 1> (c, d)
    h = Conv {PAD} (c, v) y = Conv (t, u)"""
    before = model(body, X, w=W, v=W, u=(16, 32, 1, 1))
    plan = planned(before, "tensorrt")
    ranges = {**plan.tensors, "c": Range(-1.0, 1.0), "t": Range(-9.0, 9.0)}
    left = share_ranges(before.graph, plan.layers, ranges, frozenset({"Concat"}))
    assert left["c"] == Range(-1.0, 1.0)
    assert left["t"].high == 9.0
