"""Training of the INT8 engines of a finished run, which `build` then builds and measures again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from qconvert import backends
from qconvert.backends.base import EngineVariant, scheme_for
from qconvert.core.errors import UsageError
from qconvert.core.run_files import PLAN_FILE
from qconvert.images.listing import Images
from qconvert.optimize.calibration_set import CalibrationSet
from qconvert.optimize.candidate import EFFORTS, Candidate
from qconvert.optimize.shifted_grids import shift_grids
from qconvert.quantize.placement import QuantizeOptions
from qconvert.report import metrics
from qconvert.report.model import Report
from qconvert.run.calibrate import load_calibration_set, measure_calibration_set
from qconvert.run.context import JobContext, RunContext
from qconvert.run.run_folder import RunFolder, require_same_settings
from qconvert.run.training import (
    BEFORE_TRAINING,
    TRAIN,
    TrainedPlan,
    require_torch,
    require_trainable,
    train,
)
from qconvert.run.variants import BuildInputs, choose_variants


@dataclass(frozen=True)
class TuneRequest:
    """On which images to train, by default those of the calibration, and for how many steps."""

    images: Path | None = None
    count: int | None = None
    steps: int | None = None


def tune_plans(
    variants: Sequence[EngineVariant],
    inputs: BuildInputs,
    request: TuneRequest,
    evaluation: Images | None,
    context: RunContext,
) -> BuildInputs:
    """Train the plan of each engine that has one, and return the inputs with the new plans."""
    tuned = [v for v in variants if v.needs_ranges and v.name in inputs.plans]
    if not tuned:
        raise _nothing_to_train(context.folder)
    settings = context.config.quantize
    calibration = _training_images(inputs, request, context)
    # Images of the calibration have a note of their own.
    overlap = _count_shared(calibration, evaluation) if request.images else 0
    trained = {}
    for variant in tuned:
        scheme = scheme_for(settings, backends.requirements(variant.backend))
        holdout = EFFORTS[BEFORE_TRAINING].holdout_images
        options = QuantizeOptions()
        candidate = Candidate(
            inputs.loaded, calibration, scheme, options, holdout, context.progress
        )
        steps = request.steps or settings.training_steps
        # The weights may have been trained before, so they are not learned again for the shift.
        saved, shifts = shift_grids(inputs.plans[variant.name], candidate, None, context.cache)
        result = train(saved, candidate, steps, context.cache)
        result = replace(result, notes=(*shifts, *result.notes))
        if overlap:
            note = f"{overlap} of the evaluation images were trained on: its accuracy is too high"
            result = replace(result, notes=(*result.notes, note))
        trained[variant.name] = result
    plans = {**inputs.plans, **{name: result.saved for name, result in trained.items()}}
    return replace(inputs, plans=plans, trained=trained)


def preview_tuning(run: Path, request: TuneRequest, context: JobContext) -> list[str]:
    """Describe what would be trained; no image is read and nothing is written."""
    config, folder = context.config, RunFolder(run)
    require_same_settings(folder, config)
    require_torch(replace(config.quantize, effort=TRAIN))
    chosen = choose_variants(config.build, plan_only=True).variants
    plans = (v for v in chosen if (folder.engine(v.name) / PLAN_FILE).is_file())
    tuned = [variant.name for variant in plans if variant.needs_ranges]
    if not tuned:
        raise _nothing_to_train(folder)
    return [
        f"run       {run}",
        f"train     {request.steps or config.quantize.training_steps} steps for each engine",
        f"on        {request.images or config.calibration.images or 'no images'}",
        *(f"engine    {name}" for name in tuned),
        f"evaluate  {config.evaluate.images or 'no images'}",
    ]


def _nothing_to_train(folder: RunFolder) -> UsageError:
    names = ", ".join(f"`{name}`" for name in folder.engines()) or "none"
    return UsageError(
        f"`{folder.root}` has no INT8 engine to train here; its engines: {names}",
        hint="build one first: `--precision int8`, or name its backend: `--backend NAME`",
    )


def _training_images(
    inputs: BuildInputs, request: TuneRequest, context: RunContext
) -> CalibrationSet:
    """Return the images to train on: those of the request, else those of the run's calibration."""
    config = context.config
    quantize = replace(config.quantize, effort=TRAIN)
    calibration = replace(
        config.calibration,
        images=request.images or config.calibration.images,
        count=request.count or config.calibration.count,
    )
    chosen = replace(context, config=replace(config, quantize=quantize, calibration=calibration))
    require_torch(quantize)
    require_trainable(inputs.loaded, chosen)
    if request.images is not None or request.count is not None:
        return measure_calibration_set(inputs.loaded, chosen)
    return load_calibration_set(inputs.loaded, chosen, context.folder.calibration)


def _count_shared(calibration: CalibrationSet, evaluation: Images | None) -> int:
    if evaluation is None:
        return 0
    hashes = {image.sha256 for image in calibration.full.origin.images}
    return sum(entry.sha256 in hashes for entry in evaluation.manifest())


def describe_changes(
    before: Report | None, after: Report, trained: Mapping[str, TrainedPlan]
) -> tuple[str, ...]:
    """Return a sentence on the scores of each engine that training changed, on the same images."""
    images = [row.evaluation and row.evaluation.sha256 for row in (before, after) if row]
    if before is None or len(set(images)) > 1:
        return ()
    scores = [
        ("primary", metrics.primary_title(after), "%"),
        ("agreement", "agreement", "%"),
        ("sqnr_db", "SQNR", "dB"),
    ]
    earlier, notes = {row.name: row.accuracy for row in before.variants}, []
    kept = [name for name, plan in trained.items() if plan.curve is not None and plan.curve.kept]
    for row in (row for row in after.variants if row.name in kept):
        changes = []
        for name, title, unit in scores:
            old = metrics.score_of(earlier.get(row.name), name)
            new = metrics.score_of(row.accuracy, name)
            if old is not None and new is not None:
                changes.append(f"{title} {old:.1f} -> {new:.1f} {unit}")
        if changes:
            notes.append(f"`{row.name}` before and after training: {', '.join(changes)}")
    return tuple(notes)
