"""Which range method keeps a model nearest to itself: each is tried on images.

The differences are small and the images few, so another method must be better than the default by
more than chance would make it.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

from qconvert.core import onnx_io
from qconvert.core.cache import Cache
from qconvert.core.progress import Progress
from qconvert.measure.output_error import OutputError
from qconvert.optimize.calibration_set import CalibrationSet
from qconvert.optimize.candidate import Candidate, is_better
from qconvert.optimize.efforts import EFFORTS
from qconvert.optimize.equalization import try_equalization
from qconvert.optimize.per_tensor_methods import assign_methods
from qconvert.quantize.placement import QuantizeOptions
from qconvert.quantize.plan import Plan
from qconvert.quantize.ranges import AUTO_METHOD, DEFAULT_METHOD, OUTPUT_ERROR_METHOD

CANDIDATE_METHODS = (
    DEFAULT_METHOD, "minmax", "percentile:99.999", "percentile:99.99", "entropy", "moving-average", OUTPUT_ERROR_METHOD,
)  # fmt: skip


@dataclass(frozen=True)
class TriedMethod:
    """How far the outputs of a model are from FP32 with one method; smaller is better."""

    method: str
    distance: float


@dataclass(frozen=True)
class MethodChoice:
    """The method to take, and what was tried, the nearest first."""

    method: str
    tried: tuple[TriedMethod, ...]

    def text(self) -> str:
        """Say it in one sentence."""
        return ", ".join(f"{each.method} {each.distance:.4g}" for each in self.tried)


def select_method(study: Candidate, work: float) -> tuple[QuantizeOptions, tuple[TriedMethod, ...]]:
    """Quantize once with each method, and return the wishes with the nearest, and all tried."""
    started = time.perf_counter()
    total = len(CANDIDATE_METHODS) + 1
    study.progress(Progress("choose", "the float model", done=0, total=total))
    wanted = study.reference_outputs()
    far: dict[str, OutputError] = {}
    wishes: dict[str, QuantizeOptions] = {}
    for number, method in enumerate(CANDIDATE_METHODS):
        study.progress(Progress("choose", method, done=number + 1, total=total))
        tried = replace(study.options, method=method)
        if method == OUTPUT_ERROR_METHOD:
            tried = assign_methods(
                replace(study, options=replace(study.options, method=DEFAULT_METHOD)), work
            )
            if not tried.per_tensor_methods:
                continue
        wishes[method], far[method] = tried, study.output_error(tried, wanted)
    choice = best_method(far)
    text = (
        f"ranges by {choice.method}, {study.describe_images(far[DEFAULT_METHOD])}: {choice.text()}"
    )
    study.progress(Progress("choose", text, time.perf_counter() - started))
    return wishes[choice.method], choice.tried


def best_method(far: Mapping[str, OutputError]) -> MethodChoice:
    """Return the usual method, or the nearest of those that are nearer beyond doubt.

    Compared are the same images, in pairs.
    """
    tried = [TriedMethod(method, float(each.per_image.mean())) for method, each in far.items()]
    ranked = tuple(sorted(tried, key=lambda each: each.distance))
    better = (each.method for each in ranked if is_better(far[DEFAULT_METHOD], far[each.method]))
    return MethodChoice(next(better, DEFAULT_METHOD), ranked)


@dataclass(frozen=True)
class SelectedPlan:
    """A plan, what was seen of the model that it rounds, and what was tried for it."""

    plan: Plan
    calibration: CalibrationSet
    tried: tuple[TriedMethod, ...] = ()
    notes: tuple[str, ...] = ()


def select_plan(study: Candidate, effort: str, store: Cache) -> SelectedPlan:
    """Return a plan by the method wished for; with some effort channels are made even first."""
    chosen, method = EFFORTS[effort], study.options.method
    plain = replace(study, options=replace(study.options, method=_initial_method(method)))
    if not study.calibration.images_available:
        return SelectedPlan(plain.final_plan(), plain.calibration)
    even = try_equalization(plain, store) if chosen.equalize else None
    study = even.candidate if even is not None else plain
    tried: tuple[TriedMethod, ...] = ()
    if method == AUTO_METHOD:
        wishes, tried = select_method(study, chosen.max_macs)
        study = replace(study, options=wishes)
    elif method == OUTPUT_ERROR_METHOD:
        study = replace(study, options=assign_methods(study, EFFORTS["thorough"].max_macs))
    plan = study.final_plan()
    if even is None or not even.factors:
        return SelectedPlan(plan, study.calibration, tried)
    # The plan is for the model as it was: the factors are a part of it.
    name = onnx_io.fingerprint(plain.loaded.model)
    plan = replace(plan, model=name, equalized=dict(even.factors))
    return SelectedPlan(plan, study.calibration, tried, even.notes)


def _initial_method(method: str) -> str:
    """Return the method by which all ranges are chosen until each has its own."""
    return DEFAULT_METHOD if method in (AUTO_METHOD, OUTPUT_ERROR_METHOD) else method
