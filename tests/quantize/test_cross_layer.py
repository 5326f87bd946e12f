"""Cross-layer equalization keeps the float outputs, on graphs that allow it."""

import numpy as np
import onnx_ir as ir
import pytest

from qconvert.backends.ort import open_cpu
from qconvert.core.errors import UsageError
from qconvert.core.onnx_io import fingerprint, inputs
from qconvert.core.tensors import random_inputs
from qconvert.quantize.cross_layer import EqualizationSite, equalize, find_sites, scaled_tensors
from tests.quantize.quantized_models import model

WIDE = {"w1": (6, 3, 3, 3), "b1": (6,), "w2": (4, 6, 1, 1)}
CHAIN = "c = Conv (x, w1, b1) a = {} (c) y = Conv (a, w2)"
IMAGE = "(float[N, 3, 8, 8] x) => (float[] y)"
ROWS = "(float[N, 5, 8] x) => (float[] y)"
NORM = {"scale": (8,), "bias": (8,), "w": (8, 4)}


def sites_by_name(graph: ir.Graph) -> dict[str, EqualizationSite]:
    return {str(site.tensor.name): site for site in find_sites(graph)}


def random_factors(model: ir.Model) -> dict[str, tuple[float, ...]]:
    """Return factors between an eighth and eight for every site."""
    factors = {}
    for seed, (name, site) in enumerate(sites_by_name(model.graph).items()):
        exponents = np.random.default_rng(seed).uniform(-3, 3, site.channels)
        factors[name] = tuple(map(float, 2.0**exponents))
    return factors


def largest_difference(before: ir.Model, after: ir.Model) -> float:
    """Return the largest difference between the outputs of two models, relative to the largest."""
    feeds = random_inputs(inputs(before), 2, seed=0)
    a, b = (next(iter(open_cpu(model)(feeds).values())) for model in (before, after))
    return float(np.abs(a - b).max() / np.abs(a).max())


DEPTHWISE = """c = Conv (x, w1, b1) a = Relu (c)
    d = Conv <group: int = 6, pads: ints = [1, 1, 1, 1]> (a, wd) e = Relu (d)
    y = Conv (e, w2)"""
POOLED = """c = Conv (x, w1, b1) a = Relu (c)
    p = MaxPool <kernel_shape: ints = [2, 2]> (a) y = Conv (p, w2)"""
ADDED = "m = MatMul (x, w0) a = Add (m, bias) y = MatMul (a, w)"
LAYER_NORM = "a = LayerNormalization <axis: int = -1> (x, scale, bias) y = MatMul (a, w)"
TWO_READERS = f"{LAYER_NORM[:-18]} z = MatMul (a, w) q = MatMul (a, v) y = Add (z, q)"

GRAPHS = {
    "Relu": (CHAIN.format("Relu"), IMAGE, WIDE, ["a"]),
    "LeakyRelu": (CHAIN.format("LeakyRelu"), IMAGE, WIDE, ["a"]),
    "nothing": ("c = Conv (x, w1, b1) y = Conv (c, w2)", IMAGE, WIDE, ["c"]),
    "pooling": (POOLED, IMAGE, WIDE, ["p"]),
    "depthwise": (DEPTHWISE, IMAGE, {**WIDE, "wd": (6, 1, 3, 3)}, ["a", "e"]),
    "LayerNormalization": (LAYER_NORM, ROWS, NORM, ["a"]),
    "two readers": (TWO_READERS, ROWS, {**NORM, "v": (8, 4)}, ["a"]),
    "MatMul and Add": (ADDED, ROWS, {"w0": (8, 8), "bias": (8,), "w": (8, 4)}, ["a"]),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_equalized_model_has_the_same_outputs_and_other_weights(name: str) -> None:
    body, signature, shapes, tensors = GRAPHS[name]
    before = model(body, signature, **shapes)
    factors = random_factors(before)
    assert list(factors) == tensors
    after = equalize(before, factors)
    assert largest_difference(before, after) < 1e-5
    assert fingerprint(after) != fingerprint(before)
    assert set(tensors) <= scaled_tensors(before.graph, factors)


def test_tensors_from_producer_to_reader_are_scaled_and_no_others() -> None:
    body, signature, shapes, _ = GRAPHS["depthwise"]
    before = model(body, signature, **shapes)
    assert scaled_tensors(before.graph, {"e": (1.0,) * 6}) == {"d", "e"}


UNSUITABLE = {
    "an activation that is not homogeneous": (CHAIN.format("Sigmoid"), IMAGE, WIDE),
    "a reader of another kind": (
        "c = Conv (x, w1, b1) s = Sigmoid (c) q = Conv (c, w2) y = Concat <axis: int = 1> (q, s)",
        IMAGE,
        WIDE,
    ),
    "an output of the graph": (
        "a = Conv (x, w1, b1) y = Conv (a, w2)",
        "(float[N, 3, 8, 8] x) => (float[] y, float[] a)",
        WIDE,
    ),
    "a weight that two nodes read": (
        "c = Conv (x, w1, b1) a = Relu (c) p = Conv (a, w2) q = Conv (a, w2) y = Add (p, q)",
        IMAGE,
        WIDE,
    ),
    "another axis": (
        "c = Conv (x, w1, b1) y = MatMul (c, w)",
        IMAGE,
        {"w1": (6, 3, 3, 3), "b1": (6,), "w": (6, 6)},
    ),
    "a bias that is one number": (
        "c = Gemm (x, w1, b1) y = MatMul (c, w)",
        "(float[N, 8] x) => (float[] y)",
        {"w1": (8, 6), "b1": (), "w": (6, 4)},
    ),
    "groups of several channels": (
        "c = Conv (x, w1, b1) y = Conv <group: int = 2> (c, w2)",
        IMAGE,
        {"w1": (6, 3, 3, 3), "b1": (6,), "w2": (4, 3, 1, 1)},
    ),
}


@pytest.mark.parametrize("name", UNSUITABLE)
def test_unsuitable_graph_has_no_site(name: str) -> None:
    body, signature, shapes = UNSUITABLE[name]
    assert find_sites(model(body, signature, **shapes).graph) == []


@pytest.mark.parametrize("factors", [{"x": (1.0,) * 3}, {"a": (1.0,) * 5}, {"a": (-1.0,) * 6}])
def test_factors_that_do_not_fit_are_rejected_with_the_tensor(
    factors: dict[str, tuple[float, ...]],
) -> None:
    before = model(CHAIN.format("Relu"), IMAGE, **WIDE)
    with pytest.raises(UsageError, match=f"factors for `{next(iter(factors))}`"):
        equalize(before, factors)
