"""Many views of a few images: random crops, mirror images, contrast, and mixtures of two."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from qconvert.core.tensors import TensorSpec

# A crop has at least this share of the area, and so much more or less than its aspect ratio.
MIN_AREA, MAX_ASPECT = 0.4, 4 / 3
# Contrast and brightness vary by so much, relative to the deviation of the image.
COLOUR = 0.2
# So many of the images are mixed with another one, which gets up to half of the weight.
MIXED_SHARE = 0.5


def is_image(spec: TensorSpec) -> bool:
    """Whether an input holds images as [batch, channel, height, width]."""
    shape = spec.shape
    return spec.dtype == "float32" and len(shape) == 4 and shape[1] in (1, 3, 4)


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return another view of each image of a batch; the same generator gives the same views."""

    def draw(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(len(images), generator=generator)

    # A crop of another aspect, or mirrored: the places of an image that its view reads.
    area, aspect = draw(MIN_AREA, 1.0), torch.exp(draw(-1.0, 1.0) * math.log(MAX_ASPECT))
    height = (area.sqrt() * aspect.sqrt()).clamp(max=1.0)
    width = (area.sqrt() / aspect.sqrt()).clamp(max=1.0)
    mirror = torch.where(draw(0.0, 1.0) < 0.5, -1.0, 1.0)
    zeros = torch.zeros(len(images))
    rows = torch.stack([width * mirror, zeros, (1 - width) * draw(-1.0, 1.0)], dim=1)
    columns = torch.stack([zeros, height, (1 - height) * draw(-1.0, 1.0)], dim=1)
    places = functional.affine_grid(
        torch.stack([rows, columns], dim=1), list(images.shape), align_corners=False
    ).to(images.device)
    views = functional.grid_sample(images, places, padding_mode="reflection", align_corners=False)

    def per_image(values: Tensor) -> Tensor:
        return values.reshape(-1, 1, 1, 1).to(images.device)

    mean, deviation = views.mean((1, 2, 3)), views.std((1, 2, 3))
    contrast, brightness = draw(1 - COLOUR, 1 + COLOUR), draw(-COLOUR, COLOUR)
    shift = mean - mean * contrast.to(images.device) + deviation * brightness.to(images.device)
    views = views * per_image(contrast) + per_image(shift)
    share = torch.where(draw(0.0, 1.0) < MIXED_SHARE, draw(0.0, 0.5), zeros)
    views = torch.lerp(views, views.roll(1, 0), per_image(share))
    # Pixels stay in the range that those of the batch have.
    return views.clamp(float(images.amin()), float(images.amax()))
