"""What a backend requires of a quantized graph: two integer grids, and rules as data.

A check looks at one node and returns the reason to leave it in float, or nothing.
"""

from collections.abc import Callable, Set
from dataclasses import dataclass
from functools import cached_property

import onnx_ir as ir

from qconvert.core.scales import Grid
from qconvert.graph import patterns
from qconvert.quantize.plan import Kernels, LayerPlan, WeightSlot

QuantizedNodes = Set[ir.Node]

SOFTMAX_OPS = frozenset({"Softmax", "LogSoftmax"})
# Found between a product and its Softmax, and between a Softmax and the next product.
ATTENTION_STEPS = patterns.MOVING | {"Add", "Sub", "Mul", "Div", "Where", "Cast"}
MIN_CHANNELS = 16  # with fewer channels, rows or columns, integers only cost time


@dataclass(frozen=True)
class OperatorRule:
    """How some operators are quantized, unless a check or a need speaks against it.

    A need is a check that depends on the nodes that are quantized so far.
    The plan does not list an operator that only moves values (`computes` is false) if it stays in
    float. One that `fuses_with_producer` follows the operator before it: `--only` need not name it.
    """

    operators: frozenset[str]
    layer: Callable[[ir.Node], LayerPlan]
    checks: tuple[Callable[[ir.Node], str], ...] = ()
    needs: tuple[Callable[[ir.Node, QuantizedNodes], str], ...] = ()
    computes: bool = True
    fuses_with_producer: bool = False


@dataclass(frozen=True)
class Scheme:
    """The quantization that a backend requires; operators in `shared_scale` use one scale each.

    With `portable`, pairs of weights are limited (`quantize.pairs`). Weight-only formats have a
    scale for each `group` of inputs, None for one of all inputs of an output; `kernels` says whose
    operators read the weights.
    """

    name: str
    activations: Grid
    weights: Grid
    integer_bias: bool
    rules: tuple[OperatorRule, ...]
    shared_scale: frozenset[str] = frozenset()
    portable: bool = False
    group: int | None = None
    kernels: Kernels = "onnx"

    @cached_property
    def rules_by_operator(self) -> dict[str, OperatorRule]:
        """The rule of each operator."""
        return {op: rule for rule in self.rules for op in rule.operators}


def leave_in_float(*operators: str, why: str) -> OperatorRule:
    """Return a rule that leaves operators in float, with the reason that users read."""
    return OperatorRule(
        frozenset(operators), lambda node: LayerPlan(node.op_type), checks=(lambda node: why,)
    )


SUBGRAPHS = leave_in_float(
    "If", "Loop", "Scan", why="it holds a graph of its own, which is left as it is"
)


def constant_weight(node: ir.Node) -> str:
    """Refuse a weight that the graph computes, or that is not float32."""
    weight = node.inputs[1]
    if weight is None or patterns.constant_array(weight) is None:
        return "its weight is not constant"
    return "" if weight.dtype is ir.DataType.FLOAT else f"its weight is {_type_name(weight)}"


def unscaled_product(node: ir.Node) -> str:
    """Refuse a Gemm that scales or transposes its input, which no integer kernel does."""
    if node.op_type != "Gemm":
        return ""
    scaled = any(node.attributes.get_float(name, 1.0) != 1.0 for name in ("alpha", "beta"))
    transposed = node.attributes.get_int("transA", 0)
    return "it scales or transposes its input" if scaled or transposed else ""


def matrix_weight(node: ir.Node) -> str:
    """Refuse a stack of weight matrices."""
    shape = node.inputs[1].shape if node.inputs[1] is not None else None
    is_matrix = shape is not None and len(shape) == 2
    return "" if is_matrix or len(activation_slots(node)) == 2 else "its weight is not one matrix"


def float_activations(node: ir.Node) -> str:
    """Refuse activations that are not float32, such as integers or half precision."""
    for slot in activation_slots(node):
        value = node.inputs[slot]
        if value is None or value.dtype is not ir.DataType.FLOAT:
            return f"it reads {_type_name(value)}"
    return ""


def two_activations(node: ir.Node) -> str:
    """Refuse an operator with a constant input."""
    has_constant = len(activation_slots(node)) < len(node.inputs)
    return "one of its inputs is constant" if has_constant else ""


def not_attention(node: ir.Node) -> str:
    """Refuse products that compute the scores of a Softmax, or use its probabilities."""
    if len(activation_slots(node)) < 2:
        return ""
    source = patterns.producer_of(node.inputs[0], *ATTENTION_STEPS)
    attends = source is not None and source.op_type in SOFTMAX_OPS
    # Visit each node once: a chain of n sums that read a tensor twice has 2**n paths.
    visited: set[ir.Node] = set()
    pending = [node]
    while pending and not attends:
        readers = {use.node for use in pending.pop().outputs[0].uses()} - visited
        attends = any(reader.op_type in SOFTMAX_OPS for reader in readers)
        visited |= readers
        pending += [reader for reader in readers if reader.op_type in ATTENTION_STEPS]
    return "attention scores and probabilities need more than 8 bits" if attends else ""


def not_expectation(node: ir.Node) -> str:
    """Refuse a convolution that weighs numbers by a Softmax, as heads regress sides of boxes."""
    source = patterns.producer_of(node.inputs[0], *patterns.MOVING)
    is_softmax = source is not None and source.op_type in SOFTMAX_OPS
    return "8 bits are too few for a mean by probabilities" if is_softmax else ""


def linear_layer(node: ir.Node) -> LayerPlan:
    """Quantize a convolution or a product: input and weight, or two activations."""
    slots = activation_slots(node)
    if node.op_type in ("Gemm", "MatMul") and len(slots) == 2:
        return LayerPlan(node.op_type, inputs=slots)
    return LayerPlan(node.op_type, inputs=(0,), weight=WeightSlot(1, patterns.output_axis(node)))


def activation_slots(node: ir.Node) -> tuple[int, ...]:
    """Return the indices of the inputs that change with the image; never of biases or limits."""
    most = 2 if node.op_type in patterns.WEIGHTED else len(node.inputs)
    most = 1 if node.op_type in patterns.MOVING | {"Clip"} else most
    return tuple(
        slot
        for slot, value in enumerate(node.inputs[:most])
        if value is not None and patterns.constant_array(value) is None
    )


def _type_name(value: ir.Value | None) -> str:
    dtype = value.dtype if value is not None else None
    return "a tensor of unknown type" if dtype is None else str(dtype).lower()
