"""One layer as a reconstruction problem: inputs, target outputs, and the activation behind it.

    minimize |f(s Q x + b) - f(y)|^2 over integers Q and bias b, where y are the float outputs

as in AdaRound (Nagel et al. 2020). The activation f decides which errors show. What a Relu or Clip
cuts off also changes how weights are rounded; weighting rows by the slope of a smooth activation
was tried and brought nothing, so these only take part in the error by which a solution is accepted.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qconvert.core.scales import FloatArray
from qconvert.graph.patterns import constant_array, find_fused_activation, is_standard, only_reader


@dataclass(frozen=True)
class Activation:
    """A function of a layer's outputs; a Relu or Clip cuts what lies beyond its limits."""

    apply: Callable[[FloatArray], FloatArray]
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


@dataclass(frozen=True, eq=False)
class LayerProblem:
    """A layer as a product of matrices, with one for each group.

    `rows` are [group, row, input], `weights` [group, output, input], `targets`, which lie before
    the activation, [group, output, row], `steps` and `biases` [group, output]. `biases` are None
    if nothing can be added to the outputs.
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
        nearest: FloatArray = np.rint(self.weights / self.steps[..., np.newaxis])
        return np.clip(nearest, -self.max_integer, self.max_integer)

    def relative_error(self, integers: FloatArray, biases: FloatArray | None) -> float:
        """Return the squared error behind the activation, as a share of the targets' power."""
        error = power = 0.0
        for group, rows in enumerate(self.rows):
            outputs = (integers[group] * self.steps[group][:, np.newaxis]) @ rows.T
            outputs += 0.0 if biases is None else biases[group][:, np.newaxis]
            targets = self.activation.apply(self.targets[group])
            errors = self.activation.apply(outputs) - targets
            error += float(np.square(errors).sum(dtype=np.float64))
            power += float(np.square(targets).sum(dtype=np.float64))
        return error / (power or 1.0)


def clip_activation(low: float, high: float) -> Activation:
    """Return the function of a Relu or Clip."""
    return Activation(lambda values: np.clip(values, low, high), low, high)


def find_activation(node: ir.Node) -> Activation:
    """Return the activation between a node and whatever else reads it; else the identity.

    SiLU and HardSwish in two nodes are a gate that also reads the output, and a Mul behind it.
    """
    fused = find_fused_activation(node)
    if fused is not None:
        return clip_activation(*_clip_limits(fused))
    value = node.outputs[0]
    reader = only_reader(value)
    if reader is not None:
        make = SMOOTH.get(reader.op_type) if is_standard(reader) else None
        return IDENTITY if make is None else make(reader)
    gate = _find_gate(value)
    if gate is None:
        return IDENTITY
    open_gate = SMOOTH[gate.op_type](gate).apply
    return Activation(lambda values: values * open_gate(values))


def _clip_limits(node: ir.Node) -> tuple[float, float]:
    if node.op_type == "Relu":
        return 0.0, math.inf
    low, high = ([*map(constant_array, node.inputs[1:3]), None, None])[:2]
    return (
        -math.inf if low is None else float(low.item()),
        math.inf if high is None else float(high.item()),
    )


def _find_gate(value: ir.Value) -> ir.Node | None:
    """Return the node whose output multiplies a value that nothing else reads."""
    readers = [use.node for use in value.uses()]
    gates = [reader for reader in readers if is_standard(reader, "Sigmoid", "HardSigmoid")]
    if len(readers) != 2 or len(gates) != 1 or value.is_graph_output():
        return None
    product = only_reader(gates[0].outputs[0])
    return gates[0] if product in readers and product.op_type == "Mul" else None


def _sigmoid(values: FloatArray) -> FloatArray:
    sigmoid: FloatArray = 0.5 * (1 + np.tanh(0.5 * values))
    return sigmoid


def _gelu(values: FloatArray) -> FloatArray:
    """Return Gelu by its tanh approximation, which is close enough to compare errors."""
    inner = math.sqrt(2 / math.pi) * (values + 0.044715 * values**3)
    gelu: FloatArray = 0.5 * values * (1 + np.tanh(inner))
    return gelu


def _hard_sigmoid(node: ir.Node) -> Activation:
    alpha = node.attributes.get_float("alpha", 0.2)
    beta = node.attributes.get_float("beta", 0.5)
    return Activation(lambda values: np.clip(alpha * values + beta, 0, 1))


SMOOTH: dict[str, Callable[[ir.Node], Activation]] = {
    "Sigmoid": lambda node: Activation(_sigmoid),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": lambda node: Activation(lambda x: x * np.clip(x / 6 + 0.5, 0, 1)),
    "Gelu": lambda node: Activation(_gelu),
}
