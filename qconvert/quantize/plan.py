"""The plan: for every node that could be quantized its quantizers, or the reason it has none.

A plan is data: `plan.json` can be read, edited and applied again to the model it was made for.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Literal

import numpy as np
import pydantic
from numpy.typing import NDArray

from qconvert.core.formats import FORMATS, QuantizedFormat
from qconvert.core.scales import FloatArray, Grid, Range

FORMAT = 1
BIAS_SLOT = 2
RestPrecision = Literal["fp32", "fp16", "bf16"]
Kernels = Literal["onnx", "onnxruntime"]


class StrictKeys:
    """Refuse unknown keys."""

    __pydantic_config__ = pydantic.ConfigDict(extra="forbid")


@dataclass(frozen=True)
class WeightSlot(StrictKeys):
    """Which input of a node is its weight, the axis of its output channels, and its own bits.

    A weight without bits of its own has the grid of the plan.
    """

    slot: int
    axis: int
    bits: int | None = None


@dataclass(frozen=True)
class LayerPlan(StrictKeys):
    """What happens to one node.

    `inputs` are the indices of the activations that it reads quantized, by ranges of the plan; with
    `output`, every reader gets its outputs quantized. `left` is the reason why the node stays in
    float, `note` a remark.
    """

    op: str
    inputs: tuple[int, ...] = ()
    weight: WeightSlot | None = None
    output: bool = False
    left: str = ""
    note: str = ""


@dataclass(frozen=True)
class Plan(StrictKeys):
    """Everything that `apply_plan` does to the model with the fingerprint `model`.

    `precision` is the number format of what is quantized. `tensors` has the range of each
    quantized activation, `method` and `weight_method` say how ranges and weight scales were
    chosen. Scales are exact in the type of `rest`, the precision of all other operators. With
    `integer_bias`, biases become integers too. `equalized` has for some tensors the factors by
    which their channels are divided first. `learned` is the digest of the learned weights that
    belong to the plan; they are in a file beside it. With `portable`, pairs of weights are
    limited, so that x86 without VNNI computes the same answers. `shifted` names tensors whose
    symmetric grid is shifted, so that it covers their range alone (`shifted_tensors`). Weight-only
    formats have a scale for each `group` of inputs, None for one of all inputs of an output;
    `kernels` says whose operators read their weights.
    """

    model: str
    scheme: str
    method: str
    weight_method: Literal["mse", "minmax"]
    activations: Grid
    weights: Grid
    integer_bias: bool
    layers: dict[str, LayerPlan]
    tensors: dict[str, Range]
    rest: RestPrecision = "fp32"
    portable: bool = False
    equalized: dict[str, tuple[float, ...]] = field(default_factory=dict)
    learned: str = ""
    precision: QuantizedFormat = "int8"
    shifted: tuple[str, ...] = ()
    group: int | None = None
    kernels: Kernels = "onnx"
    format: int = FORMAT

    def __post_init__(self) -> None:
        symmetric = self.weights.symmetric and self.weights.signed
        if not (symmetric or FORMATS[self.precision].weights_only):
            raise ValueError("the grid of weights must be symmetric and signed")
        if self.group is not None and self.group < 1:
            raise ValueError("a group has at least one input")

    def grid_of(self, tensor: str) -> Grid:
        """Return the grid of an activation, before a shift makes it symmetric."""
        return replace(
            self.activations, symmetric=tensor not in self.shifted and self.activations.symmetric
        )

    def grid_of_weight(self, weight: WeightSlot) -> Grid:
        """Return the grid of a weight."""
        return self.weights if weight.bits is None else replace(self.weights, bits=weight.bits)

    @property
    def quantized(self) -> int:
        """How many nodes are quantized."""
        return sum(not layer.left for layer in self.layers.values())


@dataclass(frozen=True, eq=False)
class RoundedWeight:
    """The integers of a weight in its own shape, a step for each channel, and the float bias.

    `bias` is that of the operator, or what an Add right behind it adds, None if there is neither.
    Weight-only formats have rows of integers instead, as [output, input], and a step for each group
    of each row; `zero_points` are None on a symmetric grid.
    """

    integers: NDArray[np.int8] | NDArray[np.uint8]
    steps: FloatArray
    bias: FloatArray | None
    zero_points: NDArray[np.uint8] | None = None

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """Return the arrays by name, without those that there are not."""
        arrays: dict[str, NDArray[np.generic]] = {"integers": self.integers, "steps": self.steps}
        optional = {"bias": self.bias, "zero_points": self.zero_points}
        return arrays | {name: array for name, array in optional.items() if array is not None}


RoundedWeights = Mapping[str, RoundedWeight]
NO_ROUNDED_WEIGHTS: RoundedWeights = MappingProxyType({})
