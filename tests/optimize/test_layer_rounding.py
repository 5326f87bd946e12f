"""Weights are learned layer by layer; what comes out is nearer, and what was learned is stored."""

import functools
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import pytest

from qconvert.backends.ort import open_cpu
from qconvert.core import onnx_io
from qconvert.core.tensors import Tensors
from qconvert.graph.patterns import constant_array
from qconvert.measure.output_error import sqnr_db
from qconvert.optimize import layer_rounding
from qconvert.optimize.coordinate_descent import Solution, round_weights
from qconvert.optimize.layer_problem import LayerProblem
from qconvert.optimize.layer_rounding import RoundedLayer, TrainingSet, find_learnable, learn_layers
from qconvert.quantize import rounded_weights
from qconvert.quantize.apply_plan import apply_plan
from qconvert.quantize.placement import QuantizeOptions
from qconvert.quantize.plan import Plan
from qconvert.quantize.rounded_weights import RoundedWeight
from tests.models import floats, mixed
from tests.quantize import quantized_models
from tests.quantize.quantized_models import model
from tests.quantize.test_apply_plan import plan as planned

literal = functools.partial(open_cpu, keep_qdq=True)


def images(count: int, seed: int) -> Tensors:
    """Return images whose pixels hang together, as those of photographs do."""
    rough = floats(count, 3, 4, 4, seed=seed).repeat(4, axis=2).repeat(4, axis=3)
    return {"image": rough + 0.3 * floats(count, 3, 16, 16, seed=seed + 1)}


def lesson(known: dict[str, RoundedLayer] | None = None) -> TrainingSet:
    every = images(32, seed=10)["image"]
    parts = [{"image": every[start : start + 4]} for start in range(0, 32, 4)]
    return TrainingSet(parts, literal, rows=1024, finished=known or {})


def kept(taught: Sequence[RoundedLayer]) -> dict[str, RoundedWeight]:
    return {each.name: each.weight for each in taught if each.weight is not None}


def applied(net: ir.Model, plan: Plan, weights: dict[str, RoundedWeight]) -> ir.Model:
    return apply_plan(net, rounded_weights.with_digest(plan, weights), weights)


@pytest.mark.parametrize("backend", ["cpu", "tensorrt"])
def test_answers_come_nearer_to_those_in_float_on_images_never_seen(backend: str) -> None:
    net = mixed()
    plan = planned(net, backend, QuantizeOptions())
    weights = kept(list(learn_layers(net, plan, lesson())))
    assert len(weights) >= 4
    unseen = images(64, seed=77)
    wanted = open_cpu(net)(unseen)
    before, after = (
        sqnr_db(wanted, open_cpu(each)(unseen))
        for each in (apply_plan(net, plan), applied(net, plan, weights))
    )
    assert after > before + 0.5


@pytest.mark.parametrize("backend", ["cpu", "tensorrt"])
@pytest.mark.parametrize("rest", ["fp32", "fp16"])
def test_the_stored_integers_are_the_very_ones_that_were_learned(backend: str, rest: str) -> None:
    net = mixed()
    plan = planned(net, backend, QuantizeOptions(rest=rest))  # type: ignore[arg-type]
    weights = kept(list(learn_layers(net, plan, lesson())))
    made = applied(net, plan, weights)
    for name, each in weights.items():
        node = next(node for node in made.graph if node.name == name)
        back = node.inputs[1].producer()  # type: ignore[union-attr]
        assert back is not None
        np.testing.assert_array_equal(constant_array(back.inputs[0]), each.integers)
        np.testing.assert_array_equal(constant_array(back.inputs[1]), each.steps)


def test_the_same_images_teach_the_same_whether_at_once_or_in_two_goes() -> None:
    net = mixed()
    plan = planned(net, "cpu", QuantizeOptions())
    whole = list(learn_layers(net, plan, lesson()))
    again = list(learn_layers(net, plan, lesson()))
    assert rounded_weights.digest(kept(whole)) == rounded_weights.digest(kept(again))
    half = {each.name: each for each in whole[:3]}
    resumed = list(learn_layers(net, plan, lesson(half)))
    assert [each.name for each in resumed] == find_learnable(net, plan)
    assert rounded_weights.digest(kept(resumed)) == rounded_weights.digest(kept(whole))


