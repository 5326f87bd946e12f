"""What is learned is kept only where the whole model answers more nearly, and never twice."""

import re
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from qconvert.core import config_file
from qconvert.core.cache import Cache
from qconvert.core.progress import Progress
from qconvert.graph.simplify import infer_shapes
from qconvert.optimize import efforts, layer_rounding, learned_rounding
from qconvert.optimize.calibration_set import CalibrationSet
from qconvert.optimize.coordinate_descent import Solution, round_weights
from qconvert.optimize.efforts import EFFORTS
from qconvert.optimize.layer_problem import LayerProblem
from qconvert.optimize.learned_rounding import LearnedPlan, RoundingInputs, learn_rounding
from qconvert.quantize import rounded_weights
from qconvert.quantize.placement import QuantizeOptions, make_plan
from qconvert.quantize.plan import Plan
from qconvert.run import calibration_sets, load_model
from qconvert.run.calibrate import CalibrationRequest
from qconvert.sources import LoadedModel
from tests.conftest import write
from tests.models import floats, from_text, mixed
from tests.pictures import draw_folder
from tests.quantize.quantized_models import scheme


@dataclass
class World:
    """A model that has been calibrated on pictures in this folder, and who hears of the work."""

    ready: LoadedModel
    found: CalibrationSet
    plan: Plan
    store: Cache = field(default_factory=lambda: Cache(Path(".store")))
    told: list[Progress] = field(default_factory=list)
    stop_at: int = 0

    def tell(self, progress: Progress) -> None:
        self.told.append(progress)
        if progress.step == "learn" and progress.done and progress.done == self.stop_at:
            raise KeyboardInterrupt

    def improve(self, effort: str = "quick") -> LearnedPlan:
        self.told.clear()
        return learn_rounding(
            self.plan, effort, RoundingInputs(self.ready, self.found, self.store, self.tell)
        )

    @property
    def layers_told(self) -> int:
        return sum(each.step == "learn" and each.total > 0 for each in self.told)


@pytest.fixture
def world() -> World:
    return world_of(mixed())


def world_of(model: ir.Model, images: int = 40) -> World:
    write(model, Path("net.onnx"))
    draw_folder(Path("images"), images, 16)
    store = Cache(Path(".store"))
    given = {"model": "net.onnx", "calibration.images": "images"}
    config = config_file.load(None, given)
    ready = load_model.load_and_clean(config, store, lambda progress: None, trust=False)
    found = calibration_sets.measure(
        ready, config, CalibrationRequest(Path("o.onnx")), store, lambda progress: None
    )
    plan = make_plan(ready.model, scheme("cpu"), found.full.summaries, QuantizeOptions())
    return World(ready, found, plan)


def test_a_plan_with_learned_weights_says_so_and_how_much_nearer_the_answers_are(
    world: World,
) -> None:
    done = world.improve()
    assert done.weights
    assert done.plan.learned == rounded_weights.digest(done.weights)
    (note,) = done.notes
    assert "weights learned in" in note
    assert "other images" in note
    assert world.told[-1].text == note


def test_of_few_images_some_are_left_to_judge_by() -> None:
    (note,) = world_of(mixed(), 12).improve().notes
    assert "on 4 other images" in note


def test_of_too_few_images_nothing_is_learned() -> None:
    done = world_of(mixed(), 8).improve()
    assert not done.weights
    assert done.notes == (
        "weights were rounded to the nearest: 8 images are too few to learn from some and judge "
        "by others",
    )


def test_the_same_again_comes_from_the_store(world: World) -> None:
    first = world.improve()
    again = world.improve()
    assert world.told[-1].stored
    assert world.layers_told == 0
    assert rounded_weights.digest(first.weights) == rounded_weights.digest(again.weights)


def test_no_effort_and_no_images_learn_nothing(world: World) -> None:
    assert world.improve("none") == LearnedPlan(world.plan, {})
    blind = CalibrationSet(
        world.found.full,
        world.found.training,
        world.found.validation_batches,
        8,
        excludes_holdout=True,
        images_available=False,
    )
    done = learn_rounding(
        world.plan, "quick", RoundingInputs(world.ready, blind, world.store, world.tell)
    )
    assert not done.weights
    assert "--images" in done.notes[0]


