"""A plan is as good as the effort allows, and what brings nothing is dropped."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from qconvert import config_file, onnx_io
from qconvert.backends.ort import open_cpu
from qconvert.measure.nearness import sqnr_db
from qconvert.pipeline import efforts, prepared, ranging, seen
from qconvert.pipeline.calibrate import Job
from qconvert.pipeline.planning import Drafted, draft
from qconvert.pipeline.progress import Progress
from qconvert.pipeline.study import LESSONS, Far, Study, nearer
from qconvert.quantize import factors
from qconvert.quantize import plan as plans
from qconvert.quantize.plan import Plan
from qconvert.quantize.planning import Wishes
from qconvert.quantize.rewrite import apply
from qconvert.store import Store
from tests.conftest import write
from tests.models import MIXED_SHAPES, floats, mixed
from tests.pictures import draw_folder
from tests.quantize.rewritten import scheme


@dataclass
class World:
    """A model that was calibrated on pictures in this folder, and what was told of the work."""

    study: Study
    store: Store
    told: list[Progress] = field(default_factory=list)

    def draft(self, effort: str = "default", method: str = "auto") -> Drafted:
        study = Study(
            self.study.ready,
            self.study.found,
            self.study.scheme,
            Wishes(method=method),
            self.study.judges,
            self.told.append,
        )
        return draft(study, effort, self.store)

    def nearness(self, plan: Plan) -> float:
        """Return the SQNR of the model's answers with a plan, on the images held out."""
        model = self.study.ready.model
        before, after = open_cpu(model), open_cpu(apply(model, plan), literal=True)
        feeds = next(iter(self.study.found.images()))
        return sqnr_db(before(feeds), after(feeds))


def world_of(model: ir.Model, backend: str = "tensorrt") -> World:
    write(model, Path("net.onnx"))
    draw_folder(Path("images"), 40, 16)
    store = Store(Path(".store"))
    config = config_file.load(None, {"model": "net.onnx", "calibration.images": "images"})
    ready = prepared.load(config, store, lambda progress: None, trust=False)
    found = seen.measured(ready, config, Job(Path("o.onnx")), store, lambda progress: None)
    world = World(None, store)  # type: ignore[arg-type]
    world.study = Study(ready, found, scheme(backend), Wishes(), 40, world.told.append)
    return world


def uneven() -> ir.Model:
    """Return a net in which one channel of a map is far larger than all others."""
    sizes = np.float32(2.0) ** np.r_[8, np.zeros(15)].astype(np.float32)
    usual = {
        name: floats(*MIXED_SHAPES[name], seed=seed) / np.float32(4)
        for seed, name in enumerate(("w2", "b2", "w3"), start=1)
    }
    return mixed(
        w2=usual["w2"] * sizes[:, None, None, None],
        b2=usual["b2"] * sizes,
        w3=usual["w3"] / sizes[:, None, None],
    )


@pytest.fixture
def world() -> World:
    return world_of(mixed())


def test_the_default_tries_methods_and_tells_how_near_each_is(world: World) -> None:
    done = world.draft()
    assert {each.method for each in done.tried} >= {"mse", "minmax", "percentile:99.99"}
    told = [each.text for each in world.told if each.step == "choose" and each.seconds]
    assert len(told) == 1
    assert "on 8 other images" in told[0]


def test_images_that_were_calibrated_on_are_no_other_ones(world: World) -> None:
    assert world.study.on(Far(np.zeros(8), 0.0)) == "on 8 other images"
    assert world.study.on(Far(np.zeros(20), 0.0)) == "on 20 images, 8 of them not calibrated on"


@pytest.mark.parametrize("effort", ["none", "quick"])
def test_with_less_effort_nothing_else_is_tried(world: World, effort: str) -> None:
    done = world.draft(effort, "mse")
    assert (done.plan.method, done.tried, done.plan.equalized) == ("mse", (), {})
    assert world.told == []


def test_ranges_by_answers_are_no_further_off_than_the_usual_ones(world: World) -> None:
    usual, own = world.draft("none", "mse").plan, world.draft("none", "answers").plan
    assert own.method in ("answers", "mse")
    assert world.nearness(own) > world.nearness(usual) - 0.5


def test_channels_of_very_different_sizes_are_made_even_and_the_plan_replays() -> None:
    world = world_of(uneven())
    plain, done = world.draft("none", "mse"), world.draft("default", "mse")
    assert done.plan.equalized
    assert "kept" in done.notes[0]
    assert world.nearness(done.plan) > world.nearness(plain.plan) + 3
    again = plans.loads(plans.dumps(done.plan), "plan.json")
    assert again == done.plan
    same = [apply(world.study.ready.model, each) for each in (done.plan, again)]
    assert onnx_io.serialize(same[0]) == onnx_io.serialize(same[1])


def test_factors_that_do_not_help_are_dropped_and_told_of(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(factors, "WORTH_IT", 1e9)
    monkeypatch.setattr(factors, "SHARES", (-1.0,))  # the wrong way
    done = world.draft("default", "mse")
    assert done.plan.equalized == {}
    told = [each.text for each in world.told if each.step == "equalize"]
    assert len(told) == 1
    assert "dropped" in told[0]


def test_another_way_is_nearer_only_beyond_doubt() -> None:
    usual = np.random.default_rng(0).exponential(1.0, 40)
    broken = Far(np.full(40, np.inf), np.inf)
    assert nearer(Far(usual, 1.0), Far(usual * 0.8, 1.0))
    assert not nearer(Far(usual, 1.0), Far(usual, 1.0))
    assert not nearer(Far(usual, 1.0), Far(usual * 0.8, 1.1))
    assert not nearer(Far(usual[:3], 1.0), Far(usual[:3] * 0.8, 1.0))
    assert not nearer(Far(usual, 1.0), broken)
    assert nearer(broken, Far(usual, 1.0))


def test_ranges_by_answers_look_at_no_more_images_than_work_and_memory_allow(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []
    for work in (1e12, 2e7, 1.0):
        asked.append(ranging._affordable(world.study, 10, work))
    assert asked[0] == LESSONS
    assert asked[0] > asked[1] > asked[2] == 0
    monkeypatch.setattr(efforts, "MOST_BYTES", 1_000_000)
    assert ranging._affordable(world.study, 10, 1e12) < LESSONS
