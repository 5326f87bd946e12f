"""A Q/DQ graph while it is being read: what is known of it, and the nodes that are added."""

from collections import Counter
from dataclasses import dataclass, field

import onnx_ir as ir

from qconvert.graph import patterns
from qconvert.quantize.qdq_builder import QDQBuilder
from qconvert.quantize.quantized_constant import QuantizedConstant


@dataclass(frozen=True)
class Quantizer:
    """The grid of an activation: value = (integer - zero_point) * scale, for integers 0 to 255.

    Signed integers count from -128, which is the same grid in another type. `low` and `high` are
    the integers that occur, where a Clip limits them; `signed` is the type in the file.
    """

    scale: float
    zero_point: int
    low: int = 0
    high: int = 255
    signed: bool = field(default=False, compare=False)

    @property
    def grid(self) -> tuple[float, int]:
        """Scale and zero point."""
        return self.scale, self.zero_point

    @property
    def fits_symmetric(self) -> bool:
        """Whether signed bytes without a zero point have all its values."""
        return self.low - self.zero_point >= -128 and self.high - self.zero_point <= 127


@dataclass(frozen=True, eq=False)
class QDQReading:
    """A graph that is being read, and what is known of it so far."""

    builder: QDQBuilder
    tensors: dict[ir.Value, Quantizer] = field(default_factory=dict)
    aliases: dict[tuple[ir.Value, Quantizer], ir.Value] = field(default_factory=dict)
    inputs: dict[ir.Node, set[int]] = field(default_factory=dict)
    outputs: set[ir.Node] = field(default_factory=set)
    weights: dict[ir.Node, QuantizedConstant] = field(default_factory=dict)
    repairs: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)


def insert_behind(reading: QDQReading, op: str, inputs: list[ir.Value], name: str) -> ir.Node:
    """Add a node right behind its first input."""
    node, graph = reading.builder.node(op, inputs, name, inputs[0].dtype), reading.builder.graph
    if (producer := inputs[0].producer()) is None:
        graph.insert_before(graph[0], node)
    else:
        graph.insert_after(producer, node)
    return node


def is_weight(node: ir.Node, slot: int) -> bool:
    """Whether this input of a node is the weight of an activation."""
    if slot != 1 or not patterns.is_standard(node, *patterns.WEIGHTED):
        return False
    return patterns.constant_array(node.inputs[0]) is None
