"""The demo's network: a small MobileNetV2, untrained."""

import torch
from torch import nn

from qconvert.demo.generator import CLASSES

# Expansion, channels, blocks, stride of the first block.
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 3, 2), (6, 96, 3, 2))
STEM, HEAD = 32, 512


def convolved(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1):
    """Return a convolution with its batch normalization."""
    return [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]


class InvertedResidual(nn.Module):
    """Expand, filter depthwise, project; with a residual connection where the shapes match."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int) -> None:
        super().__init__()
        wide = inputs * expansion
        widen = [*convolved(inputs, wide), nn.ReLU6()] if expansion > 1 else []
        self.layers = nn.Sequential(
            *widen,
            *convolved(wide, wide, 3, stride, groups=wide),
            nn.ReLU6(),
            *convolved(wide, outputs),
        )
        self.adds = stride == 1 and inputs == outputs

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return the features."""
        outputs = self.layers(image)
        return image + outputs if self.adds else outputs


class Inspector(nn.Module):
    """Map an image of a surface to a score for each kind of defect."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        layers = [*convolved(3, STEM, 3, stride=2), nn.ReLU6()]
        inputs = STEM
        for expansion, outputs, blocks, stride in STAGES:
            for block in range(blocks):
                layers.append(
                    InvertedResidual(inputs, outputs, expansion, stride if block == 0 else 1)
                )
                inputs = outputs
        layers += [*convolved(inputs, HEAD), nn.ReLU6()]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(HEAD, classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return the scores."""
        return self.classifier(self.features(image).mean((2, 3)))


def inspector() -> Inspector:
    """Return the demo's network, for `qconvert export net:inspector`."""
    return Inspector(len(CLASSES))
