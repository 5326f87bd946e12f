"""Train the Q/DQ graph of a plan to give the outputs of FP32, on the calibration images alone.

No labels are needed: the float network is the teacher, on random views of the images. Training
starts from learned rounding and changes weights, biases and steps together, with Adam and a cosine
schedule. A few of the images are held out to choose the best moment; others, on which nothing was
trained, decide whether the result is kept. ONNX Runtime computes both, on the graph that ships.
The state is saved at every check, so that a run that was killed goes on there.
"""

import dataclasses
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qconvert import __version__
from qconvert.backends.ort import ORT_VERSION, open_cpu
from qconvert.core import atomic
from qconvert.core.cache import Cache
from qconvert.core.errors import QConvertError
from qconvert.core.progress import Progress, start_step
from qconvert.core.tensors import Tensors
from qconvert.measure.output_error import sqnr_from_powers
from qconvert.measure.training_curve import TrainingCurve
from qconvert.optimize.calibration_set import CALIBRATION_BATCH
from qconvert.optimize.candidate import Candidate, is_better, run_reference
from qconvert.optimize.learned_rounding import describe_decision
from qconvert.quantize import plan_files
from qconvert.quantize.apply_plan import apply_plan
from qconvert.quantize.plan_files import PlanWithWeights
from qconvert.train.augmentation import augment, is_image
from qconvert.train.losses import OutputLoss, make_loss
from qconvert.train.operators import require_operators
from qconvert.train.trainable_graph import TrainableGraph

# Fewer images fit by heart; and of so many batches one is held out to choose the best moment.
MIN_IMAGES, HOLDOUT_EVERY = 32, 5
# Bytes of images and FP32 outputs in memory.
MAX_IMAGE_BYTES = 400_000_000
WARM_UP = 20
CHECKPOINT = "checkpoint.pt"


@dataclass(frozen=True)
class TrainingSettings:
    """The steps, the images of a step, and the learning rates of Adam.

    Weights move in steps of their grid, biases in deviations of the output of their layer, and
    steps relative to themselves. A rate that is too high is never made good again.
    """

    steps: int = 1000
    batch: int = 4
    weights: float = 0.003
    biases: float = 1e-4
    activation_steps: float = 2e-4
    weight_steps: float = 0.0
    check_every: int = 100
    seed: int = 0


@dataclass(eq=False)
class _Training:
    """The state of a training, on its way through the steps."""

    module: TrainableGraph
    optimizer: torch.optim.Adam
    rates: list[float]
    generator: torch.Generator
    step: int = 0
    history: list[tuple[int, float, float]] = field(default_factory=list)
    best_step: int = 0
    best_error: float = math.inf
    best: dict[str, Tensor] = field(default_factory=dict)

    def remember(self, loss: float, error: float) -> None:
        """Note a check, and the parameters if they are the best so far."""
        self.history.append((self.step, loss, error))
        if error < self.best_error:
            self.best_step, self.best_error = self.step, error
            self.best = {name: value.clone() for name, value in self.module.state_dict().items()}

    def save(self, file: Path) -> None:
        """Write everything that the next step depends on."""
        stored = {
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            **{
                name: getattr(self, name) for name in ("step", "history", "best_step", "best_error")
            },
            "best": self.best,
        }
        buffer = io.BytesIO()
        torch.save(stored, buffer)
        atomic.write_bytes(file, buffer.getvalue())

    def load(self, file: Path) -> None:
        """Go on from where `save` was called."""
        stored = torch.load(file, weights_only=True)
        self.module.load_state_dict(stored["module"])
        self.optimizer.load_state_dict(stored["optimizer"])
        self.generator.set_state(stored["generator"])
        for name in ("step", "history", "best_step", "best_error", "best"):
            setattr(self, name, stored[name])


