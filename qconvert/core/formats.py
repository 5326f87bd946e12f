"""The number formats of engines, as data that every step reads.

A quantized format has a row here, a `Scheme` in every backend that takes it, and a function in
`REWRITES` of `quantize.apply_plan`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

QuantizedFormat = Literal["int8", "int8-dynamic", "int8-weights", "int4-weights"]
# What a float model can be rewritten to.
RewrittenPrecision = Literal[QuantizedFormat, "fp16", "bf16"]
Precision = Literal["fp32", "fp16", "bf16", QuantizedFormat, "mixed"]


@dataclass(frozen=True)
class NumberFormat:
    """How a format stores weights, and where the scales of its activations come from.

    `title` names it in sentences. Activations that are `calibrated` have scales in the graph, which
    need the range of every tensor: images, or a plan. Those `at run time` get new scales at every
    run, those `in float` have none: the weights become float where they are read.
    """

    title: str
    weights: str
    activations: Literal["calibrated", "at run time", "in float"]

    @property
    def weights_only(self) -> bool:
        """Whether only weights are integers, and all that computes is in float."""
        return self.activations == "in float"

    @property
    def needs_ranges(self) -> bool:
        """Whether a new plan needs the range of every tensor."""
        return self.activations == "calibrated"


FORMATS: Mapping[QuantizedFormat, NumberFormat] = {
    "int8": NumberFormat("INT8", "8 bits, a scale for each output channel", "calibrated"),
    "int8-dynamic": NumberFormat(
        "dynamic INT8", "8 bits, a scale for each output channel", "at run time"
    ),
    "int8-weights": NumberFormat(
        "weight-only INT8", "8 bits, a scale for each group of inputs", "in float"
    ),
    "int4-weights": NumberFormat(
        "weight-only INT4", "4 bits, a scale for each group of inputs", "in float"
    ),
}


def format_title(precision: str) -> str:
    """Return a precision as sentences name it."""
    name = quantized_format(precision)
    return precision.upper() if name is None else FORMATS[name].title


def stores_weights_only(precision: str) -> bool:
    """Whether only the weights of a precision are integers."""
    name = quantized_format(precision)
    return name is not None and FORMATS[name].weights_only


def needs_ranges(precision: str) -> bool:
    """Whether a new plan of a precision needs the range of every tensor."""
    name = quantized_format(precision)
    return name is not None and FORMATS[name].needs_ranges


def quantized_format(precision: str) -> QuantizedFormat | None:
    """Return the format of what an engine quantizes, None if it quantizes nothing."""
    if precision == "mixed":
        return "int8"
    return next((name for name in FORMATS if name == precision), None)
