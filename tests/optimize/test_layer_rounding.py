"""Weights are learned layer by layer: outputs come closer to float, and integers are stored."""

from collections.abc import Iterable, Mapping

import numpy as np
import onnx_ir as ir
import pytest

from qconvert.backends.ort import open_cpu
from qconvert.core import onnx_io
from qconvert.core.tensors import Tensors
from qconvert.graph.patterns import constant_array
from qconvert.measure.output_error import sqnr_db
from qconvert.optimize import learned_rounding
from qconvert.optimize.coordinate_descent import LayerProblem, Solution, round_weights
from qconvert.optimize.learned_rounding import (
    RoundedLayer,
    find_learnable,
    learn_layers,
)
from qconvert.quantize import rounded_weights
from qconvert.quantize.apply_plan import apply_plan
from qconvert.quantize.placement import QuantizeOptions
from qconvert.quantize.plan import Plan
from qconvert.quantize.rounded_weights import RoundedWeight
from tests.models import floats, mixed
from tests.quantize.quantized_models import model, planned
from tests.quantize.test_apply_plan import plan as calibrated_plan

IMAGE = "(float[N, 3, 16, 16] image)"


def images(count: int, seed: int) -> Tensors:
    """Return images whose neighbouring pixels are alike, as in photographs."""
    coarse = floats(count, 3, 4, 4, seed=seed).repeat(4, axis=2).repeat(4, axis=3)
    return {"image": coarse + 0.3 * floats(count, 3, 16, 16, seed=seed + 1)}


def learn_each(
    net: ir.Model, plan: Plan, finished: Mapping[str, RoundedLayer] | None = None
) -> list[RoundedLayer]:
    pixels = images(32, seed=10)["image"]
    batches = [{"image": pixels[start : start + 4]} for start in range(0, 32, 4)]
    return list(learn_layers(net, plan, batches, 1024, finished or {}))


def weights_of(layers: Iterable[RoundedLayer]) -> dict[str, RoundedWeight]:
    return {layer.name: layer.weight for layer in layers if layer.weight is not None}


def learn(net: ir.Model, plan: Plan) -> dict[str, RoundedWeight]:
    return weights_of(learn_each(net, plan))


def apply_learned(net: ir.Model, plan: Plan, weights: dict[str, RoundedWeight]) -> ir.Model:
    return apply_plan(net, rounded_weights.with_digest(plan, weights), weights)


def net_of(body: str, signature: str, **shapes: tuple[int, ...]) -> ir.Model:
    """Return a net whose nodes have the names of their outputs."""
    net = model(body, signature, **shapes)
    for node in net.graph:
        node.name = str(node.outputs[0].name)
    return net


@pytest.mark.parametrize("backend", ["cpu", "tensorrt"])
def test_learned_weights_raise_the_sqnr_on_unseen_images(backend: str) -> None:
    net = mixed()
    plan = calibrated_plan(net, backend, QuantizeOptions())
    weights = learn(net, plan)
    assert len(weights) >= 4
    unseen = images(64, seed=77)
    reference = open_cpu(net)(unseen)
    before, after = (
        sqnr_db(reference, open_cpu(quantized)(unseen))
        for quantized in (apply_plan(net, plan), apply_learned(net, plan, weights))
    )
    assert after > before + 0.5


@pytest.mark.parametrize("backend", ["cpu", "tensorrt"])
@pytest.mark.parametrize("rest", ["fp32", "fp16"])
def test_graph_stores_the_learned_integers(backend: str, rest: str) -> None:
    net = mixed()
    plan = calibrated_plan(net, backend, QuantizeOptions(rest=rest))  # type: ignore[arg-type]
    weights = learn(net, plan)
    nodes = {node.name: node for node in apply_learned(net, plan, weights).graph}
    for name, weight in weights.items():
        dequantize = nodes[name].inputs[1].producer()  # type: ignore[union-attr]
        assert dequantize is not None
        np.testing.assert_array_equal(constant_array(dequantize.inputs[0]), weight.integers)
        np.testing.assert_array_equal(constant_array(dequantize.inputs[1]), weight.steps)


