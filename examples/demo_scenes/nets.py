"""The networks of `qconvert demo --task detect` and `--task segment`, untrained."""

import torch
from torch import nn
from torch.nn import functional

from qconvert.demo.scenes import CLASSES, SCENE_SIZE

STRIDE = 8
WIDTHS = (16, 32, 64, 96, 96)  # channels at strides 2, 4, 8, 16 and 32
HEAD = 64
GRID = SCENE_SIZE // STRIDE


class ConvUnit(nn.Sequential):
    """A convolution with its batch normalization and ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
        )


class Residual(nn.Module):
    """Two 3 x 3 convolutions through half the channels, added to their input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(ConvUnit(width, width // 2), ConvUnit(width // 2, width))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return the features."""
        return features + self.layers(features)


class Backbone(nn.Module):
    """Features at strides 2, 4, 8, 16 and 32."""

    def __init__(self) -> None:
        super().__init__()
        stages, inputs = [], 3
        for width, depth in zip(WIDTHS, (0, 1, 2, 2, 0), strict=True):
            blocks = [Residual(width) for _ in range(depth)]
            stages.append(nn.Sequential(ConvUnit(inputs, width, stride=2), *blocks))
            inputs = width
        self.stages = nn.ModuleList(stages)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Return the features of each stride."""
        features = []
        for stage in self.stages:
            image = stage(image)
            features.append(image)
        return features


class TopDown(nn.Module):
    """Add features of a coarser stride, enlarged, to those of the stride below."""

    def __init__(self, coarse: int, fine: int, width: int) -> None:
        super().__init__()
        self.above, self.beside = ConvUnit(coarse, width, 1), ConvUnit(fine, width, 1)
        self.smooth = ConvUnit(width, width)

    def forward(self, coarse: torch.Tensor, fine: torch.Tensor) -> torch.Tensor:
        """Return features of the finer stride."""
        enlarged = functional.interpolate(
            self.above(coarse), scale_factor=2.0, mode="bilinear", align_corners=False
        )
        return self.smooth(enlarged + self.beside(fine))


class Detector(nn.Module):
    """Map an image to a box and a probability of each class, at each point of a grid.

    As FCOS, it predicts the distances from the point to the four sides of a box, in strides.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.from_32 = TopDown(WIDTHS[4], WIDTHS[3], HEAD)
        self.from_16 = TopDown(HEAD, WIDTHS[2], HEAD)
        self.class_tower, self.box_tower = ConvUnit(HEAD, HEAD), ConvUnit(HEAD, HEAD)
        self.logits, self.sides = nn.Conv2d(HEAD, classes, 1), nn.Conv2d(HEAD, 4, 1)
        nn.init.constant_(self.logits.bias, -4.0)  # few points have a defect
        nn.init.constant_(self.sides.bias, 2.0)
        rows, columns = torch.meshgrid(torch.arange(GRID), torch.arange(GRID), indexing="ij")
        points = torch.stack((columns, rows)).reshape(1, 2, -1) * STRIDE + STRIDE / 2
        self.register_buffer("points", points, persistent=False)

    def heads(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return left, top, right, bottom in pixels, [N, 4, A], and logits, [N, C, A]."""
        _, _, at_8, at_16, at_32 = self.backbone(image)
        features = self.from_16(self.from_32(at_32, at_16), at_8)
        distances = self.sides(self.box_tower(features)).flatten(2) * STRIDE
        boxes = torch.cat((self.points - distances[:, :2], self.points + distances[:, 2:]), 1)
        return boxes, self.logits(self.class_tower(features)).flatten(2)

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return boxes, [N, A, 4], in pixels of the input, and probabilities, [N, A, C]."""
        boxes, logits = self.heads(image)
        return {"boxes": boxes.transpose(1, 2), "scores": logits.sigmoid().transpose(1, 2)}


class Segmenter(nn.Module):
    """Map an image to a logit of each class at each pixel; class 0 is the background."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.backbone = Backbone()
        widths = (64, 48, 32, 24)
        coarse = (WIDTHS[4], *widths)
        self.steps = nn.ModuleList(
            TopDown(above, beside, width)
            for above, beside, width in zip(coarse, WIDTHS[3::-1], widths, strict=False)
        )
        self.logits = nn.Conv2d(widths[-1], classes, 1)

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return logits, [N, C, height, width], of the input's size."""
        *finer, features = self.backbone(image)
        for step, beside in zip(self.steps, reversed(finer), strict=True):
            features = step(features, beside)
        logits = self.logits(features)
        enlarged = functional.interpolate(
            logits, scale_factor=2.0, mode="bilinear", align_corners=False
        )
        return {"logits": enlarged}


def detector() -> Detector:
    """Return the demo's detector, for `qconvert export nets:detector`."""
    return Detector(len(CLASSES))


def segmenter() -> Segmenter:
    """Return the demo's segmenter, for `qconvert export nets:segmenter`."""
    return Segmenter(len(CLASSES) + 1)
