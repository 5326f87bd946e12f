"""Which input of an addition an engine fuses with a convolution, and which one it only adds."""

import onnx_ir as ir

from qconvert.graph import patterns
from qconvert.graph.observed_tensors import CONVOLUTIONS, MOVING, RECTIFIERS
from qconvert.graph.patterns import weight_shape
from qconvert.quantize import checks
from qconvert.quantize.checks import activation_slots, linear_layer
from qconvert.quantize.plan import LayerPlan
from qconvert.quantize.scheme import OperatorRule, QuantizedNodes, leave_in_float

_FUSED_OPS = RECTIFIERS | {"BatchNormalization", "MaxPool", "Identity"}


def find_residual_slot(node: ir.Node) -> int | None:
    """Return the place of the input that is only added; None where nothing can be fused.

    Where both sides come from a convolution, the one further from the point where they part is
    fused: the other one is the shortcut.
    """
    if len(node.inputs) != 2:
        return None
    behind = [find_convolution_behind(value) for value in node.inputs]
    if behind[0] is None and behind[1] is None:
        return None
    if behind[0] is None or behind[1] is None:
        slot = 0 if behind[0] is None else 1
    else:
        lengths = _branch_lengths(node)
        slot = 0 if lengths[0] < lengths[1] else 1
    # What the other branch is made from cannot wait to be fused with the addition.
    fused = behind[1 - slot]
    before = _distances(node.inputs[slot])
    return None if fused is not None and fused.outputs[0] in before else slot


def find_convolution_behind(value: ir.Value | None) -> ir.Node | None:
    """Return the convolution that makes a tensor, seen through what is fused with it."""
    while value is not None and (node := value.producer()) is not None:
        if node.op_type in CONVOLUTIONS:
            return node
        value = _fused_input(node)
    return None


def _fused_input(node: ir.Node) -> ir.Value | None:
    """Return what a fused operator works on; None where it is not one."""
    if node.op_type in _FUSED_OPS:
        return node.inputs[0]
    if node.op_type in ("Mul", "Add") and len(node.inputs) == 2:
        changing = [each for each in node.inputs if patterns.constant_array(each) is None]
        if len(changing) == 1:
            return changing[0]
        # What a Sigmoid makes of a tensor, times the tensor itself: SiLU.
        for gate, gated in ((0, 1), (1, 0)):
            made, other = node.inputs[gate], node.inputs[gated]
            sigmoid = made.producer() if made is not None else None
            if sigmoid is not None and "Sigmoid" in sigmoid.op_type and sigmoid.inputs[0] is other:
                return other
    return None


def _branch_lengths(node: ir.Node) -> tuple[int, int]:
    """Return how many nodes lie between each input and the nearest one that both come from."""
    first, second = (_distances(value) for value in node.inputs)
    common = first.keys() & second.keys()
    if not common:
        return 0, 0
    nearest = min(common, key=lambda value: (first[value] + second[value], value.name or ""))
    return first[nearest], second[nearest]


def _distances(value: ir.Value | None) -> dict[ir.Value, int]:
    """Return for each tensor before `value` how few nodes lie between the two."""
    found: dict[ir.Value, int] = {}
    level = [value] if value is not None else []
    steps = 0
    while level:
        found.update((each, steps) for each in level)
        made_by = {each.producer() for each in level} - {None}
        before = (each for node in made_by if node is not None for each in node.inputs)
        level = list({each for each in before if each is not None and each not in found})
        steps += 1
    return found


CONVOLUTION_OPS = frozenset({"Conv", "ConvTranspose"})
PRODUCTS = frozenset({"Gemm", "MatMul"})
MIN_CHANNELS = 16  # channels, rows or columns below which integers only cost time
TRANSPARENT = MOVING | RECTIFIERS


def residual_layer(node: ir.Node) -> LayerPlan:
    """Round the branch that the engine does not fuse into the addition."""
    slot = find_residual_slot(node)
    inputs = () if slot is None else (slot,)
    return LayerPlan(node.op_type, inputs=inputs, note="the branch that is not fused is rounded")


