"""Rules for a runtime with integer kernels: results are rounded too, so that chains stay integer.

A Relu or Clip vanishes into the rounding of the operator before it. What only moves values, and
what works value by value, is quantized inside a chain and never to start one.
"""

import onnx_ir as ir

from qconvert.graph.observed import only_moves
from qconvert.quantize import checks
from qconvert.quantize.checks import ACTIVATIONS, activations, fused_activation, linear
from qconvert.quantize.plan import Layer
from qconvert.quantize.scheme import Chosen, Rule, left

# Integer kernels exist for these; the others that only move values run in float.
MOVERS = frozenset(
    {
        *("Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Identity"),
        *("Slice", "Split", "Gather", "MaxPool", "Resize", "DepthToSpace"),
    }
)
PRODUCTS = frozenset({"Gemm", "MatMul"})


def convolution(node: ir.Node) -> Layer:
    """Round what is fused with the convolution in place of its own result."""
    fused = fused_activation(node) is not None
    layer = linear(node)
    return Layer(layer.op, layer.inputs, layer.weight, output=not fused)


def between(node: ir.Node) -> Layer:
    """Round the inputs, and the result unless a Relu or Clip takes that place."""
    fused = fused_activation(node) is not None
    return Layer(node.op_type, inputs=activations(node), output=not fused)


def mover(node: ir.Node) -> Layer:
    """Round input and results alike: what only moves integers needs one scale."""
    note = "has the scale of what it moves"
    return Layer(node.op_type, inputs=(0,), output=True, note=note)


def activation(node: ir.Node) -> Layer:
    """Round the result alone."""
    return Layer(node.op_type, output=True, note="vanishes into the operator before it")


def rounded_activation(node: ir.Node, chosen: Chosen) -> str:
    """Ask that the Relu or Clip fused with a node can be rounded in its place."""
    fused = fused_activation(node)
    lost = fused is not None and not chosen.holds(fused)
    return f"its {fused.op_type} is left in float" if lost and fused is not None else ""


def fused_with_integers(node: ir.Node, chosen: Chosen) -> str:
    """Ask that a Relu or Clip follows an operator that is quantized and has no other reader."""
    made = node.inputs[0]
    producer = made.producer() if made is not None else None
    if producer is None or fused_activation(producer) is not node:
        return "other operators read what it reads"
    if not chosen.holds(producer):
        return "the operator before it is left in float"
    # A product can answer in float by itself, a convolution cannot.
    return inside(node, chosen) if producer.op_type in PRODUCTS else ""


def from_integers(node: ir.Node, chosen: Chosen) -> str:
    """Ask that quantized operators make all that a node reads."""
    made = all(chosen.makes(node.inputs[slot]) for slot in activations(node))
    return "" if made else "what it reads is not made by a quantized operator"


def inside(node: ir.Node, chosen: Chosen) -> str:
    """Ask that a quantized operator reads what a node makes."""
    read = any(chosen.reads(value) for value in node.outputs)
    return "" if read else "no quantized operator reads what it makes"


def movable(node: ir.Node) -> str:
    """Refuse a Resize that makes new values, and a Gather from a constant."""
    if not activations(node):
        return "it reads no activation"
    return "" if only_moves(node) else "it makes values that it does not read"


NO_KERNEL = "ONNX Runtime has no integer kernel for it on the CPU"
RULES = (
    Rule(
        frozenset({"Conv"}),
        convolution,
        checks=(checks.constant_weight, checks.float_activations),
        needs=(rounded_activation,),
    ),
    Rule(
        PRODUCTS,
        linear,
        checks=(
            checks.float_activations,
            checks.plain_product,
            checks.no_attention,
            checks.flat_weight,
        ),
    ),
    Rule(ACTIVATIONS, activation, needs=(fused_with_integers,), follows=True),
    Rule(
        frozenset({"Add", "Mul"}),
        between,
        checks=(checks.two_activations, checks.float_activations),
        needs=(from_integers, inside, rounded_activation),
    ),
    Rule(
        frozenset({"Concat", "AveragePool", "GlobalAveragePool", "Sigmoid", "LeakyRelu"}),
        between,
        checks=(checks.two_activations, checks.float_activations),
        needs=(from_integers, inside, rounded_activation),
    ),
    Rule(
        MOVERS,
        mover,
        checks=(movable, checks.float_activations),
        needs=(from_integers, inside),
        computes=False,
    ),
    left("Softmax", why="8 bits are too few for probabilities"),
    left("LayerNormalization", "InstanceNormalization", "GroupNormalization", why=NO_KERNEL),
    left("ConvTranspose", "Einsum", "LSTM", "GRU", "RNN", "Gelu", "HardSwish", why=NO_KERNEL),
    left("If", "Loop", "Scan", why="it holds a graph of its own, which is left as it is"),
)
