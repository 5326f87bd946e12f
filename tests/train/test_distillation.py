"""Training of a plan on calibration images alone: what is kept, resumed and refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from qconvert.core.errors import QConvertError
from qconvert.core.progress import Progress
from qconvert.core.scales import Grid
from qconvert.core.tensors import Tensors
from qconvert.optimize import learned_rounding
from qconvert.optimize.candidate import Candidate, run_reference
from qconvert.quantize.apply_plan import apply_plan
from qconvert.quantize.placement import QuantizeOptions
from qconvert.quantize.plan_files import PlanWithWeights
from qconvert.train.augmentation import augment
from qconvert.train.blocks import find_blocks, float_plan
from qconvert.train.distillation import TrainingSettings, train_plan
from qconvert.train.losses import make_loss
from qconvert.train.trainable_graph import TrainableGraph
from tests.models import mixed
from tests.optimize.calibrated import CACHE, candidate_of

SHORT = TrainingSettings(steps=120, weights=0.01, biases=1e-3)


class Interrupted(Exception):
    """Stands for a kill."""


@pytest.fixture
def candidate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Candidate:
    """Return a network with 5 bits, where the nearest integers leave much to be learned."""
    monkeypatch.chdir(tmp_path)
    made = candidate_of(mixed(), images=60)
    return replace(made, scheme=replace(made.scheme, weights=Grid(5)))


def start_of(candidate: Candidate) -> PlanWithWeights:
    return PlanWithWeights(candidate.trial_plan(QuantizeOptions()))


def error_of(candidate: Candidate, saved: PlanWithWeights) -> float:
    batches = list(candidate.holdout_batches())
    reference = run_reference(candidate.loaded.model, batches)
    graph = apply_plan(candidate.loaded.model, saved.plan, saved.weights)
    return candidate.compare(graph, batches, reference).noise_to_signal


def test_training_lowers_the_error_on_images_that_were_held_out(candidate: Candidate) -> None:
    start = start_of(candidate)
    trained, notes, curve = train_plan(start, candidate, CACHE, SHORT)
    assert curve is not None
    assert curve.kept
    assert curve.steps[0] == 0
    assert curve.steps[-1] == 120
    assert len(curve.steps) > 2
    assert curve.validation[-1] > curve.validation[0]
    assert error_of(candidate, trained) < error_of(candidate, start)
    assert "120 steps, used" in notes[0]
    again = train_plan(start, candidate, CACHE, SHORT)
    assert again[0].plan == trained.plan
    assert again[2] == curve


def test_weights_that_are_not_accepted_are_not_kept(
    candidate: Candidate, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = start_of(candidate)
    monkeypatch.setattr(learned_rounding, "is_better", lambda *errors, significantly: False)
    trained, notes, curve = train_plan(start, candidate, CACHE, SHORT)
    assert trained.plan == start.plan
    assert not trained.weights
    assert curve is not None
    assert not curve.kept
    assert "not used" in notes[0]


def test_interrupted_training_goes_on_to_the_same_weights(candidate: Candidate) -> None:
    start = start_of(candidate)
    whole, _, curve = train_plan(start, candidate, CACHE, SHORT)

    def interrupt(progress: Progress) -> None:
        if progress.done == 100:
            raise Interrupted

    fresh = replace(CACHE, root=Path("other"))
    with pytest.raises(Interrupted):
        train_plan(start, replace(candidate, progress=interrupt), fresh, SHORT)
    seen: list[int] = []
    going_on = replace(candidate, progress=lambda progress: seen.append(progress.done))
    resumed, _, second = train_plan(start, going_on, fresh, SHORT)
    assert 1 < min(done for done in seen if done) < 100
    assert second == curve
    assert resumed.plan == whole.plan


def test_block_stays_as_it_was_where_training_makes_it_worse_or_not_finite(
    candidate: Candidate,
) -> None:
    start = start_of(candidate)
    texts: list[str] = []
    watched = replace(candidate, progress=lambda progress: texts.append(progress.text))
    wild = replace(SHORT, weights=1e30, weight_steps=1e4, steps=12)
    _, _, curve = train_plan(start, watched, CACHE, wild)
    assert curve is not None
    assert len(set(curve.validation)) == 1
    assert "the loss is not finite: a block stays as it was" in texts


def test_model_whose_output_has_no_row_for_each_image_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = candidate_of(mixed())
    plan = float_plan(made.trial_plan(QuantizeOptions()))
    module = TrainableGraph(made.loaded.model, plan)
    feeds = {name: torch.zeros(4, 3, 16, 16) for name in module.inputs}
    monkeypatch.setattr(module, "run", lambda *_: {name: torch.zeros(3) for name in module.outputs})
    with pytest.raises(QConvertError, match="has no row for each image"):
        find_blocks(module, module, feeds)


def test_few_images_are_refused_before_any_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    few = candidate_of(mixed(), images=31)
    with pytest.raises(QConvertError, match="at least 32 calibration images, and there are 31"):
        train_plan(start_of(few), few, CACHE, SHORT)


def test_views_differ_and_stay_in_the_range_of_the_images() -> None:
    images = torch.rand(6, 3, 32, 32)
    views = augment(images, torch.Generator().manual_seed(0))
    again = augment(images, torch.Generator().manual_seed(0))
    assert torch.equal(views, again)
    assert not torch.allclose(views, images)
    assert views.min() >= images.min()
    assert views.max() <= images.max()


def test_loss_of_boxes_counts_only_where_scores_are() -> None:
    generator = np.random.default_rng(0)
    boxes = 100 * generator.random((8, 50, 4), dtype=np.float32)
    scores = np.zeros((8, 50, 3), np.float32)
    scores[:, 7, 1] = 0.9
    outputs: Tensors = {"boxes": boxes, "scores": scores}
    loss = make_loss({name: torch.from_numpy(row) for name, row in outputs.items()})

    def of(changed: Tensors) -> float:
        sides = (
            {name: torch.from_numpy(row) for name, row in side.items()}
            for side in (outputs, changed)
        )
        return float(loss(*sides))

    elsewhere, there = boxes.copy(), boxes.copy()
    elsewhere[:, :7] += 10
    there[:, 7] += 10
    assert of(outputs) == 0
    assert of({**outputs, "boxes": elsewhere}) == 0
    assert of({**outputs, "boxes": there}) > 0.01
    assert of({**outputs, "scores": scores * 0.5}) > 0.1


def test_loss_of_classes_sees_a_prediction_that_changes() -> None:
    rows = np.array([[4.0, 3.9, 0.0], [0.0, 5.0, 4.9]], np.float32)
    loss = make_loss({"scores": torch.from_numpy(rows)})
    expected = {"scores": torch.from_numpy(rows)}
    near = loss(expected, {"scores": torch.from_numpy(rows + 0.3)})
    other = loss(expected, {"scores": torch.from_numpy(rows) + torch.tensor([0.3, -0.3, 0.0])})
    assert other > near
