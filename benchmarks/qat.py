"""INT8 of the three hard networks after training with their labels, in a loop of one's own.

A tenth of the epochs that trained the network, on the same images with the same augmentation. The
Q/DQ files run in ONNX Runtime, on the 500 images of `hard_nets` and on 3000 more. The row `float`
is the network trained alike without rounding: what more training alone gains.

    python -m benchmarks.qat                                    # all networks, both schemes
    python -m benchmarks.qat --work DIR --net mobilenet         # keep weights and files in DIR
    python -m benchmarks.qat --work DIR --rate 0.01 0.1 1       # several learning rates
"""

import argparse
import itertools
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from benchmarks import small_nets
from benchmarks.against_fp32 import CHUNK, Array, Reference, run_model
from benchmarks.hard_nets import INPUT, prepare_reference
from benchmarks.small_nets import BATCH, DECAY, IMAGE_COUNT, SMALL, SMOOTHING
from qconvert.demo import generator
from qconvert.train import QuantizedModule, finish, prepare

BACKENDS = ("cpu", "tensorrt")
MORE_SEED, MORE_COUNT = 20_270, 3000
# INT8 may be below FP32 by this many points, on the 500 images.
AIM = 0.3


@dataclass(frozen=True)
class Recipe:
    """How long and how fast a network is trained, as shares of its own training."""

    epochs: float
    rate: float
    step_rate: float


@dataclass(frozen=True, eq=False)
class Data:
    """The images of the training and their classes, and more to evaluate on."""

    images: NDArray[np.float32]
    labels: NDArray[np.int64]
    more_images: NDArray[np.float32]
    more_labels: NDArray[np.int64]


def main(words: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, help="where trained networks and files are kept")
    parser.add_argument("--net", choices=SMALL, nargs="+", default=[*SMALL])
    parser.add_argument("--backend", choices=BACKENDS, nargs="+", default=BACKENDS)
    parser.add_argument("--epochs", type=float, nargs="+", default=[0.1], help="share of them")
    parser.add_argument("--rate", type=float, nargs="+", default=[0.3], help="share of it")
    parser.add_argument("--step-rate", type=float, nargs="+", default=[1e-3])
    arguments = parser.parse_args(words)
    torch.set_num_threads(1)  # steps this small are slower on two threads
    choices = itertools.product(arguments.epochs, arguments.rate, arguments.step_rate)
    recipes = [Recipe(*choice) for choice in choices]
    with tempfile.TemporaryDirectory() as folder:
        work = arguments.work or Path(folder)
        data = draw_data(work)
        print(f"{'network':14}{'':10}{'epochs':>7}{'rate':>6}{'steps':>7}{'s':>5}", end="")
        print(f"{'top-1 of 500':>14}{f'of {MORE_COUNT}':>9}{'agrees':>8}", flush=True)
        for name in arguments.net:
            reference = prepare_reference(work / name, name)
            more = run_model(reference.model, data.more_images)
            print_row(name, "FP32", None, (reference.logits, more), reference, data, 0.0)
            for backend in arguments.backend:
                train_all(name, backend, recipes, reference, data)


def train_all(
    name: str, backend: str, recipes: Sequence[Recipe], reference: Reference, data: Data
) -> None:
    """Print the scores of a network: ranges alone, then each recipe, and it without rounding."""
    module = start(reference, backend)
    score_file(name, backend, None, module, reference, data, 0.0)
    state = {key: value.clone() for key, value in module.graph.state_dict().items()}
    for recipe, is_float in itertools.product(recipes, (False, True)):
        if is_float and backend != BACKENDS[0]:
            continue  # without rounding the schemes do not differ
        module.graph.load_state_dict(state)
        module.graph.float_mode(is_float)
        seconds = train(module, name, data, recipe)
        if is_float:
            logits = [run_module(module, part) for part in (reference.images, data.more_images)]
            print_row(name, "float", recipe, (logits[0], logits[1]), reference, data, seconds)
        else:
            score_file(name, backend, recipe, module, reference, data, seconds)