def not_tiny(node: ir.Node) -> str:
    """Refuse convolutions with too few channels to fill an integer kernel."""
    shape = weight_shape(node)
    if len(shape) < 3:
        return ""
    group = node.attributes.get_int("group", 1)
    made, read = (shape[0], shape[1]) if node.op_type == "Conv" else (shape[1], shape[0])
    made, read = (made, read) if node.op_type == "Conv" else (made * group, read // group)
    if made >= MIN_CHANNELS and read >= MIN_CHANNELS:
        return ""
    few = f"{read} to {made} channels" + (f" in {group} groups" if group > 1 else "")
    if group > 1:
        keeps = made % 8 == 0 and min(shape[2:]) >= 3
    else:
        square = len(set(shape[2:])) == 1
        wide = made >= MIN_CHANNELS or read >= MIN_CHANNELS or _is_first(node)
        keeps = square and wide and (made % 8 == 0 or read % 8 == 0)
    return (
        ""
        if keeps
        else f"{few} and a {_format_kernel(shape[2:])} kernel are too few for integer kernels"
    )


def not_matrix_vector(node: ir.Node) -> str:
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
    if min(inner, columns) < MIN_CHANNELS:
        return f"a {inner}x{columns} weight is too small for integer kernels"
    return ""


def not_two_activations(node: ir.Node) -> str:
    """Refuse a product of two activations, which engines fuse into attention in float."""
    both = len(activation_slots(node)) == 2
    return "a product of two activations runs fused in float" if both else ""


def has_residual_convolution(node: ir.Node) -> str:
    """Refuse an addition that no convolution feeds, as the residuals of a transformer."""
    lost = find_residual_slot(node) is None
    return "no convolution can be fused with it" if lost else ""


def need_quantized_branch(node: ir.Node, chosen: QuantizedNodes) -> str:
    """Ask that the convolution which the addition is fused with is quantized."""
    slot = find_residual_slot(node)
    fused = find_convolution_behind(node.inputs[1 - slot]) if slot is not None else None
    return "" if chosen.contains(fused) else "the convolution it is fused with is left in float"


def need_quantized_neighbour(node: ir.Node, chosen: QuantizedNodes) -> str:
    """Ask that a quantized operator makes what a pool reads, or reads what it makes."""
    near = chosen.contains(_producer(node.inputs[0])) or _is_consumed(node.outputs[0], chosen)
    return "" if near else "neither what is before it nor what follows is quantized"


def need_quantized_consumer(node: ir.Node, chosen: QuantizedNodes) -> str:
    """Ask that rounding of what a node makes can move in front of it."""
    return "" if _is_consumed(node.outputs[0], chosen) else "nothing that reads it is quantized"


def passthrough_layer(note: str, node: ir.Node) -> LayerPlan:
    """Add nothing: the builder carries the rounding at the next operator through this one."""
    return LayerPlan(node.op_type, note=note)


def _is_first(node: ir.Node) -> bool:
    return node.inputs[0] is not None and node.inputs[0].is_graph_input()


def _format_kernel(sizes: tuple[int, ...]) -> str:
    return "x".join(map(str, sizes))


def _producer(value: ir.Value | None) -> ir.Node | None:
    """Return what makes a tensor, seen through what is fused or only moves values."""
    node = value.producer() if value is not None else None
    while node is not None and node.op_type in TRANSPARENT and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    return node


def _is_consumed(value: ir.Value, chosen: QuantizedNodes) -> bool:
    return any(
        (node.op_type in CONVOLUTION_OPS | PRODUCTS and chosen.contains(node))
        or (
            node.op_type in MOVING | {"Concat"}
            and any(_is_consumed(made, chosen) for made in node.outputs)
        )
        for node, _ in value.uses()
    )


RULES = (
    OperatorRule(
        CONVOLUTION_OPS,
        linear_layer,
        checks=(checks.constant_weight, checks.float_activations, not_tiny),
    ),
    OperatorRule(
        PRODUCTS,
        linear_layer,
        checks=(
            checks.float_activations,
            checks.unscaled_product,
            not_two_activations,
            checks.matrix_weight,
            not_matrix_vector,
        ),
    ),
    OperatorRule(
        frozenset({"Add"}),
        residual_layer,
        checks=(checks.two_activations, checks.float_activations, has_residual_convolution),
        needs=(need_quantized_branch,),
    ),
    OperatorRule(
        frozenset({"AveragePool", "GlobalAveragePool"}),
        lambda node: LayerPlan(node.op_type, inputs=(0,)),
        checks=(checks.float_activations,),
        needs=(need_quantized_neighbour,),
    ),
    OperatorRule(
        frozenset({"MaxPool"}),
        lambda node: passthrough_layer("passes the scale of its input through", node),
        needs=(need_quantized_consumer,),
    ),
    OperatorRule(
        frozenset({"Concat"}),
        lambda node: passthrough_layer("its inputs share one scale", node),
        checks=(checks.float_activations,),
        needs=(need_quantized_consumer,),
    ),
    leave_in_float("Softmax", "LayerNormalization", "Gelu", why="it loses too much in 8 bits"),
    leave_in_float("If", "Loop", "Scan", why="it holds a graph of its own, which is left as it is"),
)
