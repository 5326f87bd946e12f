"""The demo's network: a small MobileNetV2, at first without anything learned."""

import torch
from torch import nn

from qconvert.demo.generator import CLASSES

# Expansion, channels, blocks, stride of the first block.
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 3, 2),
    (6, 96, 3, 2),
)
STEM, HEAD = 32, 512


def convolved(read: int, made: int, kernel: int = 1, stride: int = 1, groups: int = 1):
    """Return a convolution with its batch normalization."""
    return [
        nn.Conv2d(read, made, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(made),
    ]


class InvertedResidual(nn.Module):
    """Widen, filter each channel by itself, narrow; added to what came in where that fits."""

    def __init__(self, read: int, made: int, expansion: int, stride: int) -> None:
        super().__init__()
        wide = read * expansion
        widen = [*convolved(read, wide), nn.ReLU6()] if expansion > 1 else []
        self.layers = nn.Sequential(
            *widen,
            *convolved(wide, wide, 3, stride, groups=wide),
            nn.ReLU6(),
            *convolved(wide, made),
        )
        self.adds = stride == 1 and read == made

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return the features."""
        made = self.layers(image)
        return image + made if self.adds else made


class Inspector(nn.Module):
    """From a image of a surface to a score for each kind of defect."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        layers = [*convolved(3, STEM, 3, stride=2), nn.ReLU6()]
        read = STEM
        for expansion, made, blocks, stride in STAGES:
            for block in range(blocks):
                layers.append(InvertedResidual(read, made, expansion, stride if block == 0 else 1))
                read = made
        layers += [*convolved(read, HEAD), nn.ReLU6()]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(HEAD, classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return the scores."""
        return self.classifier(self.features(image).mean((2, 3)))


def inspector() -> Inspector:
    """Return the demo's network, as `qconvert export net:inspector` wants it."""
    return Inspector(len(CLASSES))
