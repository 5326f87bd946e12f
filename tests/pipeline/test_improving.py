"""What is learned is kept only where the whole model answers more nearly, and never twice."""

import re
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from qconvert import config_file
from qconvert.graph.simplify import infer_shapes
from qconvert.pipeline import efforts, improving, prepared, seen
from qconvert.pipeline.calibrate import Job
from qconvert.pipeline.efforts import EFFORTS
from qconvert.pipeline.improving import Improved, Improver, improve
from qconvert.pipeline.prepared import Prepared
from qconvert.pipeline.progress import Progress
from qconvert.pipeline.seen import Seen
from qconvert.quantize import learned, learning
from qconvert.quantize.descent import Answer, descend
from qconvert.quantize.plan import Plan
from qconvert.quantize.planning import Wishes, make_plan
from qconvert.quantize.task import Task
from qconvert.store import Store
from tests.conftest import write
from tests.models import floats, from_text, mixed
from tests.pictures import draw_folder
from tests.quantize.rewritten import scheme


@dataclass
class World:
    """A model that has been calibrated on pictures in this folder, and who hears of the work."""

    ready: Prepared
    found: Seen
    plan: Plan
    store: Store = field(default_factory=lambda: Store(Path(".store")))
    told: list[Progress] = field(default_factory=list)
    stop_at: int = 0

    def tell(self, progress: Progress) -> None:
        self.told.append(progress)
        if progress.step == "learn" and progress.done and progress.done == self.stop_at:
            raise KeyboardInterrupt

    def improve(self, effort: str = "quick") -> Improved:
        self.told.clear()
        return improve(self.plan, effort, Improver(self.ready, self.found, self.store, self.tell))

    @property
    def layers_told(self) -> int:
        return sum(each.step == "learn" and each.total > 0 for each in self.told)


@pytest.fixture
def world() -> World:
    return world_of(mixed())


def world_of(model: ir.Model, images: int = 40) -> World:
    write(model, Path("net.onnx"))
    draw_folder(Path("images"), images, 16)
    store = Store(Path(".store"))
    given = {"model": "net.onnx", "calibration.images": "images"}
    config = config_file.load(None, given)
    ready = prepared.load(config, store, lambda progress: None, trust=False)
    found = seen.measured(ready, config, Job(Path("o.onnx")), store, lambda progress: None)
    plan = make_plan(ready.model, scheme("cpu"), found.whole.summaries, Wishes())
    return World(ready, found, plan)


def test_a_plan_with_learned_weights_says_so_and_how_much_nearer_the_answers_are(
    world: World,
) -> None:
    done = world.improve()
    assert done.learned
    assert done.plan.learned == learned.digest(done.learned)
    (note,) = done.notes
    assert "weights learned in" in note
    assert "other images" in note
    assert world.told[-1].text == note


def test_of_few_images_some_are_left_to_judge_by() -> None:
    (note,) = world_of(mixed(), 12).improve().notes
    assert "on 4 other images" in note


def test_of_too_few_images_nothing_is_learned() -> None:
    done = world_of(mixed(), 8).improve()
    assert not done.learned
    assert done.notes == (
        "weights were rounded to the nearest: 8 images are too few to learn from some and judge "
        "by others",
    )


def test_the_same_again_comes_from_the_store(world: World) -> None:
    first = world.improve()
    again = world.improve()
    assert world.told[-1].stored
    assert world.layers_told == 0
    assert learned.digest(first.learned) == learned.digest(again.learned)


def test_no_effort_and_no_images_learn_nothing(world: World) -> None:
    assert world.improve("none") == Improved(world.plan, {})
    blind = Seen(
        world.found.whole, world.found.choosing, world.found.images, 8, held_out=True, at_hand=False
    )
    done = improve(world.plan, "quick", Improver(world.ready, blind, world.store, world.tell))
    assert not done.learned
    assert "--images" in done.notes[0]


def test_what_a_killed_run_learned_is_not_learned_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = world.improve()
    learnt: list[Task] = []

    def counted(task: Task) -> tuple[Answer, Answer]:
        learnt.append(task)
        return descend(task)

    monkeypatch.setattr(learning, "descend", counted)
    world.store = Store(Path(".other"))
    world.stop_at = 4
    with pytest.raises(KeyboardInterrupt):
        world.improve()
    assert len(learnt) == 4
    world.stop_at = 0
    resumed = world.improve()
    assert len(learnt) == len(learning.learnable(world.ready.model, world.plan))
    assert learned.digest(resumed.learned) == learned.digest(whole.learned)


def test_weights_that_do_not_help_the_answers_are_dropped(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def harmful(task: Task) -> tuple[Answer, Answer]:
        """Return what looks better to every layer, as a judge who is bribed would say."""
        found = Answer(task.nearest, None if task.biases is None else task.biases + 3.0)
        return found, found

    monkeypatch.setattr(learning, "descend", harmful)
    monkeypatch.setattr(Task, "error", lambda task, integers, biases: -abs(float(biases.sum())))
    done = world.improve()
    assert not done.learned
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
    harmful = replace(world.found, lessons=lambda count: glaring)
    done = improve(world.plan, "default", Improver(world.ready, harmful, world.store, world.tell))
    assert not done.learned
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
    monkeypatch.setattr(efforts, "MOST_BYTES", 1_000_000)
    world.improve("thorough")
    assert 1 <= asked[0] < EFFORTS["thorough"].images


def test_more_changed_answers_than_by_chance_count_as_growth() -> None:
    same = np.zeros(40)
    assert not improving._grew(same, same, 1.5)
    assert not improving._grew(same, np.r_[np.ones(1), np.zeros(39)], 1.5)
    assert improving._grew(same, np.r_[np.ones(6), np.zeros(34)], 1.5)


def test_a_verdict_on_answers_that_are_not_finite_can_be_read_again() -> None:
    never = improving.Nearness(np.inf, np.inf)
    verdict = improving.Verdict(1, 1, 0, never, never, worse=False, judges=8)
    stored = improving.VERDICT.dump_json(verdict)
    assert improving.VERDICT.validate_json(stored) == verdict
    assert not verdict.kept
