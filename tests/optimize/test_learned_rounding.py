"""Weights are learned layer by layer, accepted by the error of the whole model, and cached."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
import pytest

from qconvert.backends.ort import open_cpu
from qconvert.core import onnx_io
from qconvert.core.cache import Cache
from qconvert.core.progress import Progress
from qconvert.core.tensors import Tensors
from qconvert.graph.passes import infer_shapes
from qconvert.graph.patterns import constant_array
from qconvert.measure.output_error import OutputError, sqnr_db
from qconvert.optimize import learned_rounding
from qconvert.optimize.calibration_set import CalibrationSet
from qconvert.optimize.candidate import Candidate
from qconvert.optimize.coordinate_descent import LayerProblem, Solution, round_weights
from qconvert.optimize.learned_rounding import (
    describe_decision,
    find_learnable,
    learn_layers,
    learn_rounding,
)
from qconvert.quantize import plan_files
from qconvert.quantize.apply_plan import apply_plan
from qconvert.quantize.placement import QuantizeOptions
from qconvert.quantize.plan import Plan, RoundedWeight, RoundedWeights
from tests.models import floats, from_text, mixed
from tests.optimize.calibrated import CACHE, candidate_of
from tests.quantize.quantized_models import model, planned
from tests.quantize.test_apply_plan import plan as calibrated_plan

IMAGE = "(float[N, 3, 16, 16] image)"
Learned = Mapping[str, RoundedWeight | None]


def images(count: int, seed: int) -> Tensors:
    """Return images with similar neighbouring pixels, as in photographs."""
    coarse = floats(count, 3, 4, 4, seed=seed).repeat(4, axis=2).repeat(4, axis=3)
    return {"image": coarse + 0.3 * floats(count, 3, 16, 16, seed=seed + 1)}


def learn_each(
    net: ir.Model, plan: Plan, finished: Learned | None = None
) -> dict[str, RoundedWeight | None]:
    pixels = images(32, seed=10)["image"]
    batches = [{"image": pixels[start : start + 4]} for start in range(0, 32, 4)]
    return dict(learn_layers(net, plan, batches, 1024, finished or {}))


def weights_of(layers: Learned) -> dict[str, RoundedWeight]:
    return {name: weight for name, weight in layers.items() if weight is not None}


def learn(net: ir.Model, plan: Plan) -> dict[str, RoundedWeight]:
    return weights_of(learn_each(net, plan))


def apply_learned(net: ir.Model, plan: Plan, weights: dict[str, RoundedWeight]) -> ir.Model:
    return apply_plan(net, replace(plan, learned=plan_files.weights_digest(weights)), weights)


def net_of(body: str, signature: str, **shapes: tuple[int, ...]) -> ir.Model:
    """Return a network whose nodes have the names of their outputs."""
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
    finished = dict(list(whole.items())[:3])
    resumed = learn_each(net, plan, finished)
    assert list(resumed) == find_learnable(net, plan)
    digests = {plan_files.weights_digest(weights_of(layers)) for layers in (whole, resumed)}
    assert digests == {plan_files.weights_digest(learn(net, plan))}


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


def test_rounding_that_fails_on_holdout_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    net = mixed()
    plan = calibrated_plan(net, "cpu", QuantizeOptions())

    def wrong(problem: LayerProblem) -> tuple[Solution, Solution]:
        biases = None if problem.biases is None else problem.biases + 1.0
        return Solution(problem.nearest, biases), Solution(-problem.nearest, problem.biases)

    monkeypatch.setattr(learned_rounding, "round_weights", wrong)
    layers = learn_each(net, plan)
    assert list(layers) == find_learnable(net, plan)
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
    # At least one row of each image, for any size.
    assert max(sizes) <= max(20_000, 32 * 4 * 144)


class LearnedPlan(NamedTuple):
    plan: Plan
    weights: RoundedWeights
    notes: tuple[str, ...]


class Learner:
    """A calibrated model with a plan, whose weights are learned; `stop_at` interrupts a run."""

    def __init__(self, model: ir.Model, images: int = 40) -> None:
        self.candidate: Candidate = candidate_of(model, "cpu", images, self.report)
        self.plan: Plan = self.candidate.trial_plan(self.candidate.options)
        self.events: list[Progress] = []
        self.stop_at = 0

    def report(self, progress: Progress) -> None:
        self.events.append(progress)
        if progress.step == "learn" and progress.done and progress.done == self.stop_at:
            raise KeyboardInterrupt

    def learn(self, effort: str = "quick", cache: Cache = CACHE) -> LearnedPlan:
        self.events.clear()
        learned, notes = learn_rounding(self.plan, self.candidate, effort, cache)
        return LearnedPlan(learned.plan, learned.weights, notes)

    def replace_calibration(self, calibration: CalibrationSet) -> None:
        self.candidate = replace(self.candidate, calibration=calibration)


@pytest.fixture
def learner() -> Learner:
    return Learner(mixed())


def test_plan_has_the_digest_of_its_weights_and_a_note_with_the_errors(learner: Learner) -> None:
    learned = learner.learn()
    assert learned.weights
    assert learned.plan.learned == plan_files.weights_digest(learned.weights)
    (note,) = learned.notes
    used = re.fullmatch(r"learned rounding: 6 layers, used \((.*) on 8 images\)", note)
    assert used is not None
    before, after = re.findall(r"\d+\.\d", used[1])
    assert used[1] == f"validation SQNR {before} -> {after} dB"
    assert float(after) > float(before)
    assert learner.events[-1].text == note


def test_note_has_the_figures_that_decided() -> None:
    def error(noise: float, changed: int) -> OutputError:
        return OutputError(
            np.full(20, noise), noise, np.r_[np.ones(changed), np.zeros(20 - changed)]
        )

    better = describe_decision(True, error(0.1, 0), error(0.01, 2))
    assert better == "used (validation SQNR 10.0 -> 20.0 dB on 20 images)"
    worse = describe_decision(False, error(0.1, 0), error(0.2, 2))
    assert worse == "not used (validation SQNR 10.0 -> 7.0 dB on 20 images)"
    assert describe_decision(False, error(0.1, 0), error(0.01, 2)) == (
        "not used (validation SQNR 10.0 -> 20.0 dB, but output error 0.1 -> 0.01 and "
        "0.0% -> 10.0% changed predictions on 20 images)"
    )


def test_note_about_a_detector_has_the_error_of_its_boxes() -> None:
    before, after = (
        OutputError(np.full(20, noise), noise, of_boxes=True) for noise in (0.04, 0.02)
    )
    assert describe_decision(True, before, after) == (
        "used (error of boxes 0.04 -> 0.02 on 20 images)"
    )


def test_few_images_leave_some_for_validation() -> None:
    (note,) = Learner(mixed(), 12).learn().notes
    assert "on 4 images" in note


def test_learned_rounding_is_skipped_for_too_few_images() -> None:
    learned = Learner(mixed(), 8).learn()
    assert not learned.weights
    assert "needs more calibration images than 8" in learned.notes[0]


def test_second_run_reads_the_weights_from_the_cache(learner: Learner) -> None:
    first, second = learner.learn(), learner.learn()
    (event,) = learner.events
    assert event.stored
    assert plan_files.weights_digest(first.weights) == plan_files.weights_digest(second.weights)


def test_effort_none_skips_learned_rounding(learner: Learner) -> None:
    assert learner.learn("none") == (learner.plan, {}, ())


def test_learned_rounding_without_images_is_skipped_with_note(learner: Learner) -> None:
    calibration = learner.candidate.calibration
    learner.replace_calibration(replace(calibration, images=None))
    learned = learner.learn()
    assert not learned.weights
    assert "--images" in learned.notes[0]


def test_interrupted_run_resumes_after_the_layers_it_learned(learner: Learner) -> None:
    cache = Cache(Path(".other"))

    def interrupt(layers: int) -> dict[str, int]:
        """Stop after some layers, and return when each was saved."""
        learner.stop_at = layers
        with pytest.raises(KeyboardInterrupt):
            learner.learn(cache=cache)
        return {path.name: path.stat().st_mtime_ns for path in cache.root.rglob("*.npz")}

    saved, more = interrupt(3), interrupt(5)
    assert (len(saved), len(more)) == (3, 5)
    assert saved.items() <= more.items()
    learner.stop_at = 0
    whole, resumed = learner.learn(), learner.learn(cache=cache)
    assert plan_files.weights_digest(resumed.weights) == plan_files.weights_digest(whole.weights)


SQUEEZING = """
<ir_version: 10, opset_import: ["": 20]>
net (float[N, 3, 16, 16] image) => (float[N, 8] scores) {
    stem = Conv <pads: ints = [1, 1, 1, 1], strides: ints = [2, 2]> (image, w1, b1)
    a = HardSwish (stem)
    deep = Conv <pads: ints = [1, 1, 1, 1], group: int = 16> (a, w2, b2)
    b = HardSwish (deep)
    mean = GlobalAveragePool (b)
    less = Conv (mean, w3, b3)
    on = Relu (less)
    more = Conv (on, w4, b4)
    gate = HardSigmoid (more)
    gated = Mul (b, gate)
    thin = Conv (gated, w5, b5)
    pooled = GlobalAveragePool (thin)
    flat = Flatten (pooled)
    scores = Gemm <transB: int = 1> (flat, w6, b6)
}
"""
SQUEEZING_SHAPES = {
    "w1": (16, 3, 3, 3), "b1": (16,), "w2": (16, 1, 3, 3), "b2": (16,), "w3": (4, 16, 1, 1),
    "b3": (4,), "w4": (16, 4, 1, 1), "b4": (16,), "w5": (8, 16, 1, 1), "b5": (8,), "w6": (8, 8),
    "b6": (8,),
}  # fmt: skip


class Overexposed(CalibrationSet):
    """A calibration whose training images are far brighter than all others."""

    def training_batches(self, count: int) -> list[Tensors]:
        return [{"image": 20 + floats(4, 3, 16, 16, seed=seed)} for seed in range(8)]


def test_correction_learned_on_unrepresentative_images_is_rejected() -> None:
    """A correction for clipped highlights in overexposed images is wrong for all others."""
    weights = {
        name: floats(*shape, seed=seed) / np.float32(np.sqrt(np.prod(shape[1:])))
        for seed, (name, shape) in enumerate(SQUEEZING_SHAPES.items())
    }
    model = infer_shapes(from_text(SQUEEZING, **weights))[0]
    for node in model.graph:
        node.name = node.outputs[0].name
    learner = Learner(model)
    learner.replace_calibration(Overexposed(**vars(learner.candidate.calibration)))
    learned = learner.learn("default")
    assert not learned.weights
    assert learned.plan == learner.plan
    assert ", not used (" in learned.notes[0]
    sqnr = re.search("SQNR (.*?) -> (.*?) dB", learned.notes[0])
    assert sqnr is not None
    assert float(sqnr[2]) < float(sqnr[1]) - 3
