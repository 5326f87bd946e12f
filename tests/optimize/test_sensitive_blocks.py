"""Blocks that spoil dense outputs go back to float, within a share of the work."""

import re

import numpy as np
import onnx_ir as ir
import pytest

from qconvert.core.progress import Progress
from qconvert.optimize import sensitive_blocks
from qconvert.optimize.candidate import Candidate, run_reference
from qconvert.optimize.sensitive_blocks import MAX_SHARE, keep_sensitive_blocks
from qconvert.quantize.apply_plan import apply_plan
from qconvert.quantize.plan import Plan
from tests.models import floats, mixed
from tests.optimize.calibrated import CACHE, candidate_of, scene_candidate
from tests.quantize.quantized_models import model
from tests.tasks import task_models

PAD, WIDE_PAD = "<pads: ints = [1, 1, 1, 1]>", "<pads: ints = [2, 2, 2, 2]>"
BODY = f"""c = Conv {PAD} (image, w) r = Relu (c) d = Conv {WIDE_PAD} (r, v) e = Relu (d)
wide = Conv (e, t) g = Relu (wide) y = Conv (g, u)"""


def head(stretch: float = 300.0) -> ir.Model:
    """Return a network with an output at each place, of which one tensor has a wide channel."""
    net = model(
        BODY, "(float[N, 3, 16, 16] image) => (float[] y)",
        w=(16, 3, 3, 3), v=(16, 16, 5, 5), t=(16, 16, 1, 1), u=(6, 16, 1, 1),
    )  # fmt: skip
    t, u = floats(16, 16, 1, 1, seed=3), floats(6, 16, 1, 1, seed=4)
    t[0] *= stretch
    u[:, 0] /= stretch
    for name, array in (("t", t), ("u", u)):
        net.graph.initializers[name].const_value = ir.tensor(array, name=name)
    return net


def keep(candidate: Candidate, effort: str = "default") -> tuple[Plan, Plan, tuple[str, ...]]:
    """Return the plan before and after, and the notes."""
    plan = candidate.trial_plan(candidate.options)
    changed, notes = keep_sensitive_blocks(plan, candidate, effort, CACHE)
    return plan, changed, notes


def restored(before: Plan, after: Plan) -> set[str]:
    return {
        name for name, layer in after.layers.items() if layer.left and not before.layers[name].left
    }


def test_block_that_spoils_a_dense_output_is_kept_in_float() -> None:
    candidate = candidate_of(head(), "cpu")
    before, after, (note,) = keep(candidate)
    operators = {before.layers[name].op for name in restored(before, after)}
    assert "Conv" in operators
    assert 0 < len(restored(before, after)) < before.quantized
    assert "kept in float" in note
    batches = list(candidate.holdout_batches())
    reference = run_reference(candidate.loaded.model, batches)
    errors = [
        candidate.compare(apply_plan(candidate.loaded.model, plan), batches, reference)
        for plan in (before, after)
    ]
    assert errors[1].per_image.mean() < 0.5 * errors[0].per_image.mean()
    reasons = {after.layers[name].left for name in restored(before, after)}
    assert any("the outputs suffer" in reason for reason in reasons)


def test_finished_trials_are_not_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[Progress] = []
    candidate = candidate_of(head(), "cpu", progress=events.append)
    _, first, _ = keep(candidate)
    monkeypatch.setattr(sensitive_blocks, "choose_blocks", None)
    _, again, _ = keep(candidate)
    assert again == first


@pytest.mark.parametrize("effort", ["none", "quick"])
def test_low_efforts_try_nothing(effort: str) -> None:
    before, after, notes = keep(candidate_of(head(), "cpu"), effort)
    assert (after, notes) == (before, ())


def test_classifier_stays_as_it_is() -> None:
    before, after, notes = keep(candidate_of(mixed(), "cpu"))
    assert (after, notes) == (before, ())


def test_work_in_float_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sensitive_blocks, "MAX_SHARE", 0.01)
    before, after, (note,) = keep(candidate_of(head(), "cpu"))
    assert after == before
    assert "no block" in note
    assert MAX_SHARE < 0.5


def test_output_that_loses_little_needs_no_float(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sensitive_blocks, "LOW_ERROR", np.inf)
    before, after, (note,) = keep(candidate_of(head(), "cpu"))
    assert after == before
    assert "the outputs lose little" in note


def test_last_convolution_of_boxes_goes_back_to_float_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sensitive_blocks, "LOW_BOX_ERROR", 0.003)
    before, after, (note,) = keep(scene_candidate(task_models.detector()))
    assert restored(before, after) == {"middle"}
    figures = re.search(r"error of boxes (\S+) -> (\S+) on", note)
    assert figures is not None
    assert float(figures[2]) < 0.6 * float(figures[1])


def test_boxes_that_hardly_move_need_no_float(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sensitive_blocks, "LOW_BOX_ERROR", np.inf)
    monkeypatch.setattr(sensitive_blocks, "LOW_ERROR", 0.0)
    before, after, (note,) = keep(scene_candidate(task_models.detector()))
    assert after == before
    assert "the outputs lose little" in note