def train_plan(
    saved: PlanWithWeights,
    candidate: Candidate,
    cache: Cache,
    settings: TrainingSettings = TrainingSettings(),
) -> tuple[PlanWithWeights, tuple[str, ...], TrainingCurve | None]:
    """Return the plan as training changed it if its outputs are nearer to FP32, notes, the curve."""
    model = candidate.loaded.model
    require_trainable(candidate)
    end = start_step(candidate.progress, "train")
    key = {
        "name": "distillation",
        "plan": plan_files.format_plan(saved.plan),
        "calibration": candidate.calibration.full.origin.fingerprint,
        "settings": repr(settings),
        "device": str(_device()),
        "qconvert": __version__,
        "torch": torch.__version__,
        "onnxruntime": ORT_VERSION,
    }

    def make(entry: Path) -> None:
        with cache.resumable("train", key) as folder:
            trained, curve = _train(saved, candidate, settings, folder / CHECKPOINT)
        holdout = list(candidate.calibration.holdout_batches(_count(candidate), _count(candidate)))
        reference = run_reference(model, holdout)
        before, after = (
            candidate.compare(apply_plan(model, row.plan, row.weights), holdout, reference)
            for row in (saved, trained)
        )
        accepted = curve.best_step > 0 and is_better(before, after, significantly=False)
        note = f"training: {curve.steps[-1]} steps, {describe_decision(accepted, before, after)}"
        curve = dataclasses.replace(curve, kept=accepted)
        plan_files.save_plan(trained if accepted else saved, entry / "plan.json")
        (entry / "curve.json").write_text(json.dumps(dataclasses.asdict(curve)), encoding="utf-8")
        (entry / "summary.txt").write_text(note, encoding="utf-8")

    entry, hit = cache.get_or_make("train", key, make)
    note = (entry / "summary.txt").read_text(encoding="utf-8")
    values = json.loads((entry / "curve.json").read_text(encoding="utf-8"))
    curve = TrainingCurve(**{name: _frozen(value) for name, value in values.items()})
    end(note, hit)
    return plan_files.load_plan(entry / "plan.json"), (note,), curve


def require_trainable(candidate: Candidate) -> None:
    """Refuse a model that has no gradients here, and too few calibration images."""
    require_operators(candidate.loaded.model)
    calibration = candidate.calibration
    if calibration.images is None:
        raise QConvertError(
            "training needs the calibration images again",
            hint="say where they are: `--images PATH`, or choose `--effort thorough`",
        )
    count = len(calibration.full.origin.images)
    if count < MIN_IMAGES:
        raise QConvertError(
            f"training needs at least {MIN_IMAGES} calibration images, and there are {count}",
            hint="add images, or choose `--effort thorough`, which learns on fewer",
        )


def _train(
    saved: PlanWithWeights, candidate: Candidate, settings: TrainingSettings, checkpoint: Path
) -> tuple[PlanWithWeights, TrainingCurve]:
    """Train on most of the batches, and return the best moment by the others."""
    model, device = candidate.loaded.model, _device()
    batches = candidate.calibration.training_batches(_count(candidate))
    held_out = batches[HOLDOUT_EVERY - 1 :: HOLDOUT_EVERY]
    batches = [row for index, row in enumerate(batches) if (index + 1) % HOLDOUT_EVERY]
    reference = run_reference(model, held_out)
    module = TrainableGraph(model, saved.plan, saved.weights).to(device)
    training = _start(module, batches, settings)
    loss = make_loss(run_reference(model, batches), device)
    teach, images = open_cpu(model), _Views(candidate, batches, settings.batch)

    def check(mean_loss: float) -> None:
        row = module.to_plan() if training.step else saved
        graph = apply_plan(model, row.plan, row.weights)
        error = candidate.compare(graph, held_out, reference)
        training.remember(mean_loss, error.noise_to_signal)
        training.save(checkpoint)

    if checkpoint.is_file():
        training.load(checkpoint)
    else:
        with torch.no_grad():
            outputs = module(_to_device(batches[0], device))
            check(float(loss(_to_device(teach(batches[0]), device), outputs)))
    total = 0.0
    while training.step < settings.steps:
        training.step += 1
        share = training.step / settings.steps
        scale = min(1.0, training.step / WARM_UP) * (1 + math.cos(math.pi * share)) / 2
        feeds = images.draw(training.generator)
        expected = _to_device(teach(feeds), device)
        step_loss = _take_step(training, loss, _to_device(feeds, device), expected, scale)
        if not math.isfinite(step_loss):
            candidate.progress(
                Progress("train", "the loss is not finite: the best weights are kept")
            )
            break
        total += step_loss
        if training.step % settings.check_every == 0 or training.step == settings.steps:
            check(total / settings.check_every)
            total = 0.0
        text = f"SQNR {_decibels(training.best_error):.2f} dB"
        candidate.progress(Progress("train", text, done=training.step, total=settings.steps))
    module.load_state_dict(training.best)
    steps, losses, errors = zip(*training.history, strict=True)
    decibels = tuple(_decibels(error) for error in errors)
    trained = module.to_plan() if training.best_step else saved
    return trained, TrainingCurve(steps, losses, decibels, training.best_step, kept=False)


