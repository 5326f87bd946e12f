"""Train the network of `qconvert demo`, export it, score it, and write down how that was done.

    pip install -e ".[cpu,torch]"
    python examples/demo_network/train.py

Took 17 minutes of a processor core. The images start small, where a step costs a quarter, and
are as large as the network's input at the end.
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
class Took:
    """How long it took, in seconds by the clock and of the processor, and on how many threads."""

    clock: float
    processor: float
    threads: int


def main() -> None:
    """Train, export, score, and write the model with the text beside it."""
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("--threads", type=int, default=2, help="cores to use (default: 2)")
    asked.add_argument("-o", "--output", type=Path, default=PLACE / "network.onnx")
    given = asked.parse_args()
    keep_memory()
    torch.set_num_threads(given.threads)
    torch.manual_seed(generator.TRAINING_SEED)
    torch.use_deterministic_algorithms(True)
    started = time.perf_counter()
    pixels, labels = images(IMAGES)
    print(f"{IMAGES} images drawn, {time.perf_counter() - started:.0f} s", flush=True)
    network = train(pixels, labels)
    took = Took(time.perf_counter() - started, time.process_time(), given.threads)
    with tempfile.TemporaryDirectory() as place:
        score = export(network, given.output, Path(place))
    text = record(given.output, score, took)
    given.output.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


def keep_memory() -> None:
    """Let glibc keep freed memory: a third of the time went into getting the same pages again."""
    if platform.libc_ver()[0] == "glibc":
        m_trim_threshold, m_mmap_max = -1, -4
        libc = ctypes.CDLL(None)
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, 2**31 - 1)


def images(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the training images as bytes, seen through JPEG as the network will see them."""
    pixels = np.empty((count, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    labels = np.empty(count, np.int64)
    for number in range(count):
        image = draw_image(generator.TRAINING_SEED, number)
        pixels[number], labels[number] = image.decode(), image.label
    return pixels, labels


def train(pixels: np.ndarray, labels: np.ndarray) -> torch.nn.Module:
    """Return the trained network; the last images are only looked at, to print how it goes."""
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
                group["lr"] = RATE * pace(step / total)
            scores = network(ready(turned(pixels[chosen], random), side))
            wanted = torch.from_numpy(labels[chosen])
            loss = functional.cross_entropy(scores, wanted, label_smoothing=SMOOTHING)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            step += 1
        right = accuracy(network, pixels[learned:], labels[learned:], side)
        took = time.perf_counter() - started
        print(f"{side} px, step {step} of {total}: {right:.1%}, {took:.0f} s", flush=True)
    return network.eval()


def pace(done: float) -> float:
    """Return the share of the full rate: up at first, then down along a cosine."""
    if done < WARM_UP:
        return done / WARM_UP
    return 0.5 + 0.5 * math.cos(math.pi * (done - WARM_UP) / (1 - WARM_UP))


def turned(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Return each image in one of the eight ways a square can lie."""
    turns, flips = random.integers(4, size=len(images)), random.integers(2, size=len(images))
    ways = zip(images, turns, flips, strict=True)
    return np.stack([np.rot90(image, turn)[:: 1 - 2 * flip] for image, turn, flip in ways])


def ready(images: np.ndarray, side: int) -> torch.Tensor:
    """Return images as the network takes them, from -1 to 1."""
    planes = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)
    values = planes.float() / 127.5 - 1
    if side != IMAGE_SIZE:
        values = functional.interpolate(values, (side, side), mode="bilinear", antialias=True)
    return values.contiguous(memory_format=torch.channels_last)


@torch.inference_mode()
def accuracy(network: torch.nn.Module, pixels: np.ndarray, labels: np.ndarray, side: int) -> float:
    """Return the share of right answers."""
    network.eval()
    found = [network(ready(part, side)).argmax(1) for part in np.array_split(pixels, 10)]
    return float((torch.cat(found).numpy() == labels).mean())


def export(network: torch.nn.Module, model: Path, place: Path) -> dict[str, float]:
    """Write the ONNX file as a user would, and return its scores on the evaluation images."""
    weights, images = place / "weights.pt", place / "evaluation"
    torch.save(network.state_dict(), weights)
    generator.write_images(images, generator.EVALUATION_SEED, generator.EVALUATION_COUNT)
    shape = f"image:1x3x{IMAGE_SIZE}x{IMAGE_SIZE}"
    look = ("--preprocess", "inception", "--resize", f"{IMAGE_SIZE}x{IMAGE_SIZE}")
    qconvert(
        "export", "net:inspector", "--weights", weights, "--input", shape,
        "--images", images, *look, "-o", model.absolute(),
    )  # fmt: skip
    told = json.loads(qconvert("evaluate", model.absolute(), "--eval", images, "--json"))
    return told["variants"][0]["accuracy"]


def qconvert(*args: object) -> str:
    """Run a command beside `net.py` and return what it printed."""
    command = [sys.executable, "-m", "qconvert", *map(str, args)]
    return subprocess.run(command, cwd=HERE, check=True, stdout=subprocess.PIPE, text=True).stdout


def record(model: Path, score: dict[str, float], took: Took) -> str:
    """Return the text that says where the model comes from."""
    packages = ("torch", "numpy", "pillow", "onnx", "onnxruntime", "qconvert")
    used = ", ".join(f"{name} {version(name)}" for name in packages)
    phases = ", ".join(f"{epochs} epochs at {side} px" for side, epochs in PHASES)
    size = sum(each.numel() for each in inspector().parameters())
    lines = [
        "# The demo's network",
        "Written by `examples/demo_network/train.py` when it trained the file beside it.",
        f"- file: `{model.name}`, {model.stat().st_size / 1e6:.2f} MB, "
        f"sha256 `{file_sha256(model)}`",
        f"- network: MobileNetV2 of {size:,} parameters, {IMAGE_SIZE} x {IMAGE_SIZE} RGB, "
        "x / 127.5 - 1",
        f"- classes: {', '.join(CLASSES)}",
        f"- command: `python examples/demo_network/train.py --threads {took.threads}`",
        f"- images: {IMAGES - HELD_OUT} of seed {generator.TRAINING_SEED}, "
        "drawn by `qconvert/demo`; "
        f"{HELD_OUT} more of it were watched and nothing was chosen by them",
        f"- training: {phases}; AdamW, rate {RATE}, cosine, batch {BATCH}, images turned and "
        f"flipped, label smoothing {SMOOTHING}; the last step is kept",
        f"- took: {took.clock / 60:.0f} minutes, {took.processor / 60:.0f} of a processor core",
        f"- with: Python {platform.python_version()}, {used}",
        f"- scored on {score['n']} images of seed {generator.EVALUATION_SEED}, "
        "by `qconvert evaluate`: "
        f"top-1 {score['top1']:.2f} %, precision {score['precision']:.2f} %, "
        f"recall {score['recall']:.2f} %, F1 {score['f1']:.2f} %",
    ]
    return "\n".join([lines[0], "", lines[1], "", *lines[2:]]) + "\n"


if __name__ == "__main__":
    main()
