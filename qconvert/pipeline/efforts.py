"""How much is done for accuracy, and so how long it takes: the table behind `--effort`."""

from dataclasses import dataclass

import onnx_ir as ir

from qconvert.quantize.ranges import AUTO, USUAL
from qconvert.quantize.stretches import widest_bytes

# Two models' activations of all images lie in memory at the widest place of the graph.
MOST_BYTES = 1_500_000_000


@dataclass(frozen=True)
class Effort:
    """What is tried, and on how much.

    Weights are learned on so many `images`, at so many `rows` of each layer, and judged by the
    images held out and at most `judges` in all. `method` is that of ranges where the user names
    none. With `evens` channels are brought to a common size. For ranges by answers at most `work`
    multiplications are done.
    """

    images: int = 0
    rows: int = 0
    judges: int = 0
    method: str = USUAL
    evens: bool = False
    work: float = 0.0


EFFORTS: dict[str, Effort] = {
    "none": Effort(),
    "quick": Effort(images=16, rows=512),
    "default": Effort(64, 2048, judges=128, method=AUTO, evens=True, work=5e12),
    "thorough": Effort(192, 8192, judges=256, method=AUTO, evens=True, work=4e13),
}


def fitting(model: ir.Model, images: int) -> int:
    """Return how many of so many images fit into memory while layers run alone; one always does."""
    return min(images, max(1, MOST_BYTES // max(1, 2 * widest_bytes(model))))
