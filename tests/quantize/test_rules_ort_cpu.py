"""The CPU's rules, each with the graph before and after; `~x` is a tensor read from integers."""

import pytest

from qconvert.graph.observed_tensors import find_observed_tensors
from qconvert.quantize.placement import Selection
from tests.quantize.quantized_models import after, layers, model

NO_KERNEL = "ONNX Runtime has no integer kernel for it on the CPU"

X = "(float[N, 16, 8, 8] x)"
PAD = "<pads: ints = [1, 1, 1, 1]>"
CONV = f"c = Conv {PAD} (x, w)"
W = (16, 16, 3, 3)


def rewritten(
    body: str, signature: str = f"{X} => (float[] y)", **shapes: tuple[int, ...]
) -> list[str]:
    return after(model(body, signature, **shapes), "cpu")


def reasons(
    body: str, signature: str = f"{X} => (float[] y)", **shapes: tuple[int, ...]
) -> dict[str, str]:
    left = layers(model(body, signature, **shapes), "cpu")
    return {name: layer.left for name, layer in left.items() if layer.left}


def test_convolution_has_quantized_inputs_output_and_bias() -> None:
    assert rewritten("y = Conv (x, w, b)", w=(8, 16, 1, 1), b=(8,)) == [
        "y_float = Conv(~x, ~w, ~b)",
        "return ~y_float",
    ]


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


def test_relu_is_not_fused_if_its_input_has_other_readers() -> None:
    body = f"{CONV} r = Relu (c) y = Add (c, r)"
    assert reasons(body, w=W)["r"] == "other operators read its input"


def test_product_outputs_float_without_a_quantized_reader() -> None:
    flat = "(float[N, 32] x) => (float[N, 8] y)"
    body = "h = Gemm (x, w, b) r = Relu (h) y = Gemm <transB: int = 1> (r, v, a)"
    shapes = {"w": (32, 16), "b": (16,), "v": (8, 16), "a": (8,)}
    assert rewritten(body, flat, **shapes) == [
        "h = Gemm(~x, ~w, ~b)",
        "r = Relu(h)",
        "y = Gemm(~r, ~v, ~a)",
    ]


def test_product_of_stacked_rows_is_quantized_without_its_bias() -> None:
    body = "h = MatMul (x, w) y = Add (h, b)"
    assert rewritten(body, "(float[N, 10, 32] x) => (float[] y)", w=(32, 16), b=(16,)) == [
        "h = MatMul(~x, ~w)",
        "y = Add(h, b)",
    ]


def test_add_within_a_chain_has_quantized_inputs_and_output() -> None:
    body = f"{CONV} d = Conv {PAD} (c, v) s = Add (c, d) r = Relu (s) y = Conv (r, u)"
    assert rewritten(body, w=W, v=W, u=W) == [
        "c = Conv(~x, ~w)",
        "d = Conv(~c, ~v)",
        "s = Add(~c, ~d)",
        "r = Relu(s)",
        "y_float = Conv(~r, ~u)",
        "return ~y_float",
    ]


def test_sigmoid_gate_is_quantized_within_a_chain() -> None:
    body = f"{CONV} g = Sigmoid (c) m = Mul (c, g) y = Conv (m, v)"
    assert rewritten(body, w=W, v=W) == [
        "c = Conv(~x, ~w)",
        "g = Sigmoid(~c)",
        "m = Mul(~c, ~g)",
        "y_float = Conv(~m, ~v)",
        "return ~y_float",
    ]


def test_add_of_float_tensors_stays_in_float() -> None:
    norm = "LayerNormalization <axis: int = -1> (s, g)"
    body = f"h = MatMul (x, w) s = Add (x, h) n = {norm} y = MatMul (n, v)"
    left = reasons(body, "(float[N, 10, 32] x) => (float[] y)", w=(32, 32), g=(32,), v=(32, 16))
    assert left == {
        "s": "its inputs are not computed by quantized operators",
        "n": NO_KERNEL,
    }


def test_add_with_float_readers_stays_in_float() -> None:
    body = f"{CONV} d = Conv (x, v) s = Add (c, c) y = Elu (s)"
    assert reasons(body, w=W, v=W) == {"s": "no quantized operator reads its output"}


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


def test_concat_inputs_keep_their_own_scales() -> None:
    body = f"{CONV} d = Conv {PAD} (x, v) t = Concat <axis: int = 1> (c, d) y = Conv (t, u)"
    lines = rewritten(body, w=W, v=W, u=(16, 32, 1, 1))
    assert "t = Concat(~c, ~d)" in lines


def test_pools_within_a_chain_are_quantized() -> None:
    body = f"{CONV} p = GlobalAveragePool (c) f = Flatten (p) y = Gemm (f, v)"
    assert rewritten(body, w=W, v=(16, 8)) == [
        "c = Conv(~x, ~w)",
        "p = GlobalAveragePool(~c)",
        "f = Flatten(~p)",
        "y = Gemm(~f, ~v)",
    ]


