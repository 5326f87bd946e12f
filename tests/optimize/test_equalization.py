"""Channels divided by factors answer the same, and only where the graph allows it."""

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from qconvert.backends.ort import open_cpu
from qconvert.core.errors import UsageError
from qconvert.core.onnx_io import fingerprint, inputs
from qconvert.core.tensors import random_inputs
from qconvert.graph.observed_tensors import find_observed_tensors
from qconvert.graph.simplify import infer_shapes
from qconvert.optimize import equalization
from qconvert.quantize.cross_layer import (
    EqualizationSite,
    channel_count,
    equalize,
    find_sites,
    scaled_tensors,
)
from tests.calibrate.activations import summary_of_channels
from tests.models import floats, from_text
from tests.quantize.quantized_models import HEAD, model

WIDE = {"w1": (6, 3, 3, 3), "b1": (6,), "w2": (4, 6, 1, 1)}
CHAIN = "c = Conv (x, w1, b1) a = {} (c) y = Conv (a, w2)"
IMAGE = "(float[N, 3, 8, 8] x) => (float[] y)"
ROWS = "(float[N, 5, 8] x) => (float[] y)"
NORM = {"scale": (8,), "bias": (8,), "w": (8, 4)}


def named(graph: ir.Graph) -> dict[str, EqualizationSite]:
    return {str(site.tensor.name): site for site in find_sites(graph)}


def random_factors(before: ir.Model) -> dict[str, tuple[float, ...]]:
    """Return factors between an eighth and eight for every site."""
    return {
        name: tuple(
            map(float, 2.0 ** np.random.default_rng(at).uniform(-3, 3, channel_count(site)))
        )
        for at, (name, site) in enumerate(named(before.graph).items())
    }


def apart(before: ir.Model, after: ir.Model) -> float:
    """Return the largest difference between what two models answer, as a share of the answers."""
    feeds = random_inputs(inputs(before), 2, seed=0)
    a, b = (next(iter(open_cpu(each)(feeds).values())) for each in (before, after))
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
def test_a_model_with_factors_answers_the_same_and_says_which_tensors_changed(name: str) -> None:
    body, signature, shapes, places = GRAPHS[name]
    before = model(body, signature, **shapes)
    found = random_factors(before)
    assert list(found) == places
    after = equalize(before, found)
    assert apart(before, after) < 1e-5
    assert fingerprint(after) != fingerprint(before)
    assert set(places) <= scaled_tensors(before.graph, found)


def test_the_tensors_between_the_maker_and_the_reader_are_scaled_and_no_others() -> None:
    body, signature, shapes, _ = GRAPHS["depthwise"]
    before = model(body, signature, **shapes)
    assert scaled_tensors(before.graph, {"e": (1.0,) * 6}) == {"d", "e"}


HIDDEN = {
    "an activation that is not straight": (CHAIN.format("Sigmoid"), IMAGE, WIDE),
    "a reader of another kind": (
        "c = Conv (x, w1, b1) s = Sigmoid (c) q = Conv (c, w2) y = Concat <axis: int = 1> (q, s)",
        IMAGE,
        WIDE,
    ),
    "an answer of the graph": (
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


@pytest.mark.parametrize("name", HIDDEN)
def test_there_are_no_factors_across(name: str) -> None:
    body, signature, shapes = HIDDEN[name]
    assert find_sites(model(body, signature, **shapes).graph) == []


@pytest.mark.parametrize("wrong", [{"x": (1.0,) * 3}, {"a": (1.0,) * 5}, {"a": (-1.0,) * 6}])
def test_factors_that_do_not_fit_are_refused_with_the_tensor(
    wrong: dict[str, tuple[float, ...]],
) -> None:
    before = model(CHAIN.format("Relu"), IMAGE, **WIDE)
    with pytest.raises(UsageError, match=f"factors for `{next(iter(wrong))}`"):
        equalize(before, wrong)


def test_channels_of_about_one_size_get_no_factors() -> None:
    before = model(CHAIN.format("Relu"), IMAGE, **WIDE)
    assert chosen(before, np.ones(6, np.float32)) == {}


def test_a_tensor_that_is_always_zero_gets_no_factors() -> None:
    before = model(CHAIN.format("Relu"), IMAGE, **WIDE)
    assert chosen(before, np.zeros(6, np.float32)) == {}


def test_channels_of_very_different_sizes_come_closer() -> None:
    before = model(CHAIN.format("Relu"), IMAGE, **WIDE)
    largest = np.array([100.0, 1.0, 0.1, 10.0, 0.5, 0.0], np.float32)
    grown = largest[:5] / np.array(chosen(before, largest)["a"])[:5]
    assert grown.max() / grown.min() < 0.1 * 1000


def test_below_a_ceiling_no_channel_grows_beyond_what_calibration_leaves_room_for() -> None:
    limits = {"zero": np.array(0, np.float32), "six": np.array(6, np.float32)}
    weights = {name: floats(*shape) for name, shape in WIDE.items()}
    text = f"{HEAD}net {IMAGE} {{ c = Conv (x, w1, b1) a = Clip (c, zero, six) y = Conv (a, w2) }}"
    before = infer_shapes(from_text(text, **weights, **limits))[0]
    largest = np.array([6.0, 2.0, 0.5, 0.01, 4.0, 0.0], np.float32)
    each = np.array(chosen(before, largest)["a"])
    grown = largest / each
    assert (grown <= np.maximum(largest, 6 / equalization.HEADROOM) * 1.001).all()
    assert each[0] == each[4] == 1.0  # they come too near the ceiling as they are
    assert grown[2] > largest[2]


def chosen(before: ir.Model, largest: NDArray[np.float32]) -> dict[str, tuple[float, ...]]:
    """Return the factors for a tensor whose channels were seen to reach so far."""
    values = np.linspace(0, 1, 64, dtype=np.float32) * largest[:, np.newaxis]
    summaries = {"a": summary_of_channels(np.stack([values, values]))}
    return equalization.choose_factors(before.graph, find_observed_tensors(before), summaries)