def _take_step(
    training: _Training,
    loss: OutputLoss,
    feeds: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    scale: float,
) -> float:
    """Change the parameters once, and return the loss before."""
    for group, rate in zip(training.optimizer.param_groups, training.rates, strict=True):
        group["lr"] = rate * scale
    value = loss(expected, training.module(feeds))
    training.optimizer.zero_grad()
    if math.isfinite(result := float(value.detach())):
        value.backward()  # type: ignore[no-untyped-call]
        training.optimizer.step()
    return result


def _start(
    module: TrainableGraph, batches: Sequence[Tensors], settings: TrainingSettings
) -> _Training:
    """Return the training before its first step."""
    groups = module.parameter_groups()
    rates = {
        "weights": settings.weights,
        "weight_steps": settings.weight_steps,
        "steps": settings.activation_steps,
    }
    rows: list[dict[str, Any]] = [
        {"params": groups[name], "lr": rate}
        for name, rate in rates.items()
        if rate and groups[name]
    ]
    deviations = module.output_deviations(_to_device(batches[0], _device()))
    rows += [
        {"params": [bias], "lr": settings.biases * deviations[key]}
        for key, bias in module.biases.items()
    ]
    optimizer = torch.optim.Adam(rows)
    generator = torch.Generator().manual_seed(settings.seed)
    return _Training(module, optimizer, [row["lr"] for row in rows], generator)


class _Views:
    """Random batches from the images: other views of them, where the input is one of images."""

    def __init__(self, candidate: Candidate, batches: Sequence[Tensors], size: int) -> None:
        specs = candidate.loaded.source.inputs
        self.size = candidate.calibration.fixed_batch or size
        self.arrays = {name: np.concatenate([row[name] for row in batches]) for name in batches[0]}
        self.views = len(specs) == 1 and is_image(specs[0])

    def draw(self, generator: torch.Generator) -> Tensors:
        """Return the next batch."""
        count = len(next(iter(self.arrays.values())))
        chosen = torch.randint(count, (self.size,), generator=generator).numpy()
        rows = {name: array[chosen] for name, array in self.arrays.items()}
        if self.views:
            rows = {
                name: augment(torch.from_numpy(row), generator).numpy()
                for name, row in rows.items()
            }
        return rows


def _count(candidate: Candidate) -> int:
    """Return how many images fit into memory."""
    sizes = [math.prod(map(int, spec.shape[1:])) * 4 for spec in candidate.loaded.source.inputs]
    return max(CALIBRATION_BATCH, MAX_IMAGE_BYTES // max(1, sum(sizes)))


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _to_device(tensors: Tensors, device: torch.device) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array).to(device) for name, array in tensors.items()}


def _decibels(noise_to_signal: float) -> float:
    return float(sqnr_from_powers(1.0, noise_to_signal) or 0.0)


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
