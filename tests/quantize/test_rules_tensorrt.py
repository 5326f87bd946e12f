"""TensorRT's rules, each with the graph before and after; `~x` is a tensor read from integers."""

import pytest

from qconvert.core.scales import Range
from qconvert.quantize.placement import Selection, share_ranges
from tests.quantize.quantized_models import after, layers, model, planned

IMAGE = "(float[N, 16, 8, 8] x)"
X = f"{IMAGE} => (float[] y)"
PAD = "<pads: ints = [1, 1, 1, 1]>"
CONV = f"c = Conv {PAD} (x, w)"
W = (16, 16, 3, 3)


def reasons(body: str, signature: str = X, **shapes: tuple[int, ...]) -> dict[str, str]:
    left = layers(model(body, signature, **shapes), "tensorrt")
    return {name: layer.left for name, layer in left.items() if layer.left}


Shapes = dict[str, tuple[int, ...]]
BRANCHES = f"""{CONV} r = Relu (c) d = Conv {PAD} (r, v)
short = Conv <kernel_shape: ints = [1, 1]> (x, u)"""
BRANCH_LINES = ["c = Conv(~x, ~w)", "r = Relu(c)", "d = Conv(~r, ~v)", "short = Conv(~x, ~u)"]
BRANCH_SHAPES: Shapes = {"w": W, "v": W, "u": (16, 16, 1, 1)}
REWRITTEN: dict[str, tuple[str, Shapes, list[str]]] = {
    "inputs, but no outputs and biases": (
        f"c = Conv {PAD} (x, w, b) r = Relu (c) y = Conv (r, v)", {"w": W, "b": (16,), "v": W},
        ["c = Conv(~x, ~w, b)", "r = Relu(c)", "y = Conv(~r, ~v)"],
    ),
    "nothing between convolution, norm and activation": (
        f"{CONV} n = BatchNormalization (c, g, g, g, g) s = Sigmoid (n) m = Mul (n, s) "
        "y = Conv (m, v)",
        {"w": W, "g": (16,), "v": W},
        ["c = Conv(~x, ~w)", "n = BatchNormalization(c, g, g, g, g)", "s = Sigmoid(n)",
         "m = Mul(n, s)", "y = Conv(~m, ~v)"],
    ),
    "a transposed convolution": (
        "y = ConvTranspose (x, w)", {"w": W}, ["y = ConvTranspose(~x, ~w)"]
    ),
    "the shortcut of an add": (
        f"{CONV} r = Relu (c) d = Conv {PAD} (r, v) s = Add (d, x) y = Relu (s)",
        {"w": W, "v": W},
        ["c = Conv(~x, ~w)", "r = Relu(c)", "d = Conv(~r, ~v)", "s = Add(d, ~x)", "y = Relu(s)"],
    ),
    "the shorter of two branches": (
        f"{BRANCHES} y = Add (d, short)", BRANCH_SHAPES, [*BRANCH_LINES, "y = Add(d, ~short)"]
    ),
    "the shorter of two branches, which is first": (
        f"{BRANCHES} y = Add (short, d)", BRANCH_SHAPES, [*BRANCH_LINES, "y = Add(~short, d)"]
    ),
    "a shortcut directly from a convolution": (
        f"{CONV} d = Conv {PAD} (c, v) e = Relu (d) f = Conv {PAD} (e, u) y = Add (c, f)",
        {"w": W, "v": W, "u": W},
        ["c = Conv(~x, ~w)", "d = Conv(~c, ~v)", "e = Relu(d)", "f = Conv(~e, ~u)",
         "y = Add(~c, f)"],
    ),
    "a pool behind a convolution": (
        f"{CONV} r = Relu (c) p = GlobalAveragePool (r) f = Flatten (p) y = Gemm (f, v)",
        {"w": W, "v": (16, 32)},
        ["c = Conv(~x, ~w)", "r = Relu(c)", "p = GlobalAveragePool(~r)", "f = Flatten(p)",
         "y = Gemm(~f, ~v)"],
    ),
    "a max pool, which passes the scale through": (
        f"{CONV} p = MaxPool <kernel_shape: ints = [2, 2]> (c) y = Conv (p, v)",
        {"w": W, "v": W}, ["c = Conv(~x, ~w)", "p = MaxPool(c)", "y = Conv(~p, ~v)"],
    ),
}  # fmt: skip
NOT_FUSED = {"y": "no convolution can be fused with it"}
FUSED_FLOAT = "a product of two activations runs fused in float"
LEFT: dict[str, tuple[str, str, Shapes, dict[str, str]]] = {
    "an add without a convolution": (
        "h = MatMul (x, w) y = Add (x, h)", "(float[N, 10, 32] x)", {"w": (32, 32)}, NOT_FUSED
    ),
    "an add of what one convolution feeds": (
        f"{CONV} e = Elu (c) y = Add (c, e)", IMAGE, {"w": W}, NOT_FUSED
    ),
    "an add of a convolution to itself": (f"{CONV} y = Add (c, c)", IMAGE, {"w": W}, NOT_FUSED),
    "a concat without quantized readers": (
        f"{CONV} d = Conv {PAD} (c, v) t = Concat <axis: int = 1> (c, d) y = Elu (t)",
        IMAGE, {"w": W, "v": W}, {"t": "nothing that reads it is quantized"},
    ),
    "a pool beside float operators": (
        "e = Elu (x) p = GlobalAveragePool (e) f = Flatten (p) y = Gemm (f, v)",
        IMAGE, {"v": (16, 8)},
        {"p": "neither the operator before it nor one after it is quantized",
         "y": "a 16x8 weight is too small for integer kernels"},
    ),
    "few channels behind the first layer": (
        "e = Elu (x) y = Conv (e, w)", "(float[N, 3, 8, 8] x)", {"w": (8, 3, 3, 3)},
        {"y": "3 to 8 channels and a 3x3 kernel are too few for integer kernels"},
    ),
    "attention": (
        "q = MatMul (x, w) s = MatMul (q, x) p = Softmax (s) y = MatMul (p, x)",
        "(float[N, 32, 32] x)", {"w": (32, 32)},
        {"s": FUSED_FLOAT, "p": "it loses too much in 8 bits", "y": FUSED_FLOAT},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REWRITTEN)
def test_inputs_of_heavy_operators_are_quantized(case: str) -> None:
    body, shapes, lines = REWRITTEN[case]
    assert after(model(body, X, **shapes), "tensorrt") == lines


@pytest.mark.parametrize("case", LEFT)
def test_nodes_that_gain_nothing_stay_in_float(case: str) -> None:
    body, inputs, shapes, why = LEFT[case]
    assert reasons(body, f"{inputs} => (float[] y)", **shapes) == why


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


def test_first_and_last_layers_can_be_kept_in_float() -> None:
    body = f"{CONV} d = Conv {PAD} (c, v) y = Conv (d, u)"
    before = model(body, X, w=W, v=W, u=W)
    assert after(before, "tensorrt", Selection(keep=("first", "last"))) == [
        "c = Conv(x, w)",
        "d = Conv(~c, ~v)",
        "y = Conv(d, u)",
    ]


def test_concat_input_much_narrower_than_the_rest_keeps_its_scale() -> None:
    body = f"""{CONV} d = Conv {PAD} (x, v) t = Concat <axis: int = 1> (c, d)
    h = Conv {PAD} (c, v) y = Conv (t, u)"""
    before = model(body, X, w=W, v=W, u=(16, 32, 1, 1))
    plan = planned(before, "tensorrt")
    ranges = {**plan.tensors, "c": Range(-1.0, 1.0), "t": Range(-9.0, 9.0)}
    left = share_ranges(before.graph, plan.layers, ranges, frozenset({"Concat"}))
    assert left["c"] == Range(-1.0, 1.0)
    assert left["t"].high == 9.0


@pytest.mark.parametrize(("group", "padded"), [(64, True), (32, True), (16, False), (1, False)])
def test_only_rtx_leaves_convolutions_of_narrow_groups_in_float(group: int, padded: bool) -> None:
    wide = "(float[N, 64, 8, 8] x) => (float[] y)"
    body = f"y = Conv <pads: ints = [1, 1, 1, 1], group: int = {group}> (x, w)"
    planned_model = model(body, wide, w=(64, 64 // group, 3, 3))
    for name in ("tensorrt", "tensorrt-rtx"):
        left = [layer.left for layer in layers(planned_model, name).values() if layer.left]
        assert [text for text in left if "pads groups" in text] == (
            [f"TensorRT for RTX pads groups of {64 // group} channels to 16 in integers"]
            if padded and name == "tensorrt-rtx"
            else []
        )
