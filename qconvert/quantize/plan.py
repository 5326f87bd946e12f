"""The plan: for every node that could be quantized its quantizers, or the reason it has none.

A plan is data: `plan.json` can be read, edited and replayed on the model it was made for.
"""

from dataclasses import dataclass, field
from typing import Literal

import pydantic

from qconvert.core.scales import Grid, Range

FORMAT = 1
RestPrecision = Literal["fp32", "fp16", "bf16"]


class StrictKeys:
    """Refuse keys that mean nothing."""

    __pydantic_config__ = pydantic.ConfigDict(extra="forbid")


@dataclass(frozen=True)
class WeightSlot(StrictKeys):
    """Which input of a node is its weight, and the axis whose indices each get a scale."""

    slot: int
    axis: int


@dataclass(frozen=True)
class LayerPlan(StrictKeys):
    """What happens to one node.

    `inputs` are the places of the activations it reads rounded. With `output` everyone reads its
    results rounded. `left` is the reason why nothing happens; `note` says what is special.
    """

    op: str
    inputs: tuple[int, ...] = ()
    weight: WeightSlot | None = None
    output: bool = False
    left: str = ""
    note: str = ""


@dataclass(frozen=True)
class Plan(StrictKeys):
    """Everything that `apply` does to a model; `model` is the fingerprint of that model.

    `tensors` has the range of each tensor that is rounded. `integer_bias` says that biases become
    integers too. `method` and `weight_method` say how ranges and the steps of weights are chosen.
    Steps are exact in the type of `rest`, in which the other operators run. `equalized` has for
    some tensors what each channel is divided by first. `learned` is the digest of the weights that
    were learned with the plan, which lie in a file beside it.
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
    equalized: dict[str, tuple[float, ...]] = field(default_factory=dict)
    learned: str = ""
    format: int = FORMAT

    def __post_init__(self) -> None:
        if not (self.weights.symmetric and self.weights.signed):
            raise ValueError("weights are symmetric around zero")

    @property
    def quantized(self) -> int:
        """How many nodes are quantized."""
        return sum(not layer.left for layer in self.layers.values())
