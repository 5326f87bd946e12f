"""Train the detector or the segmenter of `qconvert demo`, export it, and record its origin.

pip install -e ".[cpu,torch]"
python examples/demo_scenes/train.py detect
python examples/demo_scenes/train.py segment
"""

import argparse
import copy
import ctypes
import math
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from losses import detection_loss, segmentation_loss
from nets import detector, segmenter
from score import score
from torch import nn

from qconvert.core.cache import file_sha256
from qconvert.demo import generator
from qconvert.demo.scenes import CLASSES, MAX_DEFECTS, SCENE_SIZE, Scene, draw_scene, write_images

HERE = Path(__file__).resolve().parent
PLACE = HERE.parent.parent / "qconvert" / "demo"
IMAGES, HELD_OUT = 10_400, 400
BATCH, RATE, DECAY, WARM_UP = 16, 2e-3, 0.02, 0.05
AVERAGING = 0.998  # of the weights, over the last 500 steps


@dataclass(frozen=True)
class Job:
    """A network, its loss, and how a scene becomes the array that the loss compares with."""

    file: str
    rounds: tuple[int, ...]  # epochs
    factory: Callable[[], nn.Module]
    loss: Callable[[nn.Module, torch.Tensor, torch.Tensor], torch.Tensor]
    truth: Callable[[Scene], np.ndarray]
    turned: Callable[[np.ndarray, int, int], np.ndarray]


def true_boxes(scene: Scene) -> np.ndarray:
    """Return rows of left, top, right, bottom, class; the class of rows without a box is -1."""
    rows = np.zeros((MAX_DEFECTS, 5), np.float32)
    rows[:, 4] = -1
    for row, defect in zip(rows, scene.defects, strict=False):
        row[:4], row[4] = defect.box, defect.label
    return rows


def turned_boxes(rows: np.ndarray, turns: int, flip: int) -> np.ndarray:
    """Return boxes as `turned_pixels` moves them."""
    boxes, classes = rows[:, :4], rows[:, 4:]
    for _ in range(turns):
        left, top, right, bottom = boxes.T
        boxes = np.stack((top, SCENE_SIZE - right, bottom, SCENE_SIZE - left), 1)
    if flip:
        left, top, right, bottom = boxes.T
        boxes = np.stack((left, SCENE_SIZE - bottom, right, SCENE_SIZE - top), 1)
    return np.concatenate((boxes, classes), 1)


def turned_pixels(pixels: np.ndarray, turns: int, flip: int) -> np.ndarray:
    """Return an image in one of its eight rotations and reflections."""
    return np.rot90(pixels, turns)[:: 1 - 2 * flip]


JOBS = {
    "detect": Job("detector.onnx", (10,), detector, detection_loss, true_boxes, turned_boxes),
    "segment": Job(
        "segmenter.onnx", (7,), segmenter, segmentation_loss, Scene.class_map, turned_pixels
    ),
}


@dataclass(frozen=True)
class Duration:
    """The duration of the training in seconds, by the clock and of the processor; its threads."""

    clock: float
    processor: float
    threads: int


def main() -> None:
    """Train, export, score, and write the model with the text beside it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=JOBS)
    parser.add_argument("--threads", type=int, default=1, help="cores to use (default: 1)")
    parser.add_argument("-o", "--output", type=Path, help="default: where the demo has it")
    arguments = parser.parse_args()
    keep_memory()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(generator.TRAINING_SEED)
    torch.use_deterministic_algorithms(True)
    job = JOBS[arguments.task]
    model = arguments.output or PLACE / job.file
    started = time.perf_counter()
    pixels, truth = images(job, IMAGES)
    print(f"{IMAGES} images drawn, {time.perf_counter() - started:.0f} s", flush=True)
    network = train(job, pixels, truth)
    duration = Duration(time.perf_counter() - started, time.process_time(), arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        export(job, network, model, Path(folder))
    text = record(arguments.task, model, duration)
    model.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


def keep_memory() -> None:
    """Let glibc retain freed memory: a third of the time was spent on allocating pages again."""
    if platform.libc_ver()[0] == "glibc":
        m_trim_threshold, m_mmap_max = -1, -4
        libc = ctypes.CDLL(None)
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, 2**31 - 1)


def images(job: Job, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the training images as bytes, with JPEG artifacts as in later use, and the truth."""
    pixels = np.empty((count, SCENE_SIZE, SCENE_SIZE, 3), np.uint8)
    truth = []
    for number in range(count):
        scene = draw_scene(generator.TRAINING_SEED, number)
        pixels[number] = scene.decode()
        truth.append(job.truth(scene))
    return pixels, np.stack(truth)


def train(job: Job, pixels: np.ndarray, truth: np.ndarray) -> nn.Module:
    """Return the trained network; each round starts where the one before ended."""
    network = job.factory().to(memory_format=torch.channels_last)
    for index in range(len(job.rounds)):
        network = train_round(job, index, network, pixels, truth)
    return network.eval()


