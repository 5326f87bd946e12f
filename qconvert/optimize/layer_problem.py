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

from qconvert.core.scales import FloatArray
from qconvert.graph.patterns import constant_array, find_fused_activation, is_standard, only_reader

ActivationFunction = Callable[[FloatArray], FloatArray]


@dataclass(frozen=True)
class Activation:
    """What comes out for what goes in; what a Relu or Clip cuts off lies beyond its limits."""

    apply: ActivationFunction
    low: float = -math.inf
    high: float = math.inf

    @property
    def clips(self) -> bool:
        """Whether there are limits."""
        return math.isfinite(self.low) or math.isfinite(self.high)

    def passes(self, values: FloatArray) -> NDArray[np.bool_]:
        """Return which values lie between the limits."""
        inside: NDArray[np.bool_] = (values > self.low) & (values < self.high)
        return inside


IDENTITY = Activation(lambda values: values)


def clip_activation(low: float, high: float) -> Activation:
    """Return what a Relu or Clip does."""
    return Activation(lambda values: np.clip(values, low, high), low, high)


def find_activation(node: ir.Node) -> Activation:
    """Return what makes of a node's answer what others read; nothing where that is not known."""
    fused = find_fused_activation(node)
    if fused is not None:
        return clip_activation(*_clip_limits(fused))
    value = node.outputs[0]
    reader = only_reader(value) or _find_gate(value)
    if reader is None or not is_standard(reader):
        return IDENTITY
    if reader.op_type in ("Sigmoid", "HardSigmoid") and only_reader(value) is None:
        return _gated_activation(reader)
    make = SMOOTH.get(reader.op_type)
    return IDENTITY if make is None else make(reader)


def _clip_limits(node: ir.Node) -> tuple[float, float]:
    """Return what a Relu or Clip keeps."""
    if node.op_type == "Relu":
        return 0.0, math.inf
    low, high = ([*map(constant_array, node.inputs[1:3]), None, None])[:2]
    return (
        -math.inf if low is None else float(low.item()),
        math.inf if high is None else float(high.item()),
    )


def _find_gate(value: ir.Value) -> ir.Node | None:
    """Return the node whose answer multiplies a value, where nothing else reads either."""
    readers = [use.node for use in value.uses()]
    gates = [each for each in readers if each.op_type in ("Sigmoid", "HardSigmoid")]
    if len(readers) != 2 or len(gates) != 1 or value.is_graph_output():
        return None
    product = only_reader(gates[0].outputs[0])
    return gates[0] if product in readers and product.op_type == "Mul" else None


def _gated_activation(gate: ir.Node) -> Activation:
    """Return SiLU, or HardSwish in two nodes."""
    if gate.op_type == "Sigmoid":
        return Activation(lambda values: values * _sigmoid(values))
    hard = _hard_sigmoid(gate)
    return Activation(lambda values: values * hard.apply(values))


def _hard_sigmoid(node: ir.Node) -> Activation:
    alpha = node.attributes.get_float("alpha", 0.2)
    beta = node.attributes.get_float("beta", 0.5)
    return Activation(lambda values: np.clip(alpha * values + beta, 0, 1))


def _sigmoid(values: FloatArray) -> FloatArray:
    found: FloatArray = 0.5 * (1 + np.tanh(0.5 * values))
    return found


def _gelu(values: FloatArray) -> FloatArray:
    """Return Gelu by its usual approximation, which is near enough to judge errors by."""
    inner = math.sqrt(2 / math.pi) * (values + 0.044715 * values**3)
    found: FloatArray = 0.5 * values * (1 + np.tanh(inner))
    return found


SMOOTH: dict[str, Callable[[ir.Node], Activation]] = {
    "Sigmoid": lambda node: Activation(_sigmoid),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": lambda node: Activation(lambda x: x * np.clip(x / 6 + 0.5, 0, 1)),
    "Gelu": lambda node: Activation(_gelu),
}


@dataclass(frozen=True, eq=False)
class LayerProblem:
    """A layer as a product: arrays of [group, row, input], [group, output, input] and so on.

    `wanted` is what should come out before the activation. Without `biases` nothing can be added
    to what comes out.
    """

    rows: FloatArray
    targets: FloatArray
    weights: FloatArray
    steps: FloatArray
    biases: FloatArray | None
    activation: Activation
    max_integer: int

    @property
    def nearest(self) -> FloatArray:
        """The nearest integers, as floats."""
        near: FloatArray = np.rint(self.weights / self.steps[..., np.newaxis])
        return np.clip(near, -self.max_integer, self.max_integer)

    def relative_error(self, integers: FloatArray, biases: FloatArray | None) -> float:
        """Return the squared error of what comes out after the activation, as a share of that."""
        error = power = 0.0
        for group, rows in enumerate(self.rows):
            found = (integers[group] * self.steps[group][:, np.newaxis]) @ rows.T
            found += 0.0 if biases is None else biases[group][:, np.newaxis]
            wanted = self.activation.apply(self.targets[group])
            off = self.activation.apply(found) - wanted
            error += float(np.square(off).sum(dtype=np.float64))
            power += float(np.square(wanted).sum(dtype=np.float64))
        return error / (power or 1.0)
