"""How much is done for accuracy, and so how long it takes: the table behind `--effort`."""

from dataclasses import dataclass

import onnx_ir as ir

from qconvert.optimize.partial_execution import peak_activation_bytes
from qconvert.quantize.ranges import AUTO_METHOD, DEFAULT_METHOD

# Two models' activations of all images lie in memory at the widest place of the graph.
MAX_ACTIVATION_BYTES = 1_500_000_000


@dataclass(frozen=True)
class OptimizationEffort:
    """What is tried, and on how much.

    Weights are learned on so many `images`, at so many `rows` of each layer, and judged by the
    images held out and at most `judges` in all. `method` is that of ranges where the user names
    none. With `evens` channels are brought to a common size. For ranges by answers at most `work`
    multiplications are done.
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
    "default": OptimizationEffort(
        64, 2048, holdout_images=128, method=AUTO_METHOD, equalize=True, max_macs=5e12
    ),
    "thorough": OptimizationEffort(
        192, 8192, holdout_images=256, method=AUTO_METHOD, equalize=True, max_macs=4e13
    ),
}


def limit_images(model: ir.Model, images: int) -> int:
    """Return how many of so many images fit into memory while layers run alone; one always does."""
    return min(images, max(1, MAX_ACTIVATION_BYTES // max(1, 2 * peak_activation_bytes(model))))
