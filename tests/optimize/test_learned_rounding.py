"""Learned weights are accepted only if they lower the error of the whole model, and cached."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from qconvert.core.cache import Cache
from qconvert.core.progress import Progress
from qconvert.core.tensors import Tensors
from qconvert.graph.passes import infer_shapes
from qconvert.optimize import learned_rounding, partial_execution
from qconvert.optimize.calibration_set import CalibrationSet
from qconvert.optimize.candidate import EFFORTS, Candidate
from qconvert.optimize.coordinate_descent import LayerProblem, Solution, round_weights
from qconvert.optimize.learned_rounding import LearnedPlan, learn_rounding
from qconvert.quantize import rounded_weights
from qconvert.quantize.plan import Plan
from tests.models import floats, from_text, mixed
from tests.optimize.calibrated import CACHE, candidate_of


class Learner:
    """A calibrated model with a plan, whose weights are learned; `stop_at` interrupts a run."""

    def __init__(self, model: ir.Model, images: int = 40) -> None:
        self.candidate: Candidate = candidate_of(model, "cpu", images, self.report)
        self.plan: Plan = self.candidate.final_plan()
        self.events: list[Progress] = []
        self.stop_at = 0

    def report(self, progress: Progress) -> None:
        self.events.append(progress)
        if progress.step == "learn" and progress.done and progress.done == self.stop_at:
            raise KeyboardInterrupt

    def learn(self, effort: str = "quick", cache: Cache = CACHE) -> LearnedPlan:
        self.events.clear()
        return learn_rounding(self.plan, self.candidate, effort, cache)

    def replace_calibration(self, calibration: CalibrationSet) -> None:
        self.candidate = replace(self.candidate, calibration=calibration)

    def assert_rejected(self, learned: LearnedPlan) -> None:
        assert not learned.weights
        assert learned.plan == self.plan
        assert "rejected" in learned.notes[0]


@pytest.fixture
def learner() -> Learner:
    return Learner(mixed())


def test_plan_has_the_digest_of_its_weights_and_a_note_with_the_errors(learner: Learner) -> None:
    learned = learner.learn()
    assert learned.weights
    assert learned.plan.learned == rounded_weights.digest(learned.weights)
    (note,) = learned.notes
    assert "weights learned in" in note
    assert "other images" in note
    assert learner.events[-1].text == note


def test_few_images_leave_some_for_validation() -> None:
    (note,) = Learner(mixed(), 12).learn().notes
    assert "on 4 other images" in note


def test_too_few_images_learn_nothing() -> None:
    learned = Learner(mixed(), 8).learn()
    assert not learned.weights
    assert "needs more calibration images than 8" in learned.notes[0]


def test_second_run_reads_the_weights_from_the_cache(learner: Learner) -> None:
    first, second = learner.learn(), learner.learn()
    (event,) = learner.events
    assert event.stored
    assert rounded_weights.digest(first.weights) == rounded_weights.digest(second.weights)


def test_no_effort_learns_nothing(learner: Learner) -> None:
    assert learner.learn("none") == LearnedPlan(learner.plan, {})


def test_missing_images_learn_nothing_and_the_note_names_the_option(learner: Learner) -> None:
    calibration = learner.candidate.calibration
    learner.replace_calibration(replace(calibration, images=None))
    learned = learner.learn()
    assert not learned.weights
    assert "--images" in learned.notes[0]


def test_interrupted_run_resumes_after_the_layers_it_learned(
    learner: Learner, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = learner.learn()
    problems: list[LayerProblem] = []

    def counted(problem: LayerProblem) -> tuple[Solution, Solution]:
        problems.append(problem)
        return round_weights(problem)

    monkeypatch.setattr(learned_rounding, "round_weights", counted)
    learner.stop_at = 4
    with pytest.raises(KeyboardInterrupt):
        learner.learn(cache=Cache(Path(".other")))
    assert len(problems) == 4
    learner.stop_at = 0
    resumed = learner.learn(cache=Cache(Path(".other")))
    learnable = learned_rounding.find_learnable(learner.candidate.loaded.model, learner.plan)
    assert len(problems) == len(learnable)
    assert rounded_weights.digest(resumed.weights) == rounded_weights.digest(whole.weights)


def test_weights_that_harm_the_outputs_are_rejected(
    learner: Learner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def harmful(problem: LayerProblem) -> tuple[Solution, Solution]:
        """Return biases that every layer takes for better."""
        biases = None if problem.biases is None else problem.biases + 3.0
        return Solution(problem.nearest, biases), Solution(problem.nearest, biases)

    monkeypatch.setattr(learned_rounding, "round_weights", harmful)
    monkeypatch.setattr(
        LayerProblem, "relative_error", lambda problem, integers, biases: -abs(float(biases.sum()))
    )
    learner.assert_rejected(learner.learn())


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


def test_correction_learned_on_unrepresentative_images_is_rejected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What compensates clipped light in glaring images is wrong for all others."""
    weights = {
        name: floats(*shape, seed=seed) / np.float32(np.sqrt(np.prod(shape[1:])))
        for seed, (name, shape) in enumerate(SQUEEZING_SHAPES.items())
    }
    model = infer_shapes(from_text(SQUEEZING, **weights))[0]
    for node in model.graph:
        node.name = node.outputs[0].name
    learner = Learner(model)
    glaring = [{"image": 20 + floats(4, 3, 16, 16, seed=seed)} for seed in range(8)]
    monkeypatch.setattr(CalibrationSet, "training_batches", lambda self, count: glaring)
    learned = learner.learn("default")
    learner.assert_rejected(learned)
    noise = re.search("noise-to-signal (.*?)% -> (.*?)%", learned.notes[0])
    assert noise is not None
    assert float(noise[2]) > 2 * float(noise[1])


def test_memory_bounds_the_training_images(
    learner: Learner, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []

    def training_batches(self: CalibrationSet, count: int) -> list[Tensors]:
        counts.append(count)
        return []

    monkeypatch.setattr(CalibrationSet, "training_batches", training_batches)
    monkeypatch.setattr(partial_execution, "MAX_ACTIVATION_BYTES", 1_000_000)
    learner.learn("thorough")
    assert 1 <= counts[0] < EFFORTS["thorough"].training_images
