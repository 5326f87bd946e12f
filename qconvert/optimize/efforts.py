"""The levels of `--effort`: how much is tried for accuracy, and so how long it takes."""

from dataclasses import dataclass

import onnx_ir as ir

from qconvert.optimize.partial_execution import peak_activation_bytes
from qconvert.quantize.ranges import AUTO_METHOD, DEFAULT_METHOD

# Layer by layer, the activations of all images at the widest place of two models are in memory.
MAX_ACTIVATION_BYTES = 1_500_000_000


@dataclass(frozen=True)
class OptimizationEffort:
    """What is tried, and on how much.

    Weights are learned on `training_images`, from at most `rows` of a layer's inputs, and accepted
    by the images held out and at most `holdout_images` in all. `method` is the default for ranges;
    `equalize` turns on cross-layer equalization; `max_macs` bounds the multiplications spent on
    choosing a range method for every tensor.
    """

    training_images: int = 0
    rows: int = 0
    holdout_images: int = 0
    method: str = DEFAULT_METHOD
    equalize: bool = False
    max_macs: float = 0.0


EFFORTS: dict[str, OptimizationEffort] = {
    "none": OptimizationEffort(),
    "quick": OptimizationEffort(training_images=16, rows=512),
    "default": OptimizationEffort(64, 2048, 128, AUTO_METHOD, equalize=True, max_macs=5e12),
    "thorough": OptimizationEffort(192, 8192, 256, AUTO_METHOD, equalize=True, max_macs=4e13),
}


def limit_images(model: ir.Model, images: int) -> int:
    """Return how many of the images fit into memory while layers run alone, at least one."""
    return min(images, max(1, MAX_ACTIVATION_BYTES // max(1, 2 * peak_activation_bytes(model))))
