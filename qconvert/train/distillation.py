"""Train the Q/DQ graph of a plan to give the outputs of FP32, on the calibration images alone.

No labels are needed: the float network gives the targets. Training starts from learned rounding and
goes block by block (`blocks`), each on the outputs of the trained blocks before it: weights, biases
and steps together, with Adam and a cosine schedule. A block keeps what it learned if its error
falls on images held out from it. At the end other images, on which nothing was trained, decide
whether the whole is kept; ONNX Runtime computes that, on the graph that ships. The state is saved
behind every block, so that a run that was killed goes on there.

Trained end to end instead, the gradient of a few images is so noisy that at 8 bits it undoes what
rounding had learned.
"""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qconvert import __version__
from qconvert.backends.ort import ORT_VERSION
from qconvert.core import atomic
from qconvert.core.cache import Cache, JsonCodec
from qconvert.core.errors import QConvertError
from qconvert.core.progress import Progress, ProgressCallback, start_step
from qconvert.core.tensors import Tensors, TensorSpec, batch_size
from qconvert.measure.output_error import sqnr_from_powers
from qconvert.measure.training_curve import TrainingCurve
from qconvert.optimize.calibration_set import CALIBRATION_BATCH
from qconvert.optimize.candidate import Candidate, run_reference
from qconvert.optimize.learned_rounding import accept_plan
from qconvert.quantize import plan_files
from qconvert.quantize.apply_plan import apply_plan
from qconvert.quantize.plan_files import PlanWithWeights
from qconvert.train.augmentation import augment, is_image
from qconvert.train.blocks import Block, find_blocks, float_plan, run_many, run_steps
from qconvert.train.losses import OutputLoss, make_loss, make_tensor_loss
from qconvert.train.operators import require_operators
from qconvert.train.trainable_graph import TrainableGraph

# Fewer images are learned by heart; of so many batches one is held out from every block.
MIN_IMAGES, HOLDOUT_EVERY = 32, 5
# Bytes of activations at the widest place between blocks, of one of both networks.
MAX_ACTIVATION_BYTES = 500_000_000
CHECKPOINT = "checkpoint.pt"
CURVE = JsonCodec("curve.json", TrainingCurve)


@dataclass(frozen=True)
class TrainingSettings:
    """The steps over all blocks, the images of a step, and the learning rates of Adam.

    Weights move in steps of their grid, biases in deviations of the output of their layer, and
    steps relative to themselves.
    """

    steps: int = 2500
    batch: int = 8
    weights: float = 0.0025
    biases: float = 1.5e-4
    activation_steps: float = 1.5e-4
    weight_steps: float = 1e-4
    seed: int = 0


@dataclass(eq=False)
class _Training:
    """The state of a training, on its way through the blocks."""

    module: TrainableGraph
    generator: torch.Generator
    block: int = 0
    step: int = 0
    history: list[tuple[int, float, float]] = field(default_factory=list)

    def save(self, file: Path) -> None:
        """Write everything that the next block depends on."""
        stored = {
            "module": self.module.state_dict(),
            "generator": self.generator.get_state(),
            **{name: getattr(self, name) for name in ("block", "step", "history")},
        }
        buffer = io.BytesIO()
        torch.save(stored, buffer)
        atomic.write_bytes(file, buffer.getvalue())

    def load(self, file: Path) -> None:
        """Go on from where `save` was called."""
        stored = torch.load(file, weights_only=True)
        self.module.load_state_dict(stored["module"])
        self.generator.set_state(stored["generator"])
        for name in ("block", "step", "history"):
            setattr(self, name, stored[name])


@dataclass(frozen=True, eq=False)
class _BlockProblem:
    """What a block reads, what it should compute, and how many of the rows it is trained on."""

    block: Block
    feeds: dict[str, Tensor]
    expected: dict[str, Tensor]
    loss: OutputLoss
    trained: int
    batch: int

    def error(self, module: TrainableGraph) -> float:
        """Return the loss on the images held out."""
        held_out = {name: value[self.trained :] for name, value in self.feeds.items()}
        outputs = run_many(module, self.block.steps, held_out, self.block, self.batch)
        expected = {name: value[self.trained :] for name, value in self.expected.items()}
        return float(self.loss(expected, outputs))


