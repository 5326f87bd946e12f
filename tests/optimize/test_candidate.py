"""The error of a candidate is that of its boxes where a decoder reads them, else of its outputs."""

from qconvert.optimize.candidate import run_reference
from qconvert.quantize.apply_plan import apply_plan
from tests.optimize.calibrated import scene_candidate
from tests.tasks import task_models


def test_error_of_a_detector_is_that_of_its_boxes() -> None:
    candidate = scene_candidate(task_models.detector())
    model = candidate.loaded.model
    batches = list(candidate.holdout_batches())
    reference = run_reference(model, batches)
    none, some = (
        candidate.compare(net, batches, reference)
        for net in (model, apply_plan(model, candidate.trial_plan(candidate.options)))
    )
    assert none.of_boxes
    assert none.noise_to_signal == 0.0
    assert 0.0 < some.noise_to_signal < 1.0
    assert some.per_image.shape == (sum(len(batch["image"]) for batch in batches),)


def test_detector_that_sees_nothing_is_compared_by_its_outputs() -> None:
    candidate = scene_candidate(task_models.detector(), squares=0)
    batches = list(candidate.holdout_batches())
    reference = run_reference(candidate.loaded.model, batches)
    plan = candidate.trial_plan(candidate.options)
    error = candidate.compare(apply_plan(candidate.loaded.model, plan), batches, reference)
    assert not error.of_boxes
    assert error.noise_to_signal > 0.0


def test_error_of_a_segmenter_is_that_of_its_outputs() -> None:
    candidate = scene_candidate(task_models.segmenter())
    batches = list(candidate.holdout_batches())
    reference = run_reference(candidate.loaded.model, batches)
    plan = candidate.trial_plan(candidate.options)
    error = candidate.compare(apply_plan(candidate.loaded.model, plan), batches, reference)
    assert not error.of_boxes
