"""What follows a layer is recognised, and computed as ONNX Runtime does."""

import math

import numpy as np
import pytest

from qconvert.backends.ort import open_cpu
from qconvert.optimize.layer_problem import IDENTITY, find_activation
from qconvert.quantize.cross_layer import find_sites
from tests.quantize.quantized_models import model

SIGNATURE = "(float[N, 3, 8, 8] x) => (float[] y)"
KNOWN = {
    "Relu": "y = Relu (c)",
    "Sigmoid": "y = Sigmoid (c)",
    "HardSigmoid": "y = HardSigmoid (c)",
    "HardSigmoid of its own": "y = HardSigmoid <alpha: float = 0.1667, beta: float = 0.4> (c)",
    "HardSwish": "y = HardSwish (c)",
    "Gelu": "y = Gelu (c)",
    "SiLU": "s = Sigmoid (c) y = Mul (c, s)",
    "HardSwish in two": "s = HardSigmoid (c) y = Mul (s, c)",
}


@pytest.mark.parametrize("name", KNOWN)
def test_an_activation_answers_as_the_graph_does(name: str) -> None:
    net = model(f"c = Conv (x, w) {KNOWN[name]}", SIGNATURE, w=(3, 3, 1, 1))
    conv = next(node for node in net.graph if node.op_type == "Conv")
    both = net.clone()
    both.graph.outputs.append(next(n for n in both.graph if n.op_type == "Conv").outputs[0])
    feeds = {"x": np.random.default_rng(0).normal(0, 3, (2, 3, 8, 8)).astype(np.float32)}
    answers = open_cpu(both)(feeds)
    found = find_activation(conv).apply(np.asarray(answers["c"]))
    np.testing.assert_allclose(found, answers["y"], atol=1e-3)


def test_only_a_relu_or_clip_cuts_anything_off() -> None:
    cutting = {}
    for name, text in KNOWN.items():
        net = model(f"c = Conv (x, w) {text}", SIGNATURE, w=(3, 3, 1, 1))
        activation = find_activation(next(iter(net.graph)))
        cutting[name] = (activation.low, activation.high)
    assert cutting.pop("Relu") == (0.0, math.inf)
    assert set(cutting.values()) == {(-math.inf, math.inf)}


@pytest.mark.parametrize(
    "text",
    [
        "y = Add (c, c)",
        "s = Sigmoid (c) y = Add (c, s)",
        "s = Sigmoid (c) t = Mul (c, s) y = Add (t, s)",
        "s = Sigmoid (c) r = Relu (c) y = Mul (r, s)",
    ],
)
def test_what_is_not_an_activation_is_nothing(text: str) -> None:
    net = model(f"c = Conv (x, w) {text}", SIGNATURE, w=(3, 3, 1, 1))
    assert find_activation(next(iter(net.graph))) is IDENTITY


def test_the_limits_of_a_clip_may_stand_in_lists_of_one() -> None:
    limits = "l = Constant <value_floats: floats = [0.0]> () "
    limits += "h = Constant <value_floats: floats = [6.0]> () "
    net = model(
        f"{limits} c = Conv (x, w) d = Clip (c, l, h) y = Conv (d, v)",
        SIGNATURE,
        w=(3, 3, 1, 1),
        v=(3, 3, 1, 1),
    )
    conv = next(node for node in net.graph if node.op_type == "Conv")
    assert (find_activation(conv).low, find_activation(conv).high) == (0.0, 6.0)
    assert [site.ceiling for site in find_sites(net.graph)] == [6.0]
