"""Weights learned on calibration images, kept only if the answers of the whole model get nearer.

Every layer is stored as soon as it is learned, so that a run which was killed goes on there.
"""

import functools
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pydantic

from qconvert import __version__
from qconvert.backends.ort import ORT_VERSION, open_cpu
from qconvert.core.cache import Cache
from qconvert.core.number_format import count
from qconvert.core.progress import Progress, ProgressCallback
from qconvert.core.tensors import Tensors, batch_size, output_array
from qconvert.measure.output_error import (
    ErrorArray,
    noise_to_signal,
    per_image_errors,
    prediction_changes,
)
from qconvert.optimize.calibration_set import CALIBRATION_BATCH, CalibrationSet
from qconvert.optimize.candidate import MAX_OUTPUT_BYTES as ANSWER_BYTES
from qconvert.optimize.efforts import EFFORTS, limit_images
from qconvert.optimize.layer_rounding import RoundedLayer, TrainingSet, find_learnable, learn_layers
from qconvert.optimize.partial_execution import find_untyped_tensor
from qconvert.quantize import plan_files, rounded_weights
from qconvert.quantize.apply_plan import apply_plan
from qconvert.quantize.plan import Plan
from qconvert.quantize.rounded_weights import RoundedWeight, RoundedWeights
from qconvert.sources import LoadedModel

WEIGHTS, OUTCOME = "learned.npz", "told.json"
MIN_BATCHES = 2
# Standard errors by which the distance may grow, and the share of changed answers. A smaller error
# is no comfort where more answers are wrong, and few images show that late.
MAX_ERROR_GROWTH, MAX_CHANGED_GROWTH = 2.0, 1.5
NO_IMAGES = (
    "weights were rounded to the nearest: learning them needs the calibration images, `--images`"
)
TOO_FEW_IMAGES = (
    "weights were rounded to the nearest: {} are too few to learn from some and judge by others"
)
UNKNOWN_TYPE = (
    "weights were rounded to the nearest: the type of `{}` is not known, so no layer runs alone"
)


@dataclass(frozen=True)
class LearnedPlan:
    """A plan, the weights that were learned with it, and what to say of them."""

    plan: Plan
    weights: RoundedWeights
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class MeanOutputError:
    """The power of the answers' error over that of the answers, and their mean distance.

    Both are infinite where an answer is not finite.
    """

    # Else infinity would be written as null, and that is no number to read again.
    __pydantic_config__ = pydantic.ConfigDict(ser_json_inf_nan="constants")

    error: float
    distance: float


@dataclass(frozen=True)
class RoundingOutcome:
    """What became of the layers, and how near the model's answers are to FP32 before and after."""

    layers: int
    learned: int
    corrected: int
    before: MeanOutputError
    after: MeanOutputError
    worse: bool
    holdout_images: int
    training_images: int = 0

    @property
    def accepted(self) -> bool:
        """Whether the error of the answers fell, and they are no further off beyond chance."""
        return self.after.error < self.before.error and not self.worse

    def text(self) -> str:
        """Say it in one sentence."""
        came = (
            f"error {100 * self.before.error:.3g}% -> {100 * self.after.error:.3g}%, distance "
            f"{self.before.distance:.3g} -> {self.after.distance:.3g} "
            f"on {self.holdout_images} other images"
        )
        if not self.accepted:
            return f"learned weights were dropped, they do not bring the answers nearer: {came}"
        corrected = f", bias corrected in {self.corrected} more" if self.corrected else ""
        return (
            f"weights learned in {self.learned} of {self.layers} layers{corrected} "
            f"({self.training_images} images); answers: {came}"
        )


OUTCOME_ADAPTER = pydantic.TypeAdapter(RoundingOutcome)


@dataclass(frozen=True)
class RoundingInputs:
    """What a plan is improved with."""

    loaded: LoadedModel
    calibration: CalibrationSet
    cache: Cache
    progress: ProgressCallback


