"""BatchNormalization is folded into the layer before it, and names become unique."""

import numpy as np
import onnx_ir as ir
import pytest

from qconvert.backends.ort import open_cpu
from qconvert.core import onnx_io
from qconvert.core.tensors import random_inputs
from qconvert.graph.passes import fold_batchnorm, name_nodes
from qconvert.graph.patterns import UniqueNames
from tests.models import floats, from_text, ops, tiny

HEAD = '<ir_version: 10, opset_import: ["": 20]>\n'
NORM = "BatchNormalization <epsilon: float = 0.01> (h, gamma, beta, mean, var)"

GRAPHS: dict[str, tuple[str, dict[str, tuple[int, ...]]]] = {
    "conv without bias": (
        "net (float[N, 3, 6, 6] x) => (float[N, 4, 4, 4] y) { h = Conv (x, w) y = " + NORM + " }",
        {"w": (4, 3, 3, 3)},
    ),
    "grouped conv with bias": (
        "net (float[N, 4, 6, 6] x) => (float[N, 4, 4, 4] y) "
        "{ h = Conv <group: int = 4> (x, w, b) y = " + NORM + " }",
        {"w": (4, 1, 3, 3), "b": (4,)},
    ),
    "transposed conv in groups": (
        "net (float[N, 6, 3, 3] x) => (float[N, 4, 5, 5] y) "
        "{ h = ConvTranspose <group: int = 2> (x, w, b) y = " + NORM + " }",
        {"w": (6, 2, 3, 3), "b": (4,)},
    ),
    "gemm by columns": (
        "net (float[N, 3] x) => (float[N, 4] y) { h = Gemm (x, w, b) y = " + NORM + " }",
        {"w": (3, 4), "b": (4,)},
    ),
    "gemm by rows, scaled, without bias": (
        "net (float[N, 3] x) => (float[N, 4] y) "
        "{ h = Gemm <transB: int = 1, alpha: float = 0.5> (x, w) y = " + NORM + " }",
        {"w": (4, 3)},
    ),
    "gemm with one bias for all": (
        "net (float[N, 3] x) => (float[N, 4] y) { h = Gemm (x, w, b) y = " + NORM + " }",
        {"w": (3, 4), "b": (1,)},
    ),
}


def statistics() -> dict[str, np.ndarray]:
    return {
        "gamma": floats(4, seed=11),
        "beta": floats(4, seed=12),
        "mean": floats(4, seed=13),
        "var": np.abs(floats(4, seed=14)) + 0.1,
    }


def graph(text: str, shapes: dict[str, tuple[int, ...]]) -> ir.Model:
    weights = {name: floats(*shape, seed=k) for k, (name, shape) in enumerate(shapes.items())}
    return from_text(HEAD + text, **weights, **statistics())


@pytest.mark.parametrize("case", GRAPHS)
def test_batchnorm_is_folded_and_outputs_stay(case: str) -> None:
    model = graph(*GRAPHS[case])
    folded, summary = fold_batchnorm(model)
    assert summary == "1 folded"
    assert len(ops(folded)) == 1
    assert ops(model)[1] == "BatchNormalization", "the input is left alone"
    feeds = random_inputs(onnx_io.inputs(model), 2, seed=0)
    expected, outputs = open_cpu(model)(feeds)["y"], open_cpu(folded)(feeds)["y"]
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)
    assert {"w", "gamma"}.isdisjoint(folded.graph.initializers), "nothing unused stays"


ARITHMETIC = {
    "a bias beside the convolution": ("Conv (x, w)", "Add (h, operand)", (1, 4, 1, 1)),
    "a scale before it": ("Conv (x, w, b)", "Mul (operand, h)", (4, 1, 1)),
    "one number": ("Conv (x, w, b)", "Div (h, operand)", (1,)),
    "a scalar": ("Conv (x, w)", "Sub (h, operand)", ()),
}