def train_plan(
    saved: PlanWithWeights,
    candidate: Candidate,
    cache: Cache,
    settings: TrainingSettings = TrainingSettings(),
) -> tuple[PlanWithWeights, tuple[str, ...], TrainingCurve]:
    """Return the plan as training changed it if its outputs are nearer to FP32, notes, the curve."""
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
        holdout = list(candidate.calibration.validation_batches())
        accepted, decision = accept_plan(candidate, saved, trained, holdout)
        note = f"training: {curve.steps[-1]} steps, {decision}"
        curve = replace(curve, kept=accepted)
        plan_files.save_plan(trained if accepted else saved, entry / "plan.json")
        CURVE.save(curve, entry)
        (entry / "summary.txt").write_text(note, encoding="utf-8")

    entry, hit = cache.get_or_make("train", key, make)
    note = (entry / "summary.txt").read_text(encoding="utf-8")
    end(note, hit)
    return plan_files.load_plan(entry / "plan.json"), (note,), CURVE.load(entry)


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
    """Train block after block, and return the plan with the course of its outputs."""
    model, device = candidate.loaded.model, _device()
    module = TrainableGraph(model, saved.plan, saved.weights).to(device)
    float_module = TrainableGraph(model, float_plan(saved.plan)).to(device)
    first = _to_device(candidate.calibration.training_batches(1)[0], device)
    blocks = find_blocks(module, float_module, first)
    batches = candidate.calibration.training_batches(_count(float_module, blocks, first))
    held_out = batches[HOLDOUT_EVERY - 1 :: HOLDOUT_EVERY]
    batches = [row for index, row in enumerate(batches) if (index + 1) % HOLDOUT_EVERY]
    training = _Training(module, torch.Generator().manual_seed(settings.seed))
    views = _views(batches, candidate.loaded.source.inputs, training.generator)
    trained = sum(batch_size(batch) for batch in (*batches, *views))
    floats = quantized = _to_device(_concatenate([*batches, *views, *held_out]), device)
    batch = candidate.calibration.fixed_batch or settings.batch
    reference = run_reference(model, held_out)

    def check(loss: float) -> None:
        row = module.to_plan()
        graph = apply_plan(model, row.plan, row.weights)
        error = candidate.compare(graph, held_out, reference).noise_to_signal
        training.history.append((training.step, loss, _decibels(error)))
        training.save(checkpoint)

    deviations = module.output_deviations(first)
    if checkpoint.is_file():
        training.load(checkpoint)
    for number, block in enumerate(blocks):
        expected = run_many(float_module, block.float_steps, floats, block, batch)
        if number >= training.block:
            is_last = number + 1 == len(blocks)
            loss = make_loss(expected) if is_last else make_tensor_loss(expected)
            problem = _BlockProblem(block, quantized, expected, loss, trained, batch)
            if not training.history:
                check(problem.error(module))
            training.block = number + 1
            steps = settings.steps * training.block // len(blocks) - training.step
            check(_train_block(training, problem, steps, settings, deviations, candidate.progress))
        quantized = run_many(module, block.steps, quantized, block, batch)
        floats = expected
    checks, losses, decibels = zip(*training.history, strict=True)
    return module.to_plan(), TrainingCurve(checks, losses, decibels, checks[-1], kept=False)


def _train_block(
    training: _Training,
    problem: _BlockProblem,
    steps: int,
    settings: TrainingSettings,
    deviations: Mapping[str, float],
    progress: ProgressCallback,
) -> float:
    """Train a block for so many steps and return its loss on the images held out.

    It stays as it was if that is no lower, or if the loss is not finite.
    """
    module, before = training.module, problem.error(training.module)
    kept = {name: value.clone() for name, value in module.state_dict().items()}
    optimizer = torch.optim.Adam(_parameter_groups(module, problem.block, settings, deviations))
    rates = [group["lr"] for group in optimizer.param_groups]
    is_finite = True
    for step in range(steps):
        scale = (1 + math.cos(math.pi * step / steps)) / 2
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * scale
        chosen = torch.randint(problem.trained, (problem.batch,), generator=training.generator)
        feeds, expected = (
            {name: value[chosen.to(value.device)] for name, value in side.items()}
            for side in (problem.feeds, problem.expected)
        )
        loss = problem.loss(expected, run_steps(module, problem.block.steps, feeds, problem.block))
        if not (is_finite := math.isfinite(float(loss.detach()))):
            progress(Progress("train", "the loss is not finite: a block stays as it was"))
            break
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        done = training.step + step + 1
        progress(Progress("train", "blocks", done=done, total=settings.steps))
    training.step += steps
    after = problem.error(module) if is_finite else math.inf
    if after < before:
        return after
    module.load_state_dict(kept)
    return before


def _parameter_groups(
    module: TrainableGraph,
    block: Block,
    settings: TrainingSettings,
    deviations: Mapping[str, float],
) -> list[dict[str, Any]]:
    """Return the parameters of a block with their learning rates."""
    parameters = module.parameters_of(block.steps)
    rates = {
        "weights": settings.weights,
        "weight_steps": settings.weight_steps,
        "steps": settings.activation_steps,
    }
    rows = [
        {"params": parameters[kind], "lr": rate} for kind, rate in rates.items() if parameters[kind]
    ]
    biases = {id(bias): key for key, bias in module.biases.items()}
    return rows + [
        {"params": [bias], "lr": settings.biases * deviations[biases[id(bias)]]}
        for bias in parameters["biases"]
    ]


def _count(
    float_module: TrainableGraph, blocks: Sequence[Block], feeds: Mapping[str, Tensor]
) -> int:
    """Return on how many images, with a view of each, the activations between blocks fit."""
    values, sizes = dict(feeds), list[int]()
    count = len(next(iter(feeds.values())))
    for block in blocks:
        sizes.append(sum(value.nbytes for value in values.values()))
        values = run_many(float_module, block.float_steps, values, block, count)
    return max(CALIBRATION_BATCH, MAX_ACTIVATION_BYTES * count // (2 * max(sizes)))


def _views(
    batches: Sequence[Tensors], specs: Sequence[TensorSpec], generator: torch.Generator
) -> list[Tensors]:
    """Return a random view of each image, where the input is one of images."""
    if len(specs) != 1 or not is_image(specs[0]):
        return []
    return [
        {name: augment(torch.from_numpy(row), generator).numpy() for name, row in batch.items()}
        for batch in batches
    ]


def _concatenate(batches: Sequence[Tensors]) -> Tensors:
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _to_device(tensors: Tensors, device: torch.device) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array).to(device) for name, array in tensors.items()}


def _decibels(noise_to_signal: float) -> float:
    return float(sqnr_from_powers(1.0, noise_to_signal) or 0.0)
