"""Train the network of `qconvert demo`, export it, score it, and record its origin.

    pip install -e ".[cpu,torch]"
    python examples/demo_network/train.py

It takes 17 minutes on one processor core. Training starts on small images, where a step costs a
quarter, and ends on images of the network's input size.
"""

import argparse
import ctypes
import json
import math
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from net import inspector
from torch.nn import functional

from qconvert.core.cache import file_sha256
from qconvert.demo import generator
from qconvert.demo.generator import CLASSES, IMAGE_SIZE, draw_image

HERE = Path(__file__).resolve().parent
PLACE = HERE.parent.parent / "qconvert" / "demo"
IMAGES, HELD_OUT = 6400, 400
PHASES = ((64, 8), (96, 4), (128, 6))  # side of the images, epochs
BATCH, RATE, DECAY, SMOOTHING, WARM_UP = 32, 3e-3, 0.02, 0.05, 0.05


@dataclass(frozen=True)
class Duration:
    """The duration of the training in seconds, by the clock and of the processor; its threads."""

    clock: float
    processor: float
    threads: int


def main() -> None:
    """Train, export, score, and write the model with the text beside it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2, help="cores to use (default: 2)")
    parser.add_argument("-o", "--output", type=Path, default=PLACE / "network.onnx")
    arguments = parser.parse_args()
    keep_memory()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(generator.TRAINING_SEED)
    torch.use_deterministic_algorithms(True)
    started = time.perf_counter()
    pixels, labels = images(IMAGES)
    print(f"{IMAGES} images drawn, {time.perf_counter() - started:.0f} s", flush=True)
    network = train(pixels, labels)
    duration = Duration(time.perf_counter() - started, time.process_time(), arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        score = export(network, arguments.output, Path(folder))
    text = record(arguments.output, score, duration)
    arguments.output.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


def keep_memory() -> None:
    """Let glibc retain freed memory: a third of the time was spent on allocating pages again."""
    if platform.libc_ver()[0] == "glibc":
        m_trim_threshold, m_mmap_max = -1, -4
        libc = ctypes.CDLL(None)
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, 2**31 - 1)


def images(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the training images as bytes, with JPEG artifacts as in later use."""
    pixels = np.empty((count, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    labels = np.empty(count, np.int64)
    for number in range(count):
        image = draw_image(generator.TRAINING_SEED, number)
        pixels[number], labels[number] = image.decode(), image.label
    return pixels, labels


def train(pixels: np.ndarray, labels: np.ndarray) -> torch.nn.Module:
    """Return the trained network; the last images are held out and only print its accuracy."""
    network = inspector().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=DECAY)
    random = np.random.default_rng(generator.TRAINING_SEED)
    learned = len(pixels) - HELD_OUT
    sides = [side for side, epochs in PHASES for _ in range(epochs)]
    total, step = len(sides) * (learned // BATCH), 0
    for side in sides:
        started = time.perf_counter()
        network.train()
        order = random.permutation(learned)[: learned // BATCH * BATCH].reshape(-1, BATCH)
        for chosen in order:
            for group in optimizer.param_groups:
                group["lr"] = RATE * rate_share(step / total)
            scores = network(ready(augment(pixels[chosen], random), side))
            classes = torch.from_numpy(labels[chosen])
            loss = functional.cross_entropy(scores, classes, label_smoothing=SMOOTHING)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            step += 1
        right = accuracy(network, pixels[learned:], labels[learned:], side)
        seconds = time.perf_counter() - started
        print(f"{side} px, step {step} of {total}: {right:.1%}, {seconds:.0f} s", flush=True)
    return network.eval()


def rate_share(progress: float) -> float:
    """Return the share of the full learning rate: a linear warm-up, then a cosine decay."""
    if progress < WARM_UP:
        return progress / WARM_UP
    return 0.5 + 0.5 * math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP))


def augment(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Return each image in one of its eight rotations and reflections."""
    turns, flips = random.integers(4, size=len(images)), random.integers(2, size=len(images))
    ways = zip(images, turns, flips, strict=True)
    return np.stack([np.rot90(image, turn)[:: 1 - 2 * flip] for image, turn, flip in ways])


def ready(images: np.ndarray, side: int) -> torch.Tensor:
    """Return images as network input, from -1 to 1."""
    planes = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)
    values = planes.float() / 127.5 - 1
    if side != IMAGE_SIZE:
        values = functional.interpolate(values, (side, side), mode="bilinear", antialias=True)
    return values.contiguous(memory_format=torch.channels_last)


@torch.inference_mode()
def accuracy(network: torch.nn.Module, pixels: np.ndarray, labels: np.ndarray, side: int) -> float:
    """Return the share of correct predictions."""
    network.eval()
    predictions = [network(ready(part, side)).argmax(1) for part in np.array_split(pixels, 10)]
    return float((torch.cat(predictions).numpy() == labels).mean())


def export(network: torch.nn.Module, model: Path, folder: Path) -> dict[str, float]:
    """Write the ONNX file as a user would, and return its scores on the evaluation images."""
    weights, images = folder / "weights.pt", folder / "evaluation"
    torch.save(network.state_dict(), weights)
    generator.write_images(images, generator.EVALUATION_SEED, generator.EVALUATION_COUNT)
    shape = f"image:1x3x{IMAGE_SIZE}x{IMAGE_SIZE}"
    preprocess = ("--preprocess", "inception", "--resize", f"{IMAGE_SIZE}x{IMAGE_SIZE}")
    qconvert(
        "export", "net:inspector", "--weights", weights, "--input", shape,
        "--images", images, *preprocess, "-o", model.absolute(),
    )  # fmt: skip
    report = json.loads(qconvert("evaluate", model.absolute(), "--eval", images, "--json"))
    return report["variants"][0]["accuracy"]


def qconvert(*args: object) -> str:
    """Run a command beside `net.py` and return what it printed."""
    command = [sys.executable, "-m", "qconvert", *map(str, args)]
    return subprocess.run(command, cwd=HERE, check=True, stdout=subprocess.PIPE, text=True).stdout


def record(model: Path, score: dict[str, float], duration: Duration) -> str:
    """Return a text that records the origin of the model."""
    packages = ("torch", "numpy", "pillow", "onnx", "onnxruntime", "qconvert")
    used = ", ".join(f"{name} {version(name)}" for name in packages)
    phases = ", ".join(f"{epochs} epochs at {side} px" for side, epochs in PHASES)
    size = sum(parameter.numel() for parameter in inspector().parameters())
    lines = [
        "# The demo's network",
        "Written by `examples/demo_network/train.py` when it trained the file beside it.",
        f"- file: `{model.name}`, {model.stat().st_size / 1e6:.2f} MB, "
        f"sha256 `{file_sha256(model)}`",
        f"- network: MobileNetV2 of {size:,} parameters, {IMAGE_SIZE} x {IMAGE_SIZE} RGB, "
        "x / 127.5 - 1",
        f"- classes: {', '.join(CLASSES)}",
        f"- command: `python examples/demo_network/train.py --threads {duration.threads}`",
        f"- images: {IMAGES - HELD_OUT} of seed {generator.TRAINING_SEED}, "
        "drawn by `qconvert/demo`; "
        f"{HELD_OUT} more of it were watched and nothing was chosen by them",
        f"- training: {phases}; AdamW, rate {RATE}, cosine, batch {BATCH}, images turned and "
        f"flipped, label smoothing {SMOOTHING}; the last step is kept",
        f"- took: {duration.clock / 60:.0f} minutes, "
        f"{duration.processor / 60:.0f} of a processor core",
        f"- with: Python {platform.python_version()}, {used}",
        f"- scored on {score['n']} images of seed {generator.EVALUATION_SEED}, "
        "by `qconvert evaluate`: "
        f"top-1 {score['top1']:.2f} %, precision {score['precision']:.2f} %, "
        f"recall {score['recall']:.2f} %, F1 {score['f1']:.2f} %",
    ]
    return "\n".join([lines[0], "", lines[1], "", *lines[2:]]) + "\n"


if __name__ == "__main__":
    main()
