"""Networks of many structures with random weights, exported and cleaned, to test whole passes.

The architectures are real, on small images for speed. Parameters that start at zero or one are
drawn at random, and the statistics are measured, so that activations are distributed as in a
trained network.
"""

import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from qconvert.backends.ort import open_cpu
from qconvert.core import onnx_io
from qconvert.core.config import ExportConfig
from qconvert.core.tensors import parse_spec, random_inputs
from qconvert.graph.clean import clean_model
from qconvert.sources.torch_export import from_module
from tests import shared

OPSET, PATCH = 20, 16
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@functools.cache
def net(name: str) -> ir.Model:
    """Return a cleaned network with a dynamic batch; tests share it and must not change it."""
    return onnx_io.load(shared.once(f"zoo-{name}", functools.partial(export, name)) / "net.onnx")


def export(name: str, folder: Path) -> None:
    """Write a cleaned network as `net.onnx`."""
    build, side = NETS[name]
    torch.manual_seed(0)
    module = settled(build(), side)
    source = from_module(name, module, [parse_spec(f"1x3x{side}x{side}")], ExportConfig())
    feeds = random_inputs(source.inputs, 2, seed=0)
    cleaned = clean_model(source.model, OPSET, (), lambda model: open_cpu(model)(feeds))
    onnx_io.save(cleaned.model, folder / "net.onnx")


def settled(module: nn.Module, side: int) -> nn.Module:
    """Draw scales and biases, and measure the statistics of BatchNorm on some random images."""
    return settled_on(module, [[torch.from_numpy(images(side, 32, seed))] for seed in range(2)])


def settled_on(module: nn.Module, batches: Sequence[Sequence[torch.Tensor]]) -> nn.Module:
    """Draw scales and biases, and measure the statistics of BatchNorm on these inputs."""
    module.eval()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim == 1 and name.endswith("bias"):
                parameter.normal_(0, 0.1)
            elif parameter.ndim == 1:
                parameter.uniform_(0.5, 1.5)
        norms = [layer for layer in module.modules() if isinstance(layer, NORMS)]
        for norm in norms:
            norm.train()
            norm.momentum = None  # the mean over all batches
        for batch in batches if norms else ():
            module(*batch)
    return module.eval()


def images(side: int, count: int, seed: int) -> NDArray[np.float32]:
    """Return random patches of colour with noise, which vary more than noise alone."""
    generator = np.random.default_rng(seed)
    patches = generator.standard_normal((count, 3, side // PATCH, side // PATCH))
    noise = 0.3 * generator.standard_normal((count, 3, side, side))
    return (np.kron(patches, np.ones((PATCH, PATCH))) + noise).astype(np.float32)


class UNet(nn.Module):
    """Two MaxPool levels down, ConvTranspose and Resize up, with a skip connection per level."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.deep = unit(3, 16), unit(16, 32), unit(32, 64)
        self.up = nn.ConvTranspose2d(64, 32, 2, stride=2)
        self.merge_deep, self.merge = unit(64, 32), unit(48, 16)
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        first = self.first(image)
        second = self.second(functional.max_pool2d(first, 2))
        up = self.up(self.deep(functional.max_pool2d(second, 2)))
        up = self.merge_deep(torch.cat([up, second], 1))
        up = functional.interpolate(up, scale_factor=2.0, mode="bilinear")
        return {"mask": self.head(self.merge(torch.cat([up, first], 1)))}


class Detector(nn.Module):
    """Two levels with a path down and a path up; boxes and scores of all positions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(unit(3, 16, 2, nn.SiLU), unit(16, 32, 2, nn.SiLU))
        self.fine, self.coarse = unit(32, 32, 2, nn.SiLU), unit(32, 64, 2, nn.SiLU)
        self.merge, self.down = unit(96, 32, 1, nn.SiLU), unit(32, 64, 2, nn.SiLU)
        self.join = unit(128, 32, 1, nn.SiLU)
        self.boxes = nn.ModuleList([nn.Conv2d(32, 4, 1) for _ in range(2)])
        self.scores = nn.ModuleList([nn.Conv2d(32, 5, 1) for _ in range(2)])

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        fine = self.fine(self.stem(image))
        coarse = self.coarse(fine)
        up = functional.interpolate(coarse, scale_factor=2.0, mode="nearest")
        fine = self.merge(torch.cat([up, fine], 1))
        levels = [fine, self.join(torch.cat([self.down(fine), coarse], 1))]
        boxes = [head(level).flatten(2) for head, level in zip(self.boxes, levels, strict=True)]
        scores = [head(level).flatten(2) for head, level in zip(self.scores, levels, strict=True)]
        return {
            "boxes": torch.cat(boxes, 2).transpose(1, 2).exp(),
            "scores": torch.cat(scores, 2).transpose(1, 2).sigmoid(),
        }


def unit(
    channels: int, out: int, stride: int = 1, activation: type[nn.Module] = nn.ReLU
) -> nn.Sequential:
    """Return convolution, normalization and activation."""
    conv = nn.Conv2d(channels, out, 3, stride, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out), activation())


def timm(name: str, blocks: int = 0, **options: Any) -> Callable[[], nn.Module]:
    """Return a function that builds one of timm's networks, with at most `blocks` per stage."""

    def build() -> nn.Module:
        import_torchvision()
        import timm

        module: nn.Module = timm.create_model(name, pretrained=False, **options)
        if blocks:
            # The first block changes the size, the second has a residual; more are repetitions.
            stages = [stage[:blocks] for stage in module.blocks]  # type: ignore[union-attr]
            module.blocks = nn.Sequential(*stages)
        return module

    return build


def shufflenet() -> nn.Module:
    import_torchvision()
    from torchvision import models

    module: nn.Module = models.ShuffleNetV2([2, 3, 2], [24, 48, 96, 192, 512])
    return module


def import_torchvision() -> None:
    """Import torchvision, which timm needs, without its compiled operators.

    Its wheel is built for another build of torch. Its import looks up the schemas of two operators,
    which are declared here and never called.
    """
    if "torchvision" in sys.modules:
        return
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for operator in ("nms", "qnms"):
        schema = f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        library.define(schema)  # type: ignore[no-untyped-call]
    import torchvision  # noqa: F401


SWIN: dict[str, Any] = {"img_size": 48, "window_size": 3, "embed_dim": 48}
SWIN |= {"depths": (2, 2), "num_heads": (3, 6)}

# The builder of each network and the side of its images; some are shallower or narrower than usual.
NETS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "efficientnet-lite0": (timm("efficientnet_lite0", 2), 64),
    "mobilenet-v2": (timm("mobilenetv2_100", 2), 64),
    "resnet-50": (timm("resnet50", layers=(2, 2, 2, 2), base_width=16), 64),
    "convnext-atto": (timm("convnext_atto", depths=(1, 1, 2, 1)), 64),
    "vit-tiny": (timm("vit_tiny_patch16_224", img_size=64, depth=3), 64),
    "swin-tiny": (timm("swin_tiny_patch4_window7_224", **SWIN), 48),
    "efficientnet-b0": (timm("efficientnet_b0", 2), 64),
    "mobilenet-v3-small": (timm("mobilenetv3_small_100", 2), 64),
    "densenet": (timm("densenet121", block_config=(3, 4, 4, 3)), 64),
    "shufflenet-v2": (shufflenet, 64),
    "u-net": (UNet, 64),
    "detector": (Detector, 64),
}