def learn_rounding(plan: Plan, effort: str, by: RoundingInputs) -> LearnedPlan:
    """Return the plan with weights that were learned, where that brings the answers nearer."""
    chosen, model = EFFORTS[effort], by.loaded.model
    names = find_learnable(model, plan)
    if not chosen.training_images or not names:
        return LearnedPlan(plan, rounded_weights.NO_ROUNDED_WEIGHTS)
    if lost := find_untyped_tensor(model):
        return LearnedPlan(plan, rounded_weights.NO_ROUNDED_WEIGHTS, (UNKNOWN_TYPE.format(lost),))
    if not by.calibration.images_available:
        return LearnedPlan(plan, rounded_weights.NO_ROUNDED_WEIGHTS, (NO_IMAGES,))
    started = time.perf_counter()
    images = limit_images(model, chosen.training_images)
    if not by.calibration.has_holdout:
        # Of few images some must be left to judge by.
        images = min(images, by.calibration.validation_count - CALIBRATION_BATCH)
    parts = by.calibration.training_batches(images) if images > 0 else []
    judged = next(by.calibration.holdout_batches(images, chosen.holdout_images), None) is not None
    if len(parts) < MIN_BATCHES or not judged:
        return LearnedPlan(
            plan,
            rounded_weights.NO_ROUNDED_WEIGHTS,
            (TOO_FEW_IMAGES.format(count(by.calibration.validation_count, "image")),),
        )
    recipe = _recipe(plan, effort, by)

    def make(folder: Path) -> None:
        lesson = TrainingSet(parts, functools.partial(open_cpu, keep_qdq=True), chosen.rows)
        with by.cache.resumable("learn", recipe) as bench:
            taught = _learn_unfinished(plan, lesson, by, bench)
            rounded_weights.save(_learned_weights(taught), folder / WEIGHTS)
        judges = by.calibration.holdout_batches(images, chosen.holdout_images)
        verdict = _compare_outputs(plan, taught, judges, by)
        verdict = replace(verdict, training_images=sum(map(batch_size, parts)))
        (folder / OUTCOME).write_bytes(OUTCOME_ADAPTER.dump_json(verdict))

    stored = by.cache.get_or_make("learn", recipe, make)
    verdict = OUTCOME_ADAPTER.validate_json((stored.path / OUTCOME).read_bytes())
    took = time.perf_counter() - started
    by.progress(Progress("learn", verdict.text(), took, stored.hit))
    if not verdict.accepted:
        return LearnedPlan(plan, rounded_weights.NO_ROUNDED_WEIGHTS, (verdict.text(),))
    learned = rounded_weights.load(stored.path / WEIGHTS)
    return LearnedPlan(rounded_weights.with_digest(plan, learned), learned, (verdict.text(),))


def _learn_unfinished(
    plan: Plan, lesson: TrainingSet, by: RoundingInputs, bench: Path
) -> list[RoundedLayer]:
    """Learn what is not on the bench yet, and leave each layer there as soon as it is learned."""
    names = find_learnable(by.loaded.model, plan)
    there = (_read_layer(bench, place, name) for place, name in enumerate(names))
    known = {each.name: each for each in there if each is not None}
    taught: list[RoundedLayer] = []
    for place, each in enumerate(
        learn_layers(by.loaded.model, plan, replace(lesson, finished=known))
    ):
        taught.append(each)
        if each.name not in known:
            _write_layer(bench, place, each)
        by.progress(Progress("learn", "layers", done=place + 1, total=len(names)))
    return taught


def _write_layer(bench: Path, place: int, taught: RoundedLayer) -> None:
    held = {} if taught.weight is None else {taught.name: taught.weight}
    draft = bench / f".{place}.npz"
    rounded_weights.save(held, draft)
    draft.rename(bench / f"{place}-{taught.flipped}.npz")


def _read_layer(bench: Path, place: int, name: str) -> RoundedLayer | None:
    """Return what an earlier try learned of a layer."""
    for file in bench.glob(f"{place}-*.npz"):
        return RoundedLayer(
            name, rounded_weights.load(file).get(name), int(file.stem.split("-")[1])
        )
    return None


def _learned_weights(taught: Sequence[RoundedLayer]) -> dict[str, RoundedWeight]:
    return {each.name: each.weight for each in taught if each.weight is not None}


def _compare_outputs(
    plan: Plan, taught: Sequence[RoundedLayer], judges: Iterable[Tensors], by: RoundingInputs
) -> RoundingOutcome:
    """Compare the answers of the model with and without what was learned, on other images."""
    model, learned = by.loaded.model, _learned_weights(taught)
    after_all = apply_plan(model, rounded_weights.with_digest(plan, learned), learned)
    runs = [open_cpu(each) for each in (model, apply_plan(model, plan), after_all)]
    counts, held, told = list[int](), 0, list[list[Tensors]]()
    for feeds in judges:
        counts.append(batch_size(feeds))
        told.append([run(feeds) for run in runs])
        held += sum(output_array(told[-1][0], name).nbytes for name in told[-1][0])
        if held > ANSWER_BYTES:
            break
    wanted, *found = (list(each) for each in zip(*told, strict=True))
    far = [per_image_errors(wanted, answers, counts) for answers in found]
    before, after = (
        MeanOutputError(noise_to_signal(wanted, answers), float(each.mean()))
        for answers, each in zip(found, far, strict=True)
    )
    apart = [prediction_changes(wanted, answers, counts) for answers in found]
    return RoundingOutcome(
        layers=len(taught),
        learned=sum(each.flipped > 0 for each in taught),
        corrected=sum(each.weight is not None and not each.flipped for each in taught),
        before=before,
        after=after,
        worse=_grew_significantly(far[0], far[1], MAX_ERROR_GROWTH)
        or _grew_significantly(apart[0], apart[1], MAX_CHANGED_GROWTH),
        holdout_images=sum(counts),
    )


def _grew_significantly(before: ErrorArray, after: ErrorArray, errors: float) -> bool:
    """Whether the images' numbers grew by more than so many standard errors."""
    grown = after - before
    return bool(grown.mean() > errors * grown.std() / np.sqrt(grown.size))


def _recipe(plan: Plan, effort: str, by: RoundingInputs) -> dict[str, str]:
    """Return all that decides what is learned."""
    return {
        "name": f"weights, effort {effort}",
        "plan": plan_files.format_plan(plan),
        "calibration": by.calibration.full.origin.fingerprint,
        "effort": f"{effort} {EFFORTS[effort]}",
        "qconvert": __version__,
        "numpy": np.__version__,
        "onnxruntime": ORT_VERSION,
    }
