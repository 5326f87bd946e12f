"""Learn the rounding of a plan's weights on calibration images, and accept it by the whole model.

Every layer is saved as soon as it is learned, so that a run that was killed resumes there.
"""

import functools
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from qconvert import __version__
from qconvert.backends.ort import ORT_VERSION, open_cpu
from qconvert.core.cache import Cache
from qconvert.core.cached_step import cached_step
from qconvert.core.progress import Progress, ProgressCallback, start_step
from qconvert.core.tensors import batch_size
from qconvert.optimize.calibration_set import CALIBRATION_BATCH
from qconvert.optimize.candidate import (
    Candidate,
    compare_with_reference,
    is_better,
    run_reference,
)
from qconvert.optimize.efforts import EFFORTS, limit_images
from qconvert.optimize.layer_rounding import RoundedLayer, TrainingSet, find_learnable, learn_layers
from qconvert.optimize.partial_execution import find_untyped_tensor
from qconvert.quantize import plan_files, rounded_weights
from qconvert.quantize.apply_plan import apply_plan
from qconvert.quantize.plan import Plan
from qconvert.quantize.rounded_weights import NO_ROUNDED_WEIGHTS, RoundedWeights

MIN_BATCHES = 2
NO_IMAGES = "weights are rounded to nearest: learning them needs the calibration images, `--images`"
TOO_FEW_IMAGES = (
    "weights are rounded to nearest: learning them needs more calibration images than {}, some to "
    "train on and others to validate"
)
UNKNOWN_TYPE = (
    "weights are rounded to nearest: the type of `{}` is unknown, so that no layer runs alone"
)


@dataclass(frozen=True)
class LearnedPlan:
    """A plan, the weights that were learned with it, and notes for the report."""

    plan: Plan
    weights: RoundedWeights
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class LearnedWeights:
    """Weights, whether the whole model is better with them, and the figures in one sentence."""

    weights: RoundedWeights
    accepted: bool
    summary: str


class _Codec:
    """Learned weights as a `.npz` archive, with the outcome as JSON beside it."""

    def save(self, value: LearnedWeights, folder: Path) -> None:
        rounded_weights.save(value.weights, folder / "learned.npz")
        outcome = {"accepted": value.accepted, "summary": value.summary}
        (folder / "outcome.json").write_text(json.dumps(outcome), encoding="utf-8")

    def load(self, folder: Path) -> LearnedWeights:
        outcome = json.loads((folder / "outcome.json").read_text(encoding="utf-8"))
        return LearnedWeights(rounded_weights.load(folder / "learned.npz"), **outcome)


def learn_rounding(plan: Plan, candidate: Candidate, effort: str, cache: Cache) -> LearnedPlan:
    """Return the plan with learned weights if they lower the output error, else as it is."""
    level, model = EFFORTS[effort], candidate.loaded.model
    calibration, progress = candidate.calibration, candidate.progress
    if not level.training_images or not find_learnable(model, plan):
        return LearnedPlan(plan, NO_ROUNDED_WEIGHTS)
    if untyped := find_untyped_tensor(model):
        return LearnedPlan(plan, NO_ROUNDED_WEIGHTS, (UNKNOWN_TYPE.format(untyped),))
    if not calibration.images_available:
        return LearnedPlan(plan, NO_ROUNDED_WEIGHTS, (NO_IMAGES,))
    end = start_step(progress, "learn")
    images = limit_images(model, level.training_images)
    if not calibration.has_holdout:
        # Of few images some must be left for validation.
        images = min(images, calibration.validation_count - CALIBRATION_BATCH)
    batches = calibration.training_batches(images) if images > 0 else []
    holdout = functools.partial(calibration.holdout_batches, images, level.holdout_images)
    if len(batches) < MIN_BATCHES or next(holdout(), None) is None:
        note = TOO_FEW_IMAGES.format(calibration.validation_count)
        return LearnedPlan(plan, NO_ROUNDED_WEIGHTS, (note,))
    key = {
        "name": f"weights, effort {effort}",
        "plan": plan_files.format_plan(plan),
        "calibration": calibration.full.origin.fingerprint,
        "effort": f"{effort} {level}",
        "qconvert": __version__,
        "numpy": np.__version__,
        "onnxruntime": ORT_VERSION,
    }

    def compute() -> LearnedWeights:
        training = TrainingSet(batches, functools.partial(open_cpu, keep_qdq=True), level.rows)
        with cache.resumable("learn", key) as folder:
            layers = _learn_unfinished(model, plan, training, folder, progress)
            weights = {layer.name: layer.weight for layer in layers if layer.weight is not None}
            learned = apply_plan(model, rounded_weights.with_digest(plan, weights), weights)
            reference = run_reference(model, holdout())
            before, after = (
                compare_with_reference(quantized, holdout(), reference)
                for quantized in (apply_plan(model, plan), learned)
            )
        errors = (
            f"noise-to-signal {100 * before.noise_to_signal:.3g}% -> "
            f"{100 * after.noise_to_signal:.3g}%, output error {before.per_image.mean():.3g} -> "
            f"{after.per_image.mean():.3g} on {after.per_image.size} other images"
        )
        if not is_better(before, after, significantly=False):
            return LearnedWeights(
                weights, False, f"learned weights rejected, they do not lower the error: {errors}"
            )
        flipped = sum(layer.flipped > 0 for layer in layers)
        corrected = f", bias corrected in {more} more" if (more := len(weights) - flipped) else ""
        summary = (
            f"weights learned in {flipped} of {len(layers)} layers{corrected} "
            f"({sum(map(batch_size, batches))} images): {errors}"
        )
        return LearnedWeights(weights, True, summary)

    result = cached_step(cache, "learn", key, compute, _Codec())
    end(result.value.summary, result.hit)
    notes = (result.value.summary,)
    if not result.value.accepted:
        return LearnedPlan(plan, NO_ROUNDED_WEIGHTS, notes)
    weights = result.value.weights
    return LearnedPlan(rounded_weights.with_digest(plan, weights), weights, notes)


def _learn_unfinished(
    model: ir.Model, plan: Plan, training: TrainingSet, folder: Path, progress: ProgressCallback
) -> list[RoundedLayer]:
    """Learn the layers that are not in the folder, and save each there as soon as it is learned."""
    names = find_learnable(model, plan)
    saved = (_read_layer(folder, number, name) for number, name in enumerate(names))
    finished = {layer.name: layer for layer in saved if layer is not None}
    layers: list[RoundedLayer] = []
    for layer in learn_layers(model, plan, replace(training, finished=finished)):
        if layer.name not in finished:
            draft = folder / f".{len(layers)}.npz"
            rounded_weights.save({layer.name: layer.weight} if layer.weight else {}, draft)
            draft.rename(folder / f"{len(layers)}-{layer.flipped}.npz")
        layers.append(layer)
        progress(Progress("learn", "layers", done=len(layers), total=len(names)))
    return layers


def _read_layer(folder: Path, number: int, name: str) -> RoundedLayer | None:
    """Return a layer that an earlier run learned."""
    for file in folder.glob(f"{number}-*.npz"):
        flipped = int(file.stem.split("-")[1])
        return RoundedLayer(name, rounded_weights.load(file).get(name), flipped)
    return None
