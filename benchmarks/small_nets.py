"""Three small networks that are hard to quantize, trained on drawn images in a few minutes.

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

SIDE, BATCH, IMAGE_COUNT = 64, 32, 3000
# The classes that are still visible at this size.
KINDS = ("crack", "pit", "stain", "rust", "spatter", "burr")
DECAY, SMOOTHING, WARM_UP = 0.03, 0.05, 0.08
WIDTH, DEPTH, HEADS, PATCH = 96, 4, 3, 8


def mobilenet() -> nn.Module:
    """Return a MobileNetV3: hard-swish, squeeze-and-excitation."""
    return _without_last_stride(nets.timm_net("mobilenetv3_small_050", num_classes=len(KINDS)))


def efficientnet() -> nn.Module:
    """Return an EfficientNet made small: SiLU, squeeze-and-excitation."""
    return _without_last_stride(nets.timm_net("tinynet_e", num_classes=len(KINDS)))


def transformer() -> nn.Module:
    """Return a vision transformer: LayerNorm, GELU, attention between patches."""
    size = {"embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS, "patch_size": PATCH}
    name = "vit_tiny_patch16_224"
    module = nets.timm_net(name, num_classes=len(KINDS), img_size=SIDE, **size)
    # A convolutional patch embedding learns from few images; a linear one does not.
    module.patch_embed.proj = nn.Sequential(
        *_conv_block(3, 24, 3, 2), *_conv_block(24, 48, 3, 2), nn.Conv2d(48, WIDTH, 2, 2)
    )
    return module


def _without_last_stride(module: nn.Module) -> nn.Module:
    """Remove the stride of the last strided convolution, for small images."""
    strided = [layer for layer in module.modules() if getattr(layer, "stride", None) == (2, 2)]
    strided[-1].stride = (1, 1)
    return module


def _conv_block(inputs: int, outputs: int, kernel: int, stride: int) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return [conv, nn.BatchNorm2d(outputs), nn.GELU()]


@dataclass(frozen=True)
class Training:
    """How a network is trained."""

    make: Callable[[], nn.Module]
    epochs: int
    rate: float


SMALL: Mapping[str, Training] = {
    "mobilenet": Training(mobilenet, epochs=14, rate=3e-3),
    "efficientnet": Training(efficientnet, epochs=14, rate=3e-3),
    "transformer": Training(transformer, epochs=12, rate=1.5e-3),
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
    """Return the class of the image with this number."""
    return CLASSES[number % len(CLASSES)]


def train_to(weights: Path, name: str) -> None:
    """Train a network on images used for nothing else, and write its weights."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # steps this small are slower on two threads, above all on busy cores
    try:
        network = train(
            SMALL[name], *draw_images(generator.TRAINING_SEED, IMAGE_COUNT), generator.TRAINING_SEED
        )
    finally:
        torch.set_num_threads(threads)
    torch.save(network.state_dict(), weights)


def train(
    training: Training, pixels: NDArray[np.float32], labels: NDArray[np.int64], seed: int
) -> nn.Module:
    """Return the trained network, reproducible for a seed on the same machine."""
    torch.manual_seed(seed)
    network = training.make().to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=training.rate, weight_decay=DECAY)
    random = np.random.default_rng(seed)
    steps = len(pixels) // BATCH
    for epoch in range(training.epochs):
        started, right = time.perf_counter(), 0
        order = random.permutation(len(pixels))[: steps * BATCH].reshape(steps, BATCH)
        for step, chosen in enumerate(order):
            progress = (epoch + step / steps) / training.epochs
            for group in optimizer.param_groups:
                group["lr"] = training.rate * rate_share(progress)
            images = torch.from_numpy(augment(pixels[chosen], random))
            scores = network(images.contiguous(memory_format=torch.channels_last))
            classes = torch.from_numpy(labels[chosen])
            loss = functional.cross_entropy(scores, classes, label_smoothing=SMOOTHING)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            right += int((scores.argmax(1) == classes).sum())
        share, seconds = right / order.size, time.perf_counter() - started
        print(f"  epoch {epoch + 1} of {training.epochs}: {share:.1%}, {seconds:.0f} s", flush=True)
    return network.eval()


def rate_share(progress: float) -> float:
    """Return the share of the full learning rate: a linear warm-up, then a cosine decay."""
    if progress < WARM_UP:
        return progress / WARM_UP
    return 0.5 + 0.5 * math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP))


def augment(images: NDArray[np.float32], random: np.random.Generator) -> NDArray[np.float32]:
    """Return each image in one of its eight rotations and reflections."""
    turns, flips = random.integers(4, size=len(images)), random.integers(2, size=len(images))
    ways = zip(images, turns, flips, strict=True)
    augmented = [np.rot90(image, turn, (1, 2))[:, :, :: 1 - 2 * flip] for image, turn, flip in ways]
    return np.stack(augmented)
