"""Select the plan of a candidate: the range method with the least output error on holdout images.

The differences are small and the images few, so another method replaces the default only if it is
better by more than chance (`candidate.is_better`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from qconvert.core import onnx_io
from qconvert.core.progress import Progress, start_step
from qconvert.measure.output_error import OutputError
from qconvert.optimize.calibration_set import CalibrationSet
from qconvert.optimize.candidate import Candidate, is_better
from qconvert.optimize.efforts import EFFORTS
from qconvert.optimize.equalization import Equalized
from qconvert.optimize.per_tensor_methods import assign_methods
from qconvert.quantize.placement import QuantizeOptions
from qconvert.quantize.plan import Plan
from qconvert.quantize.ranges import AUTO_METHOD, DEFAULT_METHOD, OUTPUT_ERROR_METHOD

CANDIDATE_METHODS = (
    DEFAULT_METHOD,
    "minmax",
    "percentile:99.999",
    "percentile:99.99",
    "entropy",
    "moving-average",
    OUTPUT_ERROR_METHOD,
)


@dataclass(frozen=True)
class TriedMethod:
    """A range method, and the mean output error (`distance`) of the model quantized with it."""

    method: str
    distance: float


@dataclass(frozen=True)
class SelectedPlan:
    """A plan, the calibration of the model that it quantizes, and the methods that were tried."""

    plan: Plan
    calibration: CalibrationSet
    tried: tuple[TriedMethod, ...] = ()
    notes: tuple[str, ...] = ()


def initial_options(options: QuantizeOptions) -> QuantizeOptions:
    """Return the options to start from: where the method is still to be selected, the default."""
    if options.method in (AUTO_METHOD, OUTPUT_ERROR_METHOD):
        return replace(options, method=DEFAULT_METHOD)
    return options


def select_plan(
    original: Candidate, equalized: Equalized, method: str, effort: str
) -> SelectedPlan:
    """Return the plan by this method, which may ask for the best one, or one for each tensor.

    The plan is for the original model: the factors that equalize it are a part of the plan.
    """
    candidate, tried = equalized.candidate, tuple[TriedMethod, ...]()
    if candidate.calibration.images_available:
        if method == AUTO_METHOD:
            options, tried = select_method(candidate, EFFORTS[effort].max_macs)
            candidate = replace(candidate, options=options)
        elif method == OUTPUT_ERROR_METHOD:
            options = assign_methods(candidate, EFFORTS["thorough"].max_macs)
            candidate = replace(candidate, options=options)
    plan = candidate.final_plan()
    if equalized.factors:
        fingerprint = onnx_io.fingerprint(original.loaded.model)
        plan = replace(plan, model=fingerprint, equalized=dict(equalized.factors))
    return SelectedPlan(plan, candidate.calibration, tried, equalized.notes)


def select_method(
    candidate: Candidate, max_macs: float
) -> tuple[QuantizeOptions, tuple[TriedMethod, ...]]:
    """Quantize with every method; return the options with the best one, and all that were tried."""
    end = start_step(candidate.progress, "choose")
    total = len(CANDIDATE_METHODS) + 1
    candidate.progress(Progress("choose", "the float model", done=0, total=total))
    reference = candidate.reference_outputs()
    errors: dict[str, OutputError] = {}
    options: dict[str, QuantizeOptions] = {}
    for number, method in enumerate(CANDIDATE_METHODS, 1):
        candidate.progress(Progress("choose", method, done=number, total=total))
        if method == OUTPUT_ERROR_METHOD:
            trial = assign_methods(candidate, max_macs)
            if not trial.per_tensor_methods:
                continue
        else:
            trial = replace(candidate.options, method=method)
        options[method] = trial
        errors[method] = candidate.output_error(trial, reference)
    best, tried = best_method(errors)
    scores = ", ".join(f"{row.method} {row.distance:.4g}" for row in tried)
    images = candidate.describe_images(errors[DEFAULT_METHOD])
    end(f"ranges by {best}; output error {images}: {scores}", False)
    return options[best], tried


def best_method(errors: Mapping[str, OutputError]) -> tuple[str, tuple[TriedMethod, ...]]:
    """Return the best method that is better than the default, or that; and all, the best first."""
    tried = [TriedMethod(method, float(error.per_image.mean())) for method, error in errors.items()]
    ranked = tuple(sorted(tried, key=lambda row: row.distance))
    default = errors[DEFAULT_METHOD]
    better = (row.method for row in ranked if is_better(default, errors[row.method]))
    return next(better, DEFAULT_METHOD), ranked