def test_a_convolution_without_a_bias_gets_one_where_that_helps() -> None:
    net = mixed()
    plan = planned(net, "tensorrt", QuantizeOptions())
    weights = kept(list(learn_layers(net, plan, lesson())))
    made = applied(net, plan, weights)
    side = next(node for node in made.graph if node.name == "side")
    np.testing.assert_array_equal(constant_array(side.inputs[2]), weights["side"].bias)
    onnx_io.require_valid(made)


@pytest.mark.parametrize("backend", ["cpu", "tensorrt"])
def test_what_is_added_behind_a_product_takes_its_mean_error(backend: str) -> None:
    net = model(
        "wide = MatMul (image, w1) b = Add (b1, wide) c = Gelu (b)"
        " last = MatMul (c, w2) d = Add (last, b2) scores = Identity (d)",
        "(float[N, 3, 16, 16] image) => (float[N, 3, 16, 32] scores)",
        w1=(16, 32),
        b1=(32,),
        w2=(32, 32),
        b2=(32,),
    )
    for node in net.graph:
        node.name = str(node.outputs[0].name)
    plan = quantized_models.planned(net, backend)
    weights = kept(list(learn_layers(net, plan, lesson())))
    made = applied(net, plan, weights)
    adds = [node for node in made.graph if node.op_type == "Add"]
    for node, slot, name in zip(adds, (0, 1), ("wide", "last"), strict=True):
        np.testing.assert_array_equal(constant_array(node.inputs[slot]), weights[name].bias)
    unseen = images(64, seed=77)
    wanted = open_cpu(net)(unseen)["scores"]
    before, after = (
        np.abs((open_cpu(each)(unseen)["scores"] - wanted).mean(axis=(0, 1, 2))).sum()
        for each in (apply_plan(net, plan), made)
    )
    assert after < before


def test_a_constant_that_others_add_too_is_left_alone() -> None:
    net = model(
        "a = Flatten (image) wide = MatMul (a, w1) b = Add (wide, b1) c = Relu (b)"
        " d = Add (c, b1) scores = MatMul (d, w2)",
        "(float[N, 3, 16, 16] image) => (float[N, 10] scores)",
        w1=(768, 24),
        b1=(24,),
        w2=(24, 10),
    )
    for node in net.graph:
        node.name = str(node.outputs[0].name)
    weights = kept(list(learn_layers(net, quantized_models.planned(net, "cpu"), lesson())))
    assert weights
    assert all(each.bias is None for each in weights.values())


def test_a_weight_that_two_nodes_read_and_a_bias_that_is_computed_are_left_alone() -> None:
    net = model(
        "a = Conv (image, w1) b = Relu (a) c = Conv (b, w2, m) d = Conv (c, w2)"
        " e = GlobalAveragePool (d) f = Flatten (e) scores = Gemm (f, w3)",
        "(float[N, 3, 16, 16] image, float[16] m) => (float[N, 24] scores)",
        w1=(16, 3, 1, 1),
        w2=(16, 16, 1, 1),
        w3=(16, 24),
    )
    for node in net.graph:
        node.name = str(node.outputs[0].name)
    assert find_learnable(net, quantized_models.planned(net, "cpu")) == ["a", "scores"]


def test_a_layer_keeps_nothing_that_does_not_hold_on_other_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net = mixed()
    plan = planned(net, "cpu", QuantizeOptions())

    def wrong(task: LayerProblem) -> tuple[Solution, Solution]:
        found = Solution(task.nearest, None if task.biases is None else task.biases + 1.0)
        return found, Solution(-task.nearest, task.biases)

    monkeypatch.setattr(layer_rounding, "round_weights", wrong)
    taught = list(learn_layers(net, plan, lesson()))
    assert [each.name for each in taught] == find_learnable(net, plan)
    assert not kept(taught)


def test_memory_of_the_rows_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    net = mixed()
    monkeypatch.setattr(layer_rounding, "MAX_ROW_BYTES", 20_000)
    sizes: list[int] = []

    def watched(task: LayerProblem) -> tuple[Solution, Solution]:
        sizes.append(task.rows.nbytes)
        return round_weights(task)

    monkeypatch.setattr(layer_rounding, "round_weights", watched)
    plan = planned(net, "cpu", QuantizeOptions())
    assert len(list(learn_layers(net, plan, lesson()))) == len(sizes)
    # One row of each image at least, whatever its size.
    assert max(sizes) <= max(20_000, 32 * 4 * 144)