def test_what_a_killed_run_learned_is_not_learned_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = world.improve()
    learnt: list[LayerProblem] = []

    def counted(task: LayerProblem) -> tuple[Solution, Solution]:
        learnt.append(task)
        return round_weights(task)

    monkeypatch.setattr(layer_rounding, "descend", counted)
    world.store = Cache(Path(".other"))
    world.stop_at = 4
    with pytest.raises(KeyboardInterrupt):
        world.improve()
    assert len(learnt) == 4
    world.stop_at = 0
    resumed = world.improve()
    assert len(learnt) == len(layer_rounding.find_learnable(world.ready.model, world.plan))
    assert rounded_weights.digest(resumed.weights) == rounded_weights.digest(whole.weights)


def test_weights_that_do_not_help_the_answers_are_dropped(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def harmful(task: LayerProblem) -> tuple[Solution, Solution]:
        """Return what looks better to every layer, as a judge who is bribed would say."""
        found = Solution(task.nearest, None if task.biases is None else task.biases + 3.0)
        return found, found

    monkeypatch.setattr(layer_rounding, "descend", harmful)
    monkeypatch.setattr(
        LayerProblem, "error", lambda task, integers, biases: -abs(float(biases.sum()))
    )
    done = world.improve()
    assert not done.weights
    assert done.plan == world.plan
    assert "dropped" in done.notes[0]


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


def test_a_correction_that_harms_a_net_with_hard_swish_and_squeezing_is_rejected() -> None:
    """What makes up for clipped light in glaring images is wrong for all others."""
    weights = {
        name: floats(*shape, seed=seed) / np.float32(np.sqrt(np.prod(shape[1:])))
        for seed, (name, shape) in enumerate(SQUEEZING_SHAPES.items())
    }
    model = infer_shapes(from_text(SQUEEZING, **weights))[0]
    for node in model.graph:
        node.name = node.outputs[0].name
    world = world_of(model)
    glaring = [{"image": 20 + floats(4, 3, 16, 16, seed=seed)} for seed in range(8)]
    harmful = replace(world.found, training_batches=lambda count: glaring)
    done = learn_rounding(
        world.plan, "default", RoundingInputs(world.ready, harmful, world.store, world.tell)
    )
    assert not done.weights
    assert done.plan == world.plan
    assert "dropped" in done.notes[0]
    error = re.search("error (.*)% -> (.*)%, distance", done.notes[0])
    assert error is not None
    assert float(error[2]) > 2 * float(error[1])


def test_memory_bounds_the_images(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def lessons(count: int) -> list[dict[str, object]]:
        asked.append(count)
        return []

    object.__setattr__(world.found, "lessons", lessons)
    monkeypatch.setattr(efforts, "MAX_ACTIVATION_BYTES", 1_000_000)
    world.improve("thorough")
    assert 1 <= asked[0] < EFFORTS["thorough"].training_images


def test_more_changed_answers_than_by_chance_count_as_growth() -> None:
    same = np.zeros(40)
    assert not learned_rounding._grew_significantly(same, same, 1.5)
    assert not learned_rounding._grew_significantly(same, np.r_[np.ones(1), np.zeros(39)], 1.5)
    assert learned_rounding._grew_significantly(same, np.r_[np.ones(6), np.zeros(34)], 1.5)


def test_a_verdict_on_answers_that_are_not_finite_can_be_read_again() -> None:
    never = learned_rounding.MeanOutputError(np.inf, np.inf)
    verdict = learned_rounding.RoundingOutcome(1, 1, 0, never, never, worse=False, holdout_images=8)
    stored = learned_rounding.OUTCOME_ADAPTER.dump_json(verdict)
    assert learned_rounding.OUTCOME_ADAPTER.validate_json(stored) == verdict
    assert not verdict.accepted