def start(reference: Reference, backend: str) -> QuantizedModule:
    """Return the module of a network, with the ranges of its calibration images."""
    module = prepare(reference.model, backend=backend)
    with np.load(reference.model.with_name("calibration.npz")) as file:
        module.observe(torch.from_numpy(file[INPUT]))
    module.fix_ranges()
    return module


def train(module: QuantizedModule, name: str, data: Data, recipe: Recipe) -> float:
    """Train a module with labels, as `small_nets` does; return the seconds that it took."""
    started, random, training = time.perf_counter(), np.random.default_rng(0), SMALL[name]
    steps = round(recipe.epochs * training.epochs * (len(data.images) // BATCH))
    groups = module.parameter_groups(recipe.rate * training.rate, step_lr=recipe.step_rate)
    optimizer = torch.optim.AdamW(groups, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 0.5 + 0.5 * math.cos(math.pi * step / steps)
    )
    for chosen in itertools.islice(batches(len(data.images), random), steps):
        images = torch.from_numpy(small_nets.augment(data.images[chosen], random))
        classes = torch.from_numpy(data.labels[chosen])
        loss = functional.cross_entropy(module(images), classes, label_smoothing=SMOOTHING)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    return time.perf_counter() - started


def batches(count: int, random: np.random.Generator):
    """Yield the numbers of images in batches, all of them in another order every epoch."""
    while True:
        yield from random.permutation(count)[: count // BATCH * BATCH].reshape(-1, BATCH)


def score_file(
    name: str,
    backend: str,
    recipe: Recipe | None,
    module: QuantizedModule,
    reference: Reference,
    data: Data,
    seconds: float,
) -> None:
    """Print the scores of the file that a module becomes."""
    with tempfile.TemporaryDirectory() as folder:
        run = finish(module, Path(folder) / "run")
        path = run / f"engines/{backend}-int8/model.onnx"
        logits = [run_model(path, part) for part in (reference.images, data.more_images)]
    print_row(name, backend, recipe, (logits[0], logits[1]), reference, data, seconds)


def print_row(
    name: str,
    kind: str,
    recipe: Recipe | None,
    logits: tuple[Array, Array],
    reference: Reference,
    data: Data,
    seconds: float,
) -> None:
    """Print the accuracy on both sets of images, and the agreement with FP32 on the first."""
    right = [
        100 * float((scores.argmax(1) == labels).mean())
        for scores, labels in zip(logits, (reference.labels, data.more_labels), strict=True)
    ]
    agrees = 100 * float((logits[0].argmax(1) == reference.logits.argmax(1)).mean())
    below = 100 * float((reference.logits.argmax(1) == reference.labels).mean()) - right[0]
    trained = (
        f"{recipe.epochs:7.2f}{recipe.rate:6.2f}{recipe.step_rate:7.0e}{seconds:5.0f}"
        if recipe
        else " " * 25
    )
    verdict = "" if recipe is None or kind == "float" else f"  {'ok' if below <= AIM else 'MISSED'}"
    print(
        f"{name:14}{kind:10}{trained}{right[0]:14.1f}{right[1]:9.2f}{agrees:8.1f}{verdict}",
        flush=True,
    )


@torch.no_grad()
def run_module(module: QuantizedModule, images: Array) -> Array:
    """Return the logits that a module computes itself."""
    parts = [
        module(torch.from_numpy(images[at : at + CHUNK])) for at in range(0, len(images), CHUNK)
    ]
    return torch.cat(parts).numpy().astype(np.float64)


def draw_data(work: Path) -> Data:
    """Draw the images, or read those that were drawn before."""
    work.mkdir(parents=True, exist_ok=True)
    file = work / "training.npz"
    if not file.exists():
        images, labels = small_nets.draw_images(generator.TRAINING_SEED, IMAGE_COUNT)
        more_images, more_labels = small_nets.draw_images(MORE_SEED, MORE_COUNT)
        np.savez(file, a=images, b=labels, c=more_images, d=more_labels)
    with np.load(file) as stored:
        return Data(stored["a"], stored["b"], stored["c"], stored["d"])


if __name__ == "__main__":
    main(sys.argv[1:])