def test_attention_stays_in_float_and_projections_are_quantized() -> None:
    body = """q = MatMul (x, w) k = MatMul (x, v) kt = Transpose <perm: ints = [0, 2, 1]> (k)
    s = MatMul (q, kt) p = Softmax (s) o = MatMul (p, x) y = MatMul (o, u)"""
    left = reasons(body, "(float[N, 10, 32] x) => (float[] y)", w=(32, 32), v=(32, 32), u=(32, 8))
    assert left == {
        "s": "attention scores and probabilities need more than 8 bits",
        "p": "8 bits are too few for probabilities",
        "o": "attention scores and probabilities need more than 8 bits",
    }


def test_attention_search_visits_each_node_once() -> None:
    sums = " ".join(f"a{at} = Add (a{at - 1}, a{at - 1})" for at in range(1, 60))
    body = f"a0 = MatMul (x, x) {sums} y = MatMul (a59, w)"
    left = reasons(body, "(float[N, 32, 32] x) => (float[] y)", w=(32, 32))
    assert "a0" not in left


def test_product_of_two_activations_without_softmax_is_quantized() -> None:
    body = "h = MatMul (x, w) y = MatMul (h, x)"
    assert rewritten(body, "(float[N, 32, 32] x) => (float[] y)", w=(32, 32)) == [
        "h = MatMul(~x, ~w)",
        "y = MatMul(~h, ~x)",
    ]


@pytest.mark.parametrize(
    ("body", "shapes", "why"),
    [
        ("v = Abs (w) y = Conv (x, v)", {"w": W}, "its weight is not constant"),
        ("y = ConvTranspose (x, w)", {"w": W}, NO_KERNEL),
        ("t = Transpose <perm: ints = [0, 2, 3, 1]> (x) y = MatMul (t, w)", {"w": (8, 16, 4)},
         "its weight is not one matrix"),
    ],
)  # fmt: skip
def test_operators_without_an_integer_kernel_stay_in_float(
    body: str, shapes: dict[str, tuple[int, ...]], why: str
) -> None:
    assert why in reasons(body, f"{X} => (float[] y)", **shapes).values()


def test_gemm_that_scales_or_transposes_stays_in_float() -> None:
    flat = "(float[N, 32] x) => (float[] y)"
    left = reasons("y = Gemm <alpha: float = 0.5> (x, w)", flat, w=(32, 16))
    assert left == {"y": "it scales or transposes its input"}


def test_excluded_activation_keeps_its_convolution_in_float() -> None:
    before = model(f"{CONV} r = Relu (c) y = Conv (r, v)", f"{X} => (float[] y)", w=W, v=W)
    assert after(before, "cpu", Selection(exclude=("r",))) == [
        "c = Conv(x, w)",
        "r = Relu(c)",
        "y_float = Conv(~r, ~v)",
        "return ~y_float",
    ]


def test_shared_weight_is_stored_once() -> None:
    before = model(f"{CONV} y = Conv (c, w)", f"{X} => (float[] y)", w=W)
    assert after(before, "cpu")[:2] == ["c = Conv(~x, ~w)", "y_float = Conv(~c, ~w)"]


def test_subgraphs_stay_unchanged() -> None:
    body = f"""{CONV} one = ReduceMax <keepdims: int = 0> (c)
    yes = Cast <to: int = 9> (one)
    y = If <then_branch: graph = a () => (float[] p) {{ p = Conv (c, w) }},
            else_branch: graph = b () => (float[] q) {{ q = Neg (c) }}> (yes)"""
    before = model(body, f"{X} => (float[] y)", w=W)
    assert layers(before, "cpu")["y"].left.startswith("it holds a graph of its own")
    branch = before.graph[-1].attributes["then_branch"].as_graph()
    assert [node.op_type for node in branch] == ["Conv"]


def test_resize_that_fills_in_values_is_no_mover() -> None:
    sizes = "s = Constant <value: tensor = int64[4] {1, 16, 16, 16}> ()"
    roi = "i = Constant <value: tensor = float[8] {0,0,-0.5,-0.5,1,1,1.5,1.5}> ()"
    how = 'mode = "linear", coordinate_transformation_mode = "tf_crop_and_resize"'
    body = f"{sizes} {roi} {CONV} r = Resize <{how}> (c, i, , s) y = Conv (r, v)"
    before = model(body, "(float[1, 16, 8, 8] x) => (float[] y)", w=W, v=W)
    assert "r" not in layers(before, "cpu")
    assert "r" not in find_observed_tensors(before).aliases


def test_only_selects_a_node_with_its_fused_activation() -> None:
    body = f"{CONV} r = Relu (c) g = GlobalAveragePool (r) f = Flatten (g) y = Gemm (f, v)"
    before = model(body, f"{X} => (float[] y)", w=W, v=(16, 32))
    left = layers(before, "cpu", Selection(only=("Conv",)))
    assert {name for name, layer in left.items() if not layer.left} == {"c", "r"}
