"""Shifted grids are kept if the outputs are nearer to FP32 on images held out."""

from dataclasses import replace

import pytest

from qconvert.optimize import shifted_grids
from qconvert.optimize.candidate import run_reference
from qconvert.optimize.learned_rounding import learn_rounding
from qconvert.optimize.shifted_grids import shift_grids
from qconvert.quantize.apply_plan import apply_plan
from qconvert.quantize.plan import Plan
from tests.optimize.calibrated import CACHE, candidate_of
from tests.quantize.test_shifted_tensors import SHIFTABLE, network


def test_shift_is_kept_where_the_outputs_are_nearer() -> None:
    candidate = candidate_of(network(), "tensorrt")
    plan = candidate.trial_plan(candidate.options)
    saved, _ = learn_rounding(plan, candidate, "default", CACHE)
    shifted, (note,) = shift_grids(saved, candidate, "default", CACHE)
    assert shifted.plan.shifted == tuple(SHIFTABLE)
    assert "3 symmetric grids shifted, used" in note
    batches = list(candidate.holdout_batches())
    reference = run_reference(candidate.loaded.model, batches)
    before, after = (
        candidate.compare(
            apply_plan(candidate.loaded.model, row.plan, row.weights), batches, reference
        ).noise_to_signal
        for row in (saved, shifted)
    )
    assert after < before


def test_shift_that_gains_nothing_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    candidate = candidate_of(network(), "tensorrt")
    plan = candidate.trial_plan(candidate.options)
    saved, _ = learn_rounding(plan, candidate, "default", CACHE)

    def widen(plan: Plan, names: list[str], _: object) -> Plan:
        ranges = {name: replace(plan.tensors[name], high=600.0) for name in names}
        return replace(plan, shifted=tuple(names), tensors={**plan.tensors, **ranges}, learned="")

    monkeypatch.setattr(shifted_grids, "shift_plan", widen)
    kept, (note,) = shift_grids(saved, candidate, "default", CACHE)
    assert kept.plan == saved.plan
    assert "not used" in note


def test_scheme_with_zero_points_needs_no_shift() -> None:
    candidate = candidate_of(network(), "cpu")
    saved, _ = learn_rounding(candidate.trial_plan(candidate.options), candidate, "default", CACHE)
    assert shift_grids(saved, candidate, "default", CACHE) == (saved, ())


def test_weights_that_are_not_learned_again_stay_as_they_are() -> None:
    candidate = candidate_of(network(), "tensorrt")
    saved, _ = learn_rounding(candidate.trial_plan(candidate.options), candidate, "default", CACHE)
    shifted, (note,) = shift_grids(saved, candidate, None, CACHE)
    assert "used" in note
    assert shifted.plan.shifted == tuple(SHIFTABLE)
    assert shifted.plan.learned == saved.plan.learned
    assert shift_grids(shifted, candidate, None, CACHE) == (shifted, ())
