"""A plan is as good as the effort allows, and what brings nothing is dropped."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from qconvert.backends.ort import open_cpu
from qconvert.core import config_file, onnx_io
from qconvert.core.cache import Cache
from qconvert.core.progress import Progress
from qconvert.measure.output_error import OutputError, sqnr_db
from qconvert.optimize import efforts, equalization, per_tensor_methods
from qconvert.optimize.candidate import MAX_TRAINING_IMAGES, Candidate, is_better
from qconvert.optimize.plan_selection import SelectedPlan, select_plan
from qconvert.quantize import plan_files
from qconvert.quantize.apply_plan import apply_plan
from qconvert.quantize.placement import QuantizeOptions
from qconvert.quantize.plan import Plan
from qconvert.run import calibration_sets, load_model
from qconvert.run.calibrate import CalibrationRequest
from tests.conftest import write
from tests.models import MIXED_SHAPES, floats, mixed
from tests.pictures import draw_folder
from tests.quantize.quantized_models import scheme


@dataclass
class World:
    """A model that was calibrated on pictures in this folder, and what was told of the work."""

    study: Candidate
    store: Cache
    told: list[Progress] = field(default_factory=list)

    def draft(self, effort: str = "default", method: str = "auto") -> SelectedPlan:
        study = Candidate(
            self.study.loaded,
            self.study.calibration,
            self.study.scheme,
            QuantizeOptions(method=method),
            self.study.max_holdout_images,
            self.told.append,
        )
        return select_plan(study, effort, self.store)

    def nearness(self, plan: Plan) -> float:
        """Return the SQNR of the model's answers with a plan, on the images held out."""
        model = self.study.loaded.model
        before, after = open_cpu(model), open_cpu(apply_plan(model, plan), keep_qdq=True)
        feeds = next(iter(self.study.calibration.validation_batches()))
        return sqnr_db(before(feeds), after(feeds))


def world_of(model: ir.Model, backend: str = "tensorrt") -> World:
    write(model, Path("net.onnx"))
    draw_folder(Path("images"), 40, 16)
    store = Cache(Path(".store"))
    config = config_file.load(None, {"model": "net.onnx", "calibration.images": "images"})
    ready = load_model.load_and_clean(config, store, lambda progress: None, trust=False)
    found = calibration_sets.measure(
        ready, config, CalibrationRequest(Path("o.onnx")), store, lambda progress: None
    )
    world = World(None, store)  # type: ignore[arg-type]
    world.study = Candidate(ready, found, scheme(backend), QuantizeOptions(), 40, world.told.append)
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
    assert world.study.describe_images(OutputError(np.zeros(8), 0.0)) == "on 8 other images"
    assert (
        world.study.describe_images(OutputError(np.zeros(20), 0.0))
        == "on 20 images, 8 of them not calibrated on"
    )


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
    again = plan_files.parse_plan(plan_files.format_plan(done.plan), "plan.json")
    assert again == done.plan
    same = [apply_plan(world.study.loaded.model, each) for each in (done.plan, again)]
    assert onnx_io.serialize(same[0]) == onnx_io.serialize(same[1])


def test_factors_that_do_not_help_are_dropped_and_told_of(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(equalization, "MAX_ERROR_RATIO", 1e9)
    monkeypatch.setattr(equalization, "STRENGTHS", (-1.0,))  # the wrong way
    done = world.draft("default", "mse")
    assert done.plan.equalized == {}
    told = [each.text for each in world.told if each.step == "equalize"]
    assert len(told) == 1
    assert "dropped" in told[0]


def test_another_way_is_nearer_only_beyond_doubt() -> None:
    usual = np.random.default_rng(0).exponential(1.0, 40)
    broken = OutputError(np.full(40, np.inf), np.inf)
    assert is_better(OutputError(usual, 1.0), OutputError(usual * 0.8, 1.0))
    assert not is_better(OutputError(usual, 1.0), OutputError(usual, 1.0))
    assert not is_better(OutputError(usual, 1.0), OutputError(usual * 0.8, 1.1))
    assert not is_better(OutputError(usual[:3], 1.0), OutputError(usual[:3] * 0.8, 1.0))
    assert not is_better(OutputError(usual, 1.0), broken)
    assert is_better(broken, OutputError(usual, 1.0))


def test_ranges_by_answers_look_at_no_more_images_than_work_and_memory_allow(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []
    for work in (1e12, 2e7, 1.0):
        asked.append(per_tensor_methods._affordable_images(world.study, 10, work))
    assert asked[0] == MAX_TRAINING_IMAGES
    assert asked[0] > asked[1] > asked[2] == 0
    monkeypatch.setattr(efforts, "MAX_ACTIVATION_BYTES", 1_000_000)
    assert per_tensor_methods._affordable_images(world.study, 10, 1e12) < MAX_TRAINING_IMAGES
