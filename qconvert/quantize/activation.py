"""What follows a layer and decides which of its errors show: an activation, or nothing.

Only what a Relu or Clip cuts off changes how weights are chosen. To weigh rows by the slope of a
smooth activation was tried, and brought nothing: these decide by which errors a choice is judged.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qconvert.graph.patterns import constant, is_standard, only_reader
from qconvert.quantize.checks import fused_activation
from qconvert.scales import Floats

Function = Callable[[Floats], Floats]


@dataclass(frozen=True)
class Activation:
    """What comes out for what goes in; what a Relu or Clip cuts off lies beyond its limits."""

    answers: Function
    low: float = -math.inf
    high: float = math.inf

    @property
    def cuts(self) -> bool:
        """Whether there are limits."""
        return math.isfinite(self.low) or math.isfinite(self.high)

    def keeps(self, values: Floats) -> NDArray[np.bool_]:
        """Return which values lie between the limits."""
        inside: NDArray[np.bool_] = (values > self.low) & (values < self.high)
        return inside


NOTHING = Activation(lambda values: values)


def clipped(low: float, high: float) -> Activation:
    """Return what a Relu or Clip does."""
    return Activation(lambda values: np.clip(values, low, high), low, high)


def following(node: ir.Node) -> Activation:
    """Return what makes of a node's answer what others read; nothing where that is not known."""
    fused = fused_activation(node)
    if fused is not None:
        return clipped(*_limits(fused))
    value = node.outputs[0]
    reader = only_reader(value) or _gate(value)
    if reader is None or not is_standard(reader):
        return NOTHING
    if reader.op_type in ("Sigmoid", "HardSigmoid") and only_reader(value) is None:
        return _gated(reader)
    make = SMOOTH.get(reader.op_type)
    return NOTHING if make is None else make(reader)


def _limits(node: ir.Node) -> tuple[float, float]:
    """Return what a Relu or Clip keeps."""
    if node.op_type == "Relu":
        return 0.0, math.inf
    low, high = ([*map(constant, node.inputs[1:3]), None, None])[:2]
    return (
        -math.inf if low is None else float(low.item()),
        math.inf if high is None else float(high.item()),
    )


def _gate(value: ir.Value) -> ir.Node | None:
    """Return the node whose answer multiplies a value, where nothing else reads either."""
    readers = [use.node for use in value.uses()]
    gates = [each for each in readers if each.op_type in ("Sigmoid", "HardSigmoid")]
    if len(readers) != 2 or len(gates) != 1 or value.is_graph_output():
        return None
    product = only_reader(gates[0].outputs[0])
    return gates[0] if product in readers and product.op_type == "Mul" else None


def _gated(gate: ir.Node) -> Activation:
    """Return SiLU, or HardSwish in two nodes."""
    if gate.op_type == "Sigmoid":
        return Activation(lambda values: values * _sigmoid(values))
    hard = _hard_sigmoid(gate)
    return Activation(lambda values: values * hard.answers(values))


def _hard_sigmoid(node: ir.Node) -> Activation:
    alpha = node.attributes.get_float("alpha", 0.2)
    beta = node.attributes.get_float("beta", 0.5)
    return Activation(lambda values: np.clip(alpha * values + beta, 0, 1))


def _sigmoid(values: Floats) -> Floats:
    found: Floats = 0.5 * (1 + np.tanh(0.5 * values))
    return found


def _gelu(values: Floats) -> Floats:
    """Return Gelu by its usual approximation, which is near enough to judge errors by."""
    inner = math.sqrt(2 / math.pi) * (values + 0.044715 * values**3)
    found: Floats = 0.5 * values * (1 + np.tanh(inner))
    return found


SMOOTH: dict[str, Callable[[ir.Node], Activation]] = {
    "Sigmoid": lambda node: Activation(_sigmoid),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": lambda node: Activation(lambda x: x * np.clip(x / 6 + 0.5, 0, 1)),
    "Gelu": lambda node: Activation(_gelu),
}
