"""The CPU's rules, each with the graph before and after; `~x` is a tensor read from integers."""

import pytest

from qconvert.graph.taps import find_observed_tensors
from qconvert.quantize.placement import Selection
from tests.quantize.quantized_models import after, layers, model

NO_KERNEL = "ONNX Runtime has no integer kernel for it on the CPU"

X = "(float[N, 16, 8, 8] x)"
PAD = "<pads: ints = [1, 1, 1, 1]>"
CONV = f"c = Conv {PAD} (x, w)"
W = (16, 16, 3, 3)


Shapes = dict[str, tuple[int, ...]]
SQUARE = (32, 32)
REWRITTEN: dict[str, tuple[str, str, Shapes, list[str]]] = {
    "a convolution with its output and bias": (
        "y = Conv (x, w, b)", X, {"w": (8, 16, 1, 1), "b": (8,)},
        ["y_float = Conv(~x, ~w, ~b)", "return ~y_float"],
    ),
    "a product without a quantized reader": (
        "h = Gemm (x, w, b) r = Relu (h) y = Gemm <transB: int = 1> (r, v, a)",
        "(float[N, 32] x)", {"w": (32, 16), "b": (16,), "v": (8, 16), "a": (8,)},
        ["h = Gemm(~x, ~w, ~b)", "r = Relu(h)", "y = Gemm(~r, ~v, ~a)"],
    ),
    "a product of stacked rows, without its bias": (
        "h = MatMul (x, w) y = Add (h, b)", "(float[N, 10, 32] x)", {"w": (32, 16), "b": (16,)},
        ["h = MatMul(~x, ~w)", "y = Add(h, b)"],
    ),
    "a product of two activations without softmax": (
        "h = MatMul (x, w) y = MatMul (h, x)", "(float[N, 32, 32] x)", {"w": SQUARE},
        ["h = MatMul(~x, ~w)", "y = MatMul(~h, ~x)"],
    ),
    "an add within a chain": (
        f"{CONV} d = Conv {PAD} (c, v) s = Add (c, d) r = Relu (s) y = Conv (r, u)",
        X, {"w": W, "v": W, "u": W},
        ["c = Conv(~x, ~w)", "d = Conv(~c, ~v)", "s = Add(~c, ~d)", "r = Relu(s)",
         "y_float = Conv(~r, ~u)", "return ~y_float"],
    ),
    "a sigmoid gate within a chain": (
        f"{CONV} g = Sigmoid (c) m = Mul (c, g) y = Conv (m, v)", X, {"w": W, "v": W},
        ["c = Conv(~x, ~w)", "g = Sigmoid(~c)", "m = Mul(~c, ~g)", "y_float = Conv(~m, ~v)",
         "return ~y_float"],
    ),
    "a concat, whose inputs keep their own scales": (
        f"{CONV} d = Conv {PAD} (x, v) t = Concat <axis: int = 1> (c, d) y = Conv (t, u)",
        X, {"w": W, "v": W, "u": (16, 32, 1, 1)},
        ["c = Conv(~x, ~w)", "d = Conv(~x, ~v)", "t = Concat(~c, ~d)", "y_float = Conv(~t, ~u)",
         "return ~y_float"],
    ),
    "a pool within a chain": (
        f"{CONV} p = GlobalAveragePool (c) f = Flatten (p) y = Gemm (f, v)",
        X, {"w": W, "v": (16, 8)},
        ["c = Conv(~x, ~w)", "p = GlobalAveragePool(~c)", "f = Flatten(~p)", "y = Gemm(~f, ~v)"],
    ),
    "a hard swish within a chain": (
        f"{CONV} h = HardSwish (c) y = Conv (h, v)", X, {"w": W, "v": W},
        ["c = Conv(~x, ~w)", "h_shifted = Add(~c, ~h_shift_integer)", "h = Mul(~c, ~h_shifted)",
         "y_float = Conv(~h, ~v)", "return ~y_float"],
    ),
    "a mean of whole channels within a chain": (
        f"a = Constant <value: tensor = int64[2] {{-1, -2}}> () {CONV} "
        "m = ReduceMean (c, a) y = Conv (m, v)",
        X, {"w": W, "v": (8, 16, 1, 1)},
        ["a = Constant()", "c = Conv(~x, ~w)", "m = GlobalAveragePool(~c)",
         "y_float = Conv(~m, ~v)", "return ~y_float"],
    ),
    "a mean that drops its axes": (
        f"a = Constant <value: tensor = int64[2] {{2, 3}}> () {CONV} "
        "m = ReduceMean <keepdims: int = 0> (c, a) y = Gemm (m, v)",
        X, {"w": W, "v": (16, 8)},
        ["a = Constant()", "c = Conv(~x, ~w)", "m_pooled = GlobalAveragePool(~c)",
         "m = Flatten(~m_pooled)", "y = Gemm(~m, ~v)"],
    ),
    "a weight that two layers share": (
        f"{CONV} y = Conv (c, w)", X, {"w": W},
        ["c = Conv(~x, ~w)", "y_float = Conv(~c, ~w)", "return ~y_float"],
    ),
}  # fmt: skip
ATTENTION = "attention scores and probabilities need more than 8 bits"
LEFT: dict[str, tuple[str, str, Shapes, dict[str, str]]] = {
    "a relu beside other readers": (
        f"{CONV} r = Relu (c) y = Add (c, r)", X, {"w": W},
        {"r": "other operators read its input",
         "y": "its inputs are not computed by quantized operators"},
    ),
    "an add of float tensors": (
        "h = MatMul (x, w) s = Add (x, h) n = LayerNormalization <axis: int = -1> (s, g) "
        "y = MatMul (n, v)",
        "(float[N, 10, 32] x)", {"w": SQUARE, "g": (32,), "v": (32, 16)},
        {"s": "no quantized operator reads its output", "n": NO_KERNEL},
    ),
    "an add with float readers": (
        f"{CONV} d = Conv (x, v) s = Add (c, c) y = Elu (s)", X, {"w": W, "v": W},
        {"s": "no quantized operator reads its output"},
    ),
    "attention between projections": (
        """q = MatMul (x, w) k = MatMul (x, v) kt = Transpose <perm: ints = [0, 2, 1]> (k)
        s = MatMul (q, kt) p = Softmax (s) o = MatMul (p, x) y = MatMul (o, u)""",
        "(float[N, 10, 32] x)", {"w": SQUARE, "v": SQUARE, "u": (32, 8)},
        {"s": ATTENTION, "p": "8 bits are too few for probabilities", "o": ATTENTION},
    ),
    "sums of which there are 2**59 paths": (
        "a0 = MatMul (x, x) " + " ".join(f"a{n} = Add (a{n - 1}, a{n - 1})" for n in range(1, 60))
        + " y = MatMul (a59, w)",
        "(float[N, 32, 32] x)", {"w": SQUARE}, {},
    ),
    "the sides of boxes as means by probabilities": (
        f"{CONV} p = Softmax <axis: int = 1> (c) y = Conv (p, v)", X, {"w": W, "v": (1, 16, 1, 1)},
        {"p": "8 bits are too few for probabilities",
         "y": "8 bits are too few for a mean by probabilities"},
    ),
    "a weight that is computed": (
        "v = Abs (w) y = Conv (x, v)", X, {"w": W}, {"y": "its weight is not constant"}
    ),
    "a transposed convolution": ("y = ConvTranspose (x, w)", X, {"w": W}, {"y": NO_KERNEL}),
    "a mean over the channels": (
        f"a = Constant <value: tensor = int64[1] {{1}}> () {CONV} m = ReduceMean (c, a) "
        "y = Conv (m, v)",
        X, {"w": W, "v": (8, 1, 1, 1)}, {"m": "it is not the mean over height and width"},
    ),
    "a hard swish of a float tensor": (
        f"e = Elu (x) h = HardSwish (e) {CONV.replace('(x', '(h')} y = Elu (c)", X, {"w": W},
        {"h": "its inputs are not computed by quantized operators"},
    ),
    "a stack of matrices": (
        "t = Transpose <perm: ints = [0, 2, 3, 1]> (x) y = MatMul (t, w)", X, {"w": (8, 16, 4)},
        {"y": "its weight is not one matrix"},
    ),
    "a product that scales": (
        "y = Gemm <alpha: float = 0.5> (x, w)", "(float[N, 32] x)", {"w": (32, 16)},
        {"y": "it scales or transposes its input"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REWRITTEN)
def test_quantizers_are_where_integer_kernels_need_them(case: str) -> None:
    body, inputs, shapes, lines = REWRITTEN[case]
    assert after(model(body, f"{inputs} => (float[] y)", **shapes), "cpu") == lines


@pytest.mark.parametrize("case", LEFT)
def test_nodes_without_an_integer_kernel_stay_in_float(case: str) -> None:
    body, inputs, shapes, reasons = LEFT[case]
    placed = layers(model(body, f"{inputs} => (float[] y)", **shapes), "cpu")
    assert {name: layer.left for name, layer in placed.items() if layer.left} == reasons


def test_fused_activation_has_the_output_quantizer() -> None:
    for activation in ("Relu (c)", "Clip (c, low, high)"):
        body = "low = Constant <value: tensor = float {0.0}> () "
        body += f"high = Constant <value: tensor = float {{6.0}}> () {CONV} r = {activation}"
        lines = after(model(f"{body} y = Conv (r, v)", f"{X} => (float[] y)", w=W, v=W), "cpu")
        assert [line for line in lines if "Constant" not in line] == [
            "c = Conv(~x, ~w)",
            "r = Relu(c)" if "Relu" in activation else "r = Clip(c, low, high)",
            "y_float = Conv(~r, ~v)",
            "return ~y_float",
        ]


@pytest.mark.parametrize(
    "mover",
    [
        "MaxPool <kernel_shape: ints = [2, 2]> (c)",
        "Transpose <perm: ints = [0, 1, 3, 2]> (c)",
        "DepthToSpace <blocksize: int = 1> (c)",
    ],
)
def test_movers_within_a_chain_keep_the_scale(mover: str) -> None:
    before = model(f"{CONV} m = {mover} y = Conv (m, v)", f"{X} => (float[] y)", w=W, v=W)
    op = mover.split(maxsplit=1)[0]
    assert after(before, "cpu") == [
        "c = Conv(~x, ~w)",
        f"m = {op}(~c)",
        "y_float = Conv(~m, ~v)",
        "return ~y_float",
    ]


def test_movers_outside_of_chains_are_not_listed() -> None:
    body = f"m = Transpose <perm: ints = [0, 1, 3, 2]> (x) {CONV} e = Elu (c) y = Transpose (e)"
    assert layers(model(body, f"{X} => (float[] y)", w=W), "cpu").keys() == {"c"}


def test_cubic_resize_breaks_the_chain() -> None:
    sizes = "s = Constant <value: tensor = int64[4] {1, 16, 16, 16}> ()"
    for mode, lines in (("linear", "r = Resize(~c, , , s)"), ("cubic", "r = Resize(~c, , , s)")):
        body = f'{sizes} {CONV} r = Resize <mode = "{mode}"> (c, , , s) y = Conv (r, v)'
        before = model(body, "(float[1, 16, 8, 8] x) => (float[] y)", w=W, v=W)
        assert lines in after(before, "cpu")
        assert ("r" in layers(before, "cpu")) == (mode == "linear")


def test_excluded_activation_keeps_its_convolution_in_float() -> None:
    before = model(f"{CONV} r = Relu (c) y = Conv (r, v)", f"{X} => (float[] y)", w=W, v=W)
    assert after(before, "cpu", Selection(exclude=("r",))) == [
        "c = Conv(x, w)",
        "r = Relu(c)",
        "y_float = Conv(~r, ~v)",
        "return ~y_float",
    ]


def test_add_reads_a_float_tensor_that_a_convolution_reads_quantized() -> None:
    body = f"{CONV} d = Conv {PAD} (c, v) s = Add (c, d) y = Conv (s, u)"
    before = model(body, f"{X} => (float[] y)", w=W, v=W, u=W)
    assert after(before, "cpu", Selection(exclude=("c",))) == [
        "c = Conv(x, w)",
        "d = Conv(~c, ~v)",
        "s = Add(~c, ~d)",
        "y_float = Conv(~s, ~u)",
        "return ~y_float",
    ]
    placed = layers(before, "cpu", Selection(exclude=("c", "d")))
    assert placed["s"].left == "its inputs are not computed by quantized operators"


def test_subgraphs_stay_unchanged() -> None:
    body = f"""{CONV} one = ReduceMax <keepdims: int = 0> (c)
    yes = Cast <to: int = 9> (one)
    y = If <then_branch: graph = a () => (float[] p) {{ p = Conv (c, w) }},
            else_branch: graph = b () => (float[] q) {{ q = Neg (c) }}> (yes)"""
    before = model(body, f"{X} => (float[] y)", w=W)
    assert layers(before, "cpu")["y"].left.startswith("it holds a graph of its own")
    branch = before.graph[-1].attributes["then_branch"].as_graph()
    assert [node.op_type for node in branch] == ["Conv"]


def test_extrapolating_resize_does_not_share_scale() -> None:
    sizes = "s = Constant <value: tensor = int64[4] {1, 16, 16, 16}> ()"
    roi = "i = Constant <value: tensor = float[8] {0,0,-0.5,-0.5,1,1,1.5,1.5}> ()"
    how = 'mode = "linear", coordinate_transformation_mode = "tf_crop_and_resize"'
    body = f"{sizes} {roi} {CONV} r = Resize <{how}> (c, i, , s) y = Conv (r, v)"
    before = model(body, "(float[1, 16, 8, 8] x) => (float[] y)", w=W, v=W)
    assert "r" not in layers(before, "cpu")
    assert "r" not in find_observed_tensors(before).aliases


def test_only_option_selects_node_with_its_fused_activation() -> None:
    body = f"{CONV} r = Relu (c) g = GlobalAveragePool (r) f = Flatten (g) y = Gemm (f, v)"
    before = model(body, f"{X} => (float[] y)", w=W, v=(16, 32))
    left = layers(before, "cpu", Selection(only=("Conv",)))
    assert {name for name, layer in left.items() if not layer.left} == {"c", "r"}
