"""Shift symmetric grids behind a Relu or a Clip at zero, if the outputs are nearer to FP32 that way.

The weights are learned anew for the finer grids, and the images held out decide between both plans.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from qconvert import __version__
from qconvert.backends.ort import ORT_VERSION
from qconvert.calibrate import methods
from qconvert.calibrate.summary import Summary
from qconvert.core.cache import Cache
from qconvert.core.progress import start_step
from qconvert.graph.taps import find_observed_tensors
from qconvert.optimize.candidate import Candidate
from qconvert.optimize.learned_rounding import accept_plan, learn_rounding
from qconvert.quantize import plan_files
from qconvert.quantize.plan import Plan
from qconvert.quantize.plan_files import PlanWithWeights
from qconvert.quantize.shifted_tensors import find_shiftable

# A shift changes the bounds of operators beside Q/DQ nodes and constants, so not every effort tries it.
EFFORTS_WITH_SHIFTS = frozenset({"thorough", "train"})
METHOD = "mse"


def shift_grids(
    saved: PlanWithWeights, candidate: Candidate, effort: str | None, cache: Cache
) -> tuple[PlanWithWeights, tuple[str, ...]]:
    """Return the plan with shifted grids if its outputs are nearer to FP32, and notes.

    Without an effort the weights stay as they are.
    """
    names = find_shiftable(candidate.loaded.model.graph, saved.plan)
    if candidate.calibration.images is None or not names or saved.plan.shifted:
        return saved, ()
    plan = shift_plan(saved.plan, names, candidate)
    if effort is None:
        shifted = PlanWithWeights(replace(plan, learned=saved.plan.learned), saved.weights)
    else:
        shifted, _ = learn_rounding(plan, candidate, effort, cache)
    end = start_step(candidate.progress, "shift")
    key = {
        "name": "shifted grids",
        "plan": plan_files.format_plan(saved.plan),
        "shifted": plan_files.format_plan(shifted.plan),
        "calibration": candidate.calibration.full.origin.fingerprint,
        "qconvert": __version__,
        "onnxruntime": ORT_VERSION,
    }

    def make(entry: Path) -> None:
        accepted, decision = accept_plan(
            candidate, saved, shifted, list(candidate.holdout_batches())
        )
        note = f"{len(names)} symmetric grids shifted, {decision}"
        plan_files.save_plan(shifted if accepted else saved, entry / "plan.json")
        (entry / "summary.txt").write_text(note, encoding="utf-8")

    entry, hit = cache.get_or_make("shift", key, make)
    note = (entry / "summary.txt").read_text(encoding="utf-8")
    end(note, hit)
    return plan_files.load_plan(entry / "plan.json"), (note,)


def shift_plan(plan: Plan, names: Sequence[str], candidate: Candidate) -> Plan:
    """Return the plan with these tensors shifted, and with ranges for their finer grids."""
    summaries: Mapping[str, Summary] = candidate.calibration.training.summaries
    aliases = find_observed_tensors(candidate.loaded.model).aliases
    shifted = replace(plan, shifted=tuple(names), learned="")
    ranges = {
        name: methods.find_method(METHOD)(summaries[aliases.get(name, name)], shifted.grid_of(name))
        for name in names
    }
    return replace(shifted, tensors={**plan.tensors, **ranges})