@pytest.mark.parametrize("case", ARITHMETIC)
def test_channel_constant_is_folded_like_batchnorm(case: str) -> None:
    linear, text, shape = ARITHMETIC[case]
    bias = {"b": floats(4, seed=5)} if ", b" in linear else {}
    text = f"net (float[N, 3, 6, 6] x) => (float[N, 4, 4, 4] y) {{ h = {linear} y = {text} }}"
    model = from_text(HEAD + text, w=floats(4, 3, 3, 3), operand=floats(*shape, seed=6), **bias)
    folded, summary = fold_batchnorm(model)
    assert (summary, ops(folded)) == ("1 folded", ["Conv"])
    feeds = random_inputs(onnx_io.inputs(model), 2, seed=0)
    np.testing.assert_allclose(
        open_cpu(folded)(feeds)["y"], open_cpu(model)(feeds)["y"], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("shape", [(4, 4), (4, 1, 4), (2, 4, 1, 1), (1, 1, 1, 1, 1)])
def test_constant_beyond_one_per_channel_is_not_folded(shape: tuple[int, ...]) -> None:
    text = "net (float[N, 3, 6, 6] x) => (float[M, 4, 4, 4] y) { h = Conv (x, w) y = Add (h, e) }"
    model = from_text(HEAD + text, w=floats(4, 3, 3, 3), e=floats(*shape, seed=6))
    assert fold_batchnorm(model) == (model, "")


LEFT = {
    "two readers": "{ h = Conv (x, w) n = " + NORM + " y = Add (n, h) }",
    "an output itself": "{ h = Conv (x, w) y = " + NORM + " }",
    "not after a linear operator": "{ c = Conv (x, w) h = Relu (c) y = " + NORM + " }",
    "statistics that are computed": "{ h = Conv (x, w) mean2 = Neg (mean) "
    "y = BatchNormalization (h, gamma, beta, mean2, var) }",
}


@pytest.mark.parametrize("case", LEFT)
def test_batchnorm_is_not_folded_if_the_tensor_has_other_readers(case: str) -> None:
    outputs = "float[N, 4, 4, 4] y"
    if case == "an output itself":
        outputs += ", float[N, 4, 4, 4] h"
    text = f"net (float[N, 3, 6, 6] x) => ({outputs}) {LEFT[case]}"
    model = graph(text, {"w": (4, 3, 3, 3)})
    folded, summary = fold_batchnorm(model)
    assert summary == ""
    assert folded is model


def test_shared_weight_is_folded_for_one_layer_only() -> None:
    text = (
        "net (float[N, 3, 6, 6] x) => (float[N, 4, 4, 4] y) "
        "{ h = Conv (x, w) n = " + NORM + " other = Conv (x, w) y = Add (n, other) }"
    )
    model = graph(text, {"w": (4, 3, 3, 3)})
    folded, summary = fold_batchnorm(model)
    assert summary == "1 folded"
    feeds = random_inputs(onnx_io.inputs(model), 1, seed=0)
    np.testing.assert_allclose(
        open_cpu(folded)(feeds)["y"], open_cpu(model)(feeds)["y"], rtol=1e-4, atol=1e-5
    )


def test_batchnorm_of_another_domain_is_not_folded() -> None:
    text = (
        '<ir_version: 10, opset_import: ["": 20, "my": 1]>\n'
        "net (float[N, 3, 4, 4] x) => (float[N, 4, 4, 4] y) "
        "{ c = Conv (x, w) y = my.BatchNormalization (c) }\n"
        '<domain: "my", opset_import: ["": 20]>\n'
        "BatchNormalization (a) => (b) { b = Add (a, a) }"
    )
    model = from_text(text, w=floats(4, 3, 1, 1))
    assert fold_batchnorm(model) == (model, "")


def test_nodes_get_missing_and_unique_names() -> None:
    model = tiny()
    for node, name in zip(model.graph, ["a", "a", None, "", "a"], strict=True):
        node.name = name
    named, summary = name_nodes(model)
    names = [node.name for node in named.graph]
    assert names[:2] + names[4:] == ["a", "a_0", "a_1"]
    assert len(set(names)) == 5
    assert all(names)
    assert summary
    assert [node.name for node in name_nodes(model)[0].graph] == names


def test_new_name_does_not_collide_with_a_later_node() -> None:
    model = tiny()
    for node, name in zip(model.graph, ["a", "a", "a_0", "b", "c"], strict=True):
        node.name = name
    names = [node.name for node in name_nodes(model)[0].graph]
    assert len(set(names)) == 5


def test_exporter_metadata_is_dropped() -> None:
    model = tiny()
    model.graph.node(0).metadata_props["pkg.torch.onnx.stack_trace"] = "/home/someone/net.py:3"
    model.graph.node(0).doc_string = "/home/someone"
    named, _ = name_nodes(model)
    assert "someone" not in ir.to_onnx_text(named)
    assert not named.graph.node(0).metadata_props


def test_thousandth_name_of_a_stem_is_short() -> None:
    looks = 0

    class Looked(set[str]):
        def __contains__(self, name: object) -> bool:
            nonlocal looks
            looks += 1
            return super().__contains__(name)

    names = UniqueNames(Looked({"bias", "bias_2"}))
    reserved = [names.reserve("bias") for _ in range(1000)]
    assert reserved[:3] == ["bias_1", "bias_3", "bias_4"]
    assert reserved[-1] == "bias_1001"
    assert len(set(reserved)) == 1000
    assert looks <= 2 * 1000 + 1