def train_round(
    job: Job, index: int, network: nn.Module, pixels: np.ndarray, truth: np.ndarray
) -> nn.Module:
    """Return the average of the last weights; the held-out images only print their loss."""
    average = copy.deepcopy(network)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=DECAY)
    random = np.random.default_rng((generator.TRAINING_SEED, index))
    learned, epochs, rate = len(pixels) - HELD_OUT, job.rounds[index], RATE / (index + 1)
    total, step = epochs * (learned // BATCH), 0
    for epoch in range(epochs):
        started, losses = time.perf_counter(), []
        network.train()
        order = random.permutation(learned)[: learned // BATCH * BATCH].reshape(-1, BATCH)
        for chosen in order:
            for group in optimizer.param_groups:
                group["lr"] = rate * rate_share(step / total)
            loss = job.loss(network, *augment(job, pixels[chosen], truth[chosen], random))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 10.0)
            optimizer.step()
            step += 1
            update_average(average, network, min(AVERAGING, step / (step + 10)))
            losses.append(loss.item())
        held_out = held_out_loss(job, average, pixels[learned:], truth[learned:])
        print(
            f"epoch {epoch + 1} of {epochs}: loss {np.mean(losses):.3f}, "
            f"held out {held_out:.3f}, {time.perf_counter() - started:.0f} s",
            flush=True,
        )
    return average


def rate_share(progress: float) -> float:
    """Return the share of the full learning rate: a linear warm-up, then a cosine decay."""
    if progress < WARM_UP:
        return progress / WARM_UP
    return 0.5 + 0.5 * math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP))


@torch.no_grad()
def update_average(average: nn.Module, network: nn.Module, share: float) -> None:
    """Move averaged weights towards those of the network; statistics are averaged alike."""
    new = network.state_dict()
    for name, value in average.state_dict().items():
        if value.is_floating_point():
            value.lerp_(new[name], 1 - share)


def augment(
    job: Job, pixels: np.ndarray, truth: np.ndarray, random: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a batch with each image in one of its eight rotations and reflections."""
    turns, flips = random.integers(4, size=len(pixels)), random.integers(2, size=len(pixels))
    ways = list(zip(turns, flips, strict=True))
    moved = np.stack([turned_pixels(image, *way) for image, way in zip(pixels, ways, strict=True)])
    targets = np.stack([job.turned(item, *way) for item, way in zip(truth, ways, strict=True)])
    return ready(moved), as_target(targets)


def ready(images: np.ndarray) -> torch.Tensor:
    """Return images as network input, from -1 to 1."""
    planes = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)
    return (planes.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def as_target(truth: np.ndarray) -> torch.Tensor:
    """Return boxes as numbers and classes of pixels as integers."""
    values = torch.from_numpy(np.ascontiguousarray(truth))
    return values if values.is_floating_point() else values.long()


@torch.inference_mode()
def held_out_loss(job: Job, network: nn.Module, pixels: np.ndarray, truth: np.ndarray) -> float:
    """Return the mean loss of images that the network does not learn from."""
    network.eval()
    parts = zip(np.array_split(pixels, 10), np.array_split(truth, 10), strict=True)
    losses = [job.loss(network, ready(part), as_target(rows)).item() for part, rows in parts]
    return float(np.mean(losses))


def export(job: Job, network: nn.Module, model: Path, folder: Path) -> None:
    """Write the ONNX file as a user would."""
    weights, images = folder / "weights.pt", folder / "calibration"
    torch.save(network.state_dict(), weights)
    write_images(images, generator.CALIBRATION_SEED, 32, "segment")
    shape = f"image:1x3x{SCENE_SIZE}x{SCENE_SIZE}"
    command = [
        sys.executable, "-m", "qconvert", "export", f"nets:{job.factory.__name__}",
        "--weights", weights, "--input", shape, "--images", images / "images",
        "--preprocess", "inception", "--resize", f"{SCENE_SIZE}x{SCENE_SIZE}",
        "-o", model.absolute(),
    ]  # fmt: skip
    subprocess.run(list(map(str, command)), cwd=HERE, check=True)


def record(task: str, model: Path, duration: Duration) -> str:
    """Return a text that records the origin of the model."""
    packages = ("torch", "numpy", "pillow", "onnx", "onnxruntime", "qconvert")
    used = ", ".join(f"{name} {version(name)}" for name in packages)
    job = JOBS[task]
    rounds = ", then ".join(
        f"{epochs} epochs at rate {RATE / (index + 1)}" for index, epochs in enumerate(job.rounds)
    )
    network = job.factory()
    size = sum(parameter.numel() for parameter in network.parameters())
    classes = CLASSES if task == "detect" else ("background", *CLASSES)
    name = type(network).__name__.lower()
    lines = [
        f"- file: `{model.name}`, {model.stat().st_size / 1e6:.2f} MB, "
        f"sha256 `{file_sha256(model)}`",
        f"- network: `{name}` of `examples/demo_scenes/nets.py`, {size:,} parameters, "
        f"{SCENE_SIZE} x {SCENE_SIZE} RGB, x / 127.5 - 1",
        f"- classes: {', '.join(classes)}",
        f"- command: `python examples/demo_scenes/train.py {task} --threads {duration.threads}`",
        f"- images: {IMAGES - HELD_OUT} of seed {generator.TRAINING_SEED}, "
        f"drawn by `qconvert/demo`; {HELD_OUT} more of it were watched and nothing was chosen "
        "by them",
        f"- training: {rounds}; AdamW, cosine, batch {BATCH}, images turned and flipped; the "
        f"average of the last weights ({AVERAGING}) is kept",
        f"- took: {duration.clock / 60:.0f} minutes, "
        f"{duration.processor / 60:.0f} of a processor core",
        f"- with: Python {platform.python_version()}, {used}",
        f"- scored on {generator.EVALUATION_COUNT} images of seed {generator.EVALUATION_SEED}: "
        + score(model, task, generator.EVALUATION_COUNT),
    ]
    title = f"# The demo's {name}"
    origin = "Written by `examples/demo_scenes/train.py` when it trained the file beside it."
    return "\n".join([title, "", origin, "", *lines]) + "\n"


if __name__ == "__main__":
    main()
