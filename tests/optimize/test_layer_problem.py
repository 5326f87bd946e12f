"""What follows a layer is recognised, and computed as ONNX Runtime does."""

import math

import numpy as np
import pytest

from qconvert.backends.ort import open_cpu
from qconvert.optimize.coordinate_descent import IDENTITY, find_activation
from qconvert.quantize.cross_layer import find_sites
from tests.quantize.quantized_models import model

SIGNATURE = "(float[N, 3, 8, 8] x) => (float[] y)"
ACTIVATIONS = {
    "Relu": "y = Relu (c)",
    "Sigmoid": "y = Sigmoid (c)",
    "HardSigmoid": "y = HardSigmoid (c)",
    "HardSigmoid of its own": "y = HardSigmoid <alpha: float = 0.1667, beta: float = 0.4> (c)",
    "HardSwish": "y = HardSwish (c)",
    "Gelu": "y = Gelu (c)",
    "SiLU": "s = Sigmoid (c) y = Mul (c, s)",
    "HardSwish in two": "s = HardSigmoid (c) y = Mul (s, c)",
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_computes_what_the_graph_computes(name: str) -> None:
    net = model(f"c = Conv (x, w) {ACTIVATIONS[name]}", SIGNATURE, w=(3, 3, 1, 1))
    conv = next(node for node in net.graph if node.op_type == "Conv")
    both = net.clone()
    both.graph.outputs.append(next(n for n in both.graph if n.op_type == "Conv").outputs[0])
    feeds = {"x": np.random.default_rng(0).normal(0, 3, (2, 3, 8, 8)).astype(np.float32)}
    outputs = open_cpu(both)(feeds)
    activated = find_activation(conv).apply(np.asarray(outputs["c"]))
    np.testing.assert_allclose(activated, outputs["y"], atol=1e-3)


def test_only_a_relu_or_clip_has_limits() -> None:
    limits = {}
    for name, text in ACTIVATIONS.items():
        net = model(f"c = Conv (x, w) {text}", SIGNATURE, w=(3, 3, 1, 1))
        activation = find_activation(next(iter(net.graph)))
        limits[name] = (activation.low, activation.high)
    assert limits.pop("Relu") == (0.0, math.inf)
    assert set(limits.values()) == {(-math.inf, math.inf)}


@pytest.mark.parametrize(
    "text",
    [
        "y = Add (c, c)",
        "s = Sigmoid (c) y = Add (c, s)",
        "s = Sigmoid (c) t = Mul (c, s) y = Add (t, s)",
        "s = Sigmoid (c) r = Relu (c) y = Mul (r, s)",
    ],
)
def test_other_readers_are_no_activation(text: str) -> None:
    net = model(f"c = Conv (x, w) {text}", SIGNATURE, w=(3, 3, 1, 1))
    assert find_activation(next(iter(net.graph))) is IDENTITY


def test_clip_limits_may_be_lists_of_one() -> None:
    constants = "l = Constant <value_floats: floats = [0.0]> () "
    constants += "h = Constant <value_floats: floats = [6.0]> () "
    net = model(
        f"{constants} c = Conv (x, w) d = Clip (c, l, h) y = Conv (d, v)",
        SIGNATURE,
        w=(3, 3, 1, 1),
        v=(3, 3, 1, 1),
    )
    conv = next(node for node in net.graph if node.op_type == "Conv")
    assert (find_activation(conv).low, find_activation(conv).high) == (0.0, 6.0)
    assert [site.ceiling for site in find_sites(net.graph)] == [6.0]
