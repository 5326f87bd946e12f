"""Draw how the demo's network learns at 4-bit weights, by the learning rate.

`python docs/training_figure.py` trains it once at every rate, a few minutes in all.
"""

import sys
from pathlib import Path

import matplotlib as mpl
import torch
from matplotlib.figure import Figure
from pictures import BLUE, FIGURES, GRAY, GREEN, ORANGE, RED, STYLE
from torch import Tensor
from torch.nn import functional

from qconvert.demo import generator
from qconvert.demo.demo_files import NETWORK
from qconvert.train import QuantizedModule, prepare

RATES = {1e-4: BLUE, 3e-4: GREEN, 1e-3: ORANGE, 3e-3: RED}
IMAGES, OTHERS, EPOCHS, BATCH, EVERY = 1024, 500, 3, 32, 8


def read(seed: int, count: int) -> tuple[Tensor, Tensor]:
    """Return drawn images as the network reads them, and their classes."""
    drawn = [generator.draw_image(seed, number) for number in range(count)]
    pixels = torch.stack([torch.tensor(image.decode()) for image in drawn])
    return pixels.permute(0, 3, 1, 2) / 127.5 - 1, torch.tensor([image.label for image in drawn])


def score(module: QuantizedModule, images: Tensor, labels: Tensor) -> float:
    """Return the percentage of the images that are recognized."""
    with torch.no_grad():
        answers = torch.cat([module(part).argmax(1) for part in images.split(100)])
    return 100 * float((answers == labels).float().mean())


def train(
    rate: float, images: Tensor, labels: Tensor, others: tuple[Tensor, Tensor]
) -> list[float]:
    """Return the top-1 of the network with 4-bit weights, before the training and during it."""
    torch.manual_seed(0)
    module = prepare(NETWORK, backend="cpu", settings={"quantize.weight-bits": 4})
    module.observe(images[:128])
    module.fix_ranges()
    optimizer = torch.optim.AdamW(module.parameter_groups(lr=rate))
    steps = EPOCHS * IMAGES // BATCH
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    scores = [score(module, *others)]
    for step in range(steps):
        chosen = torch.randint(len(images), (BATCH,))
        loss = functional.cross_entropy(
            module(images[chosen]), labels[chosen], label_smoothing=0.05
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % EVERY == 0:
            scores.append(score(module, *others))
            print(f"rate {rate}, step {step + 1}: top-1 {scores[-1]:.1f} %", flush=True)
    return scores


def draw() -> Figure:
    """Draw top-1 by step, with a line for each learning rate."""
    images, others = read(generator.TRAINING_SEED, IMAGES), read(generator.EVALUATION_SEED, OTHERS)
    floats = prepare(NETWORK, backend="cpu")
    figure = Figure(figsize=(7, 3.4))
    axes = figure.subplots()
    floats.observe(images[0][:1])  # nothing is rounded before the ranges are fixed
    axes.axhline(score(floats, *others), color=GRAY, linestyle="--", label="FP32")
    for rate, colour in RATES.items():
        scores = train(rate, *images, others)
        steps = range(0, EVERY * len(scores), EVERY)
        axes.plot(steps, scores, color=colour, label=f"learning rate {rate:g}")
    axes.set_ylim(bottom=55.0)
    axes.set(xlabel=f"steps of {BATCH} images", ylabel=f"top-1 of {OTHERS} images, %")
    axes.legend()
    return figure


if __name__ == "__main__":
    with mpl.rc_context(STYLE):
        made = draw()
        made.tight_layout()
        made.savefig(FIGURES / "training.svg", metadata={"Date": None})
    print(f"{Path('docs/pictures/training.svg')} written")
    sys.exit(0)