def test_resumed_training_learns_the_same_weights() -> None:
    net = mixed()
    plan = calibrated_plan(net, "cpu", QuantizeOptions())
    whole = learn_each(net, plan)
    finished = {layer.name: layer for layer in whole[:3]}
    resumed = learn_each(net, plan, finished)
    assert [layer.name for layer in resumed] == find_learnable(net, plan)
    digests = {rounded_weights.digest(weights_of(layers)) for layers in (whole, resumed)}
    assert digests == {rounded_weights.digest(learn(net, plan))}


def test_convolution_without_a_bias_gets_one() -> None:
    net = mixed()
    plan = calibrated_plan(net, "tensorrt", QuantizeOptions())
    weights = learn(net, plan)
    learned = apply_learned(net, plan, weights)
    side = next(node for node in learned.graph if node.name == "side")
    np.testing.assert_array_equal(constant_array(side.inputs[2]), weights["side"].bias)
    onnx_io.require_valid(learned)


@pytest.mark.parametrize("backend", ["cpu", "tensorrt"])
def test_constant_added_behind_a_matmul_takes_the_bias_correction(backend: str) -> None:
    net = net_of(
        "wide = MatMul (image, w1) b = Add (b1, wide) c = Gelu (b)"
        " last = MatMul (c, w2) d = Add (last, b2) scores = Identity (d)",
        f"{IMAGE} => (float[N, 3, 16, 32] scores)",
        w1=(16, 32),
        b1=(32,),
        w2=(32, 32),
        b2=(32,),
    )
    plan = planned(net, backend)
    weights = learn(net, plan)
    learned = apply_learned(net, plan, weights)
    adds = [node for node in learned.graph if node.op_type == "Add"]
    for node, slot, name in zip(adds, (0, 1), ("wide", "last"), strict=True):
        np.testing.assert_array_equal(constant_array(node.inputs[slot]), weights[name].bias)
    unseen = images(64, seed=77)
    reference = open_cpu(net)(unseen)["scores"]
    before, after = (
        np.abs((open_cpu(quantized)(unseen)["scores"] - reference).mean(axis=(0, 1, 2))).sum()
        for quantized in (apply_plan(net, plan), learned)
    )
    assert after < before


def test_constant_that_other_nodes_add_too_is_not_changed() -> None:
    net = net_of(
        "a = Flatten (image) wide = MatMul (a, w1) b = Add (wide, b1) c = Relu (b)"
        " d = Add (c, b1) scores = MatMul (d, w2)",
        f"{IMAGE} => (float[N, 10] scores)",
        w1=(768, 24),
        b1=(24,),
        w2=(24, 10),
    )
    weights = learn(net, planned(net, "cpu"))
    assert weights
    assert all(weight.bias is None for weight in weights.values())


def test_shared_weight_and_computed_bias_are_not_learnable() -> None:
    net = net_of(
        "a = Conv (image, w1) b = Relu (a) c = Conv (b, w2, m) d = Conv (c, w2)"
        " e = GlobalAveragePool (d) f = Flatten (e) scores = Gemm (f, w3)",
        "(float[N, 3, 16, 16] image, float[16] m) => (float[N, 24] scores)",
        w1=(16, 3, 1, 1),
        w2=(16, 16, 1, 1),
        w3=(16, 24),
    )
    assert find_learnable(net, planned(net, "cpu")) == ["a", "scores"]


def test_solution_that_fails_on_the_holdout_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    net = mixed()
    plan = calibrated_plan(net, "cpu", QuantizeOptions())

    def wrong(problem: LayerProblem) -> tuple[Solution, Solution]:
        biases = None if problem.biases is None else problem.biases + 1.0
        return Solution(problem.nearest, biases), Solution(-problem.nearest, problem.biases)

    monkeypatch.setattr(learned_rounding, "round_weights", wrong)
    layers = learn_each(net, plan)
    assert [layer.name for layer in layers] == find_learnable(net, plan)
    assert not weights_of(layers)


def test_memory_of_the_rows_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    net = mixed()
    monkeypatch.setattr(learned_rounding, "MAX_ROW_BYTES", 20_000)
    sizes: list[int] = []

    def recorded(problem: LayerProblem) -> tuple[Solution, Solution]:
        sizes.append(problem.rows.nbytes)
        return round_weights(problem)

    monkeypatch.setattr(learned_rounding, "round_weights", recorded)
    plan = calibrated_plan(net, "cpu", QuantizeOptions())
    assert len(learn_each(net, plan)) == len(sizes)
    # One row of each image at least, whatever its size.
    assert max(sizes) <= max(20_000, 32 * 4 * 144)
