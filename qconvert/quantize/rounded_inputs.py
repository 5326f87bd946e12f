"""Rules for an engine builder that fuses by itself: the inputs of heavy operators are rounded.

Results never are, nor anything between a convolution, its normalization and its activation, so
that every fusion stays possible. Of an addition only the branch that is not fused is rounded.
"""

import onnx_ir as ir

from qconvert.graph.observed import MOVING, RECTIFIERS
from qconvert.quantize import checks
from qconvert.quantize.checks import activations, linear, weight_shape
from qconvert.quantize.plan import Layer
from qconvert.quantize.residual import convolution_behind, residual_slot
from qconvert.quantize.scheme import Chosen, Rule, left

CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})
PRODUCTS = frozenset({"Gemm", "MatMul"})
LEAST = 16  # channels, rows or columns below which integers only cost time
PASSED = MOVING | RECTIFIERS


def residual(node: ir.Node) -> Layer:
    """Round the branch that the engine does not fuse into the addition."""
    slot = residual_slot(node)
    inputs = () if slot is None else (slot,)
    return Layer(node.op_type, inputs=inputs, note="the branch that is not fused is rounded")


def not_tiny(node: ir.Node) -> str:
    """Refuse convolutions with too few channels to fill an integer kernel."""
    shape = weight_shape(node)
    if len(shape) < 3:
        return ""
    group = node.attributes.get_int("group", 1)
    made, read = (shape[0], shape[1]) if node.op_type == "Conv" else (shape[1], shape[0])
    made, read = (made, read) if node.op_type == "Conv" else (made * group, read // group)
    if made >= LEAST and read >= LEAST:
        return ""
    few = f"{read} to {made} channels" + (f" in {group} groups" if group > 1 else "")
    if group > 1:
        keeps = made % 8 == 0 and min(shape[2:]) >= 3
    else:
        square = len(set(shape[2:])) == 1
        wide = made >= LEAST or read >= LEAST or _is_first(node)
        keeps = square and wide and (made % 8 == 0 or read % 8 == 0)
    return "" if keeps else f"{few} and a {_by(shape[2:])} kernel are too few for integer kernels"


def not_a_row(node: ir.Node) -> str:
    """Refuse products of a single row or column: time goes into reading, not into multiplying."""
    shape = node.outputs[0].shape
    weight = weight_shape(node)
    if shape is None or len(shape) < 2 or len(weight) != 2:
        return ""
    if all(size == 1 for size in shape[:-1]):
        return "a product of one row (a fixed batch of 1) is no faster in integers"
    inner, columns = weight
    if node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1:
        columns, inner = weight
    if columns == 1:
        return "a product with one column is no faster in integers"
    if min(inner, columns) < LEAST:
        return f"a {inner}x{columns} weight is too small for integer kernels"
    return ""


def one_activation(node: ir.Node) -> str:
    """Refuse a product of two activations, which engines fuse into attention in float."""
    both = len(activations(node)) == 2
    return "a product of two activations runs fused in float" if both else ""


def beside_a_convolution(node: ir.Node) -> str:
    """Refuse an addition that no convolution feeds, as the residuals of a transformer."""
    lost = residual_slot(node) is None
    return "no convolution can be fused with it" if lost else ""


def fused_branch(node: ir.Node, chosen: Chosen) -> str:
    """Ask that the convolution which the addition is fused with is quantized."""
    slot = residual_slot(node)
    fused = convolution_behind(node.inputs[1 - slot]) if slot is not None else None
    return "" if chosen.holds(fused) else "the convolution it is fused with is left in float"


def beside_integers(node: ir.Node, chosen: Chosen) -> str:
    """Ask that a quantized operator makes what a pool reads, or reads what it makes."""
    near = chosen.holds(_maker(node.inputs[0])) or _read(node.outputs[0], chosen)
    return "" if near else "neither what is before it nor what follows is quantized"


def passed_through(node: ir.Node, chosen: Chosen) -> str:
    """Ask that rounding of what a node makes can move in front of it."""
    return "" if _read(node.outputs[0], chosen) else "nothing that reads it is quantized"


def mover(note: str, node: ir.Node) -> Layer:
    """Add nothing: the builder carries the rounding at the next operator through this one."""
    return Layer(node.op_type, note=note)


def _is_first(node: ir.Node) -> bool:
    return node.inputs[0] is not None and node.inputs[0].is_graph_input()


def _by(sizes: tuple[int, ...]) -> str:
    return "x".join(map(str, sizes))


def _maker(value: ir.Value | None) -> ir.Node | None:
    """Return what makes a tensor, seen through what is fused or only moves values."""
    node = value.producer() if value is not None else None
    while node is not None and node.op_type in PASSED and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    return node


def _read(value: ir.Value, chosen: Chosen) -> bool:
    return any(
        (node.op_type in CONVOLUTIONS | PRODUCTS and chosen.holds(node))
        or (
            node.op_type in MOVING | {"Concat"}
            and any(_read(made, chosen) for made in node.outputs)
        )
        for node, _ in value.uses()
    )


RULES = (
    Rule(
        CONVOLUTIONS,
        linear,
        checks=(checks.constant_weight, checks.float_activations, not_tiny),
    ),
    Rule(
        PRODUCTS,
        linear,
        checks=(
            checks.float_activations,
            checks.plain_product,
            one_activation,
            checks.flat_weight,
            not_a_row,
        ),
    ),
    Rule(
        frozenset({"Add"}),
        residual,
        checks=(checks.two_activations, checks.float_activations, beside_a_convolution),
        needs=(fused_branch,),
    ),
    Rule(
        frozenset({"AveragePool", "GlobalAveragePool"}),
        lambda node: Layer(node.op_type, inputs=(0,)),
        checks=(checks.float_activations,),
        needs=(beside_integers,),
    ),
    Rule(
        frozenset({"MaxPool"}),
        lambda node: mover("passes the scale of its input through", node),
        needs=(passed_through,),
    ),
    Rule(
        frozenset({"Concat"}),
        lambda node: mover("its inputs share one scale", node),
        checks=(checks.float_activations,),
        needs=(passed_through,),
    ),
    left("Softmax", "LayerNormalization", "Gelu", why="it loses too much in 8 bits"),
    left("If", "Loop", "Scan", why="it holds a graph of its own, which is left as it is"),
)
