"""Three small networks that are hard to quantize, trained on drawn pictures in a few minutes each.

Their hard-swish, SiLU and GELU have a long tail below zero, squeeze-and-excitation multiplies whole
channels, and a LayerNorm lets a few large values decide the range of all others.
"""

import itertools
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from torch.nn import functional

from benchmarks import nets
from qconvert.demo import generator
from qconvert.demo.generator import CLASSES, draw_image

SIDE, BATCH, PICTURES = 64, 32, 3000
# What a small picture still shows.
KINDS = ("crack", "pit", "stain", "rust", "spatter", "burr")
DECAY, SMOOTHING, WARM_UP = 0.03, 0.05, 0.08
WIDTH, DEPTH, HEADS, PATCH = 96, 4, 3, 8


def mobilenet() -> nn.Module:
    """Return a MobileNetV3: hard-swish, squeeze-and-excitation."""
    return _finer(nets.timm_net("mobilenetv3_small_050", num_classes=len(KINDS)))


def efficientnet() -> nn.Module:
    """Return an EfficientNet made small: SiLU, squeeze-and-excitation."""
    return _finer(nets.timm_net("tinynet_e", num_classes=len(KINDS)))


def transformer() -> nn.Module:
    """Return a vision transformer: LayerNorm, GELU, attention between patches."""
    size = {"embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS, "patch_size": PATCH}
    name = "vit_tiny_patch16_224"
    module = nets.timm_net(name, num_classes=len(KINDS), img_size=SIDE, **size)
    # Patches seen through convolutions learn from few pictures what a plain product does not.
    module.patch_embed.proj = nn.Sequential(
        *_convolved(3, 24, 3, 2), *_convolved(24, 48, 3, 2), nn.Conv2d(48, WIDTH, 2, 2)
    )
    return module


def _finer(module: nn.Module) -> nn.Module:
    """Return a network for small pictures: the last of its convolutions with a stride has none."""
    halving = [each for each in module.modules() if getattr(each, "stride", None) == (2, 2)]
    halving[-1].stride = (1, 1)
    return module


def _convolved(read: int, made: int, kernel: int, stride: int) -> list[nn.Module]:
    wide = nn.Conv2d(read, made, kernel, stride, kernel // 2, bias=False)
    return [wide, nn.BatchNorm2d(made), nn.GELU()]


@dataclass(frozen=True)
class Schooling:
    """How a network is trained."""

    make: Callable[[], nn.Module]
    epochs: int
    rate: float


SMALL: Mapping[str, Schooling] = {
    "mobilenet": Schooling(mobilenet, epochs=14, rate=3e-3),
    "efficientnet": Schooling(efficientnet, epochs=14, rate=3e-3),
    "transformer": Schooling(transformer, epochs=12, rate=1.5e-3),
}


def draw_images(seed: int, count: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return drawn images as the networks read them, and their classes."""
    numbers = (number for number in itertools.count() if _kind(number) in KINDS)
    drawn = [draw_image(seed, number) for number in itertools.islice(numbers, count)]
    small = [
        Image.fromarray(image.decode()).resize((SIDE, SIDE), Image.Resampling.BOX)
        for image in drawn
    ]
    pixels = np.stack([np.asarray(image) for image in small]).transpose(0, 3, 1, 2)
    labels = np.array([KINDS.index(CLASSES[image.label]) for image in drawn], np.int64)
    return (pixels / np.float32(127.5) - 1).astype(np.float32), labels


def _kind(number: int) -> str:
    """Return the class of the picture of this number."""
    return CLASSES[number % len(CLASSES)]


def train_to(weights: Path, name: str) -> None:
    """Train a network on pictures that serve nothing else, and write its weights."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # steps this small take longer on two, and far longer on busy cores
    try:
        network = trained(
            SMALL[name], *draw_images(generator.TRAINING_SEED, PICTURES), generator.TRAINING_SEED
        )
    finally:
        torch.set_num_threads(threads)
    torch.save(network.state_dict(), weights)


def trained(
    schooling: Schooling, pixels: NDArray[np.float32], labels: NDArray[np.int64], seed: int
) -> nn.Module:
    """Return the trained network; it is the same again for the same seed on the same machine."""
    torch.manual_seed(seed)
    network = schooling.make().to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=schooling.rate, weight_decay=DECAY)
    random = np.random.default_rng(seed)
    steps = len(pixels) // BATCH
    for epoch in range(schooling.epochs):
        started, right = time.perf_counter(), 0
        order = random.permutation(len(pixels))[: steps * BATCH].reshape(steps, BATCH)
        for step, chosen in enumerate(order):
            done = (epoch + step / steps) / schooling.epochs
            for group in optimizer.param_groups:
                group["lr"] = schooling.rate * pace(done)
            images = torch.from_numpy(turned(pixels[chosen], random))
            scores = network(images.contiguous(memory_format=torch.channels_last))
            wanted = torch.from_numpy(labels[chosen])
            loss = functional.cross_entropy(scores, wanted, label_smoothing=SMOOTHING)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            right += int((scores.argmax(1) == wanted).sum())
        share, took = right / order.size, time.perf_counter() - started
        print(f"  epoch {epoch + 1} of {schooling.epochs}: {share:.1%}, {took:.0f} s", flush=True)
    return network.eval()


def pace(done: float) -> float:
    """Return the share of the full rate: up at first, then down along a cosine."""
    if done < WARM_UP:
        return done / WARM_UP
    return 0.5 + 0.5 * math.cos(math.pi * (done - WARM_UP) / (1 - WARM_UP))


def turned(images: NDArray[np.float32], random: np.random.Generator) -> NDArray[np.float32]:
    """Return each picture in one of the eight ways a square can lie."""
    turns, flips = random.integers(4, size=len(images)), random.integers(2, size=len(images))
    ways = zip(images, turns, flips, strict=True)
    found = [np.rot90(each, turn, (1, 2))[:, :, :: 1 - 2 * flip] for each, turn, flip in ways]
    return np.stack(found)
