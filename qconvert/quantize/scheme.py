"""What a backend requires of a quantized graph: two integer grids, and rules as data.

A check looks at one node and returns the reason to leave it in float, or nothing.
"""

from collections.abc import Callable, Set
from dataclasses import dataclass, replace
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


# --- ONNX Runtime on the CPU ---
#
# Outputs are quantized too, so that chains of kernels stay integer. A Relu or Clip is absorbed by
# the quantizer behind the operator before it. Operators that move or combine values are quantized
# inside a chain of integers, and never start one.


def chain_layer(node: ir.Node) -> LayerPlan:
    """Quantize inputs, weight and output; a fused Relu or Clip has the output quantizer."""
    layer = LayerPlan(node.op_type, inputs=activation_slots(node))
    layer = linear_layer(node) if node.op_type == "Conv" else layer
    return replace(layer, output=patterns.find_fused_activation(node) is None)


def moves_activation(node: ir.Node) -> str:
    """Refuse a Resize that interpolates new values, and a Gather from a constant."""
    if not activation_slots(node):
        return "it reads no activation"
    return "" if patterns.only_moves_values(node) else "its outputs are not values of its input"


def global_mean(node: ir.Node) -> str:
    """Refuse a mean over other axes than height and width, which is no pool."""
    return "" if patterns.is_global_mean(node) else "it is not the mean over height and width"


def need_quantized_activation(node: ir.Node, quantized: QuantizedNodes) -> str:
    """Require that a fused Relu or Clip can have the output quantizer."""
    fused = patterns.find_fused_activation(node)
    if fused is None or fused in quantized:
        return ""
    return f"its {fused.op_type} is left in float"


def need_quantized_producer(node: ir.Node, quantized: QuantizedNodes) -> str:
    """Require that a Relu or Clip is fused with a quantized operator."""
    producer = patterns.producer_of(node.inputs[0])
    if producer is None or patterns.find_fused_activation(producer) is not node:
        return "other operators read its input"
    if producer not in quantized:
        return "the operator before it is left in float"
    # A product has a kernel with float output, a convolution does not.
    is_product = producer.op_type in ("Gemm", "MatMul")
    return need_quantized_consumer(node, quantized) if is_product else ""


def need_quantized_inputs(node: ir.Node, quantized: QuantizedNodes) -> str:
    """Require that quantized operators compute all activations, or read them quantized anyway."""
    values = [node.inputs[slot] for slot in activation_slots(node)]
    complete = all(
        patterns.producer_of(value) in quantized or _is_weighted_input(value, quantized)
        for value in values
    )
    return "" if complete else "its inputs are not computed by quantized operators"


def _is_weighted_input(value: ir.Value | None, quantized: QuantizedNodes) -> bool:
    """Whether a quantized convolution or product reads a tensor."""
    uses = value.uses() if value is not None else ()
    return any(use.node in quantized and use.node.op_type in patterns.WEIGHTED for use in uses)


def need_quantized_consumer(node: ir.Node, quantized: QuantizedNodes) -> str:
    """Require that a quantized operator reads an output."""
    read = any(use.node in quantized for value in node.outputs for use in value.uses())
    return "" if read else "no quantized operator reads its output"


ORT_CPU_RULES = (
    OperatorRule(
        frozenset({"Conv"}),
        chain_layer,
        checks=(constant_weight, float_activations, not_expectation),
        needs=(need_quantized_activation,),
    ),
    OperatorRule(
        frozenset({"Gemm", "MatMul"}),
        linear_layer,
        checks=(float_activations, unscaled_product, not_attention, matrix_weight),
    ),
    OperatorRule(
        patterns.FUSIBLE_ACTIVATIONS,
        lambda node: LayerPlan(
            node.op_type, output=True, note="absorbed by the operator before it"
        ),
        needs=(need_quantized_producer,),
        fuses_with_producer=True,
    ),
    OperatorRule(
        frozenset({"Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool"})
        | {"Sigmoid", "LeakyRelu", "HardSigmoid", "HardSwish"},
        chain_layer,
        checks=(two_activations, float_activations),
        needs=(need_quantized_inputs, need_quantized_consumer, need_quantized_activation),
    ),
    OperatorRule(
        frozenset({"ReduceMean"}),
        lambda node: LayerPlan(node.op_type, inputs=(0,), output=True),
        checks=(global_mean, float_activations),
        needs=(need_quantized_inputs, need_quantized_consumer, need_quantized_activation),
    ),
    OperatorRule(
        # These have integer kernels; others that only move values run in float.
        frozenset({"Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Identity"})
        | {"Slice", "Split", "Gather", "MaxPool", "Resize", "DepthToSpace"},
        lambda node: LayerPlan(
            node.op_type, inputs=(0,), output=True, note="has the scale of the tensor it moves"
        ),
        checks=(moves_activation, float_activations),
        needs=(need_quantized_inputs, need_quantized_consumer),
        computes=False,
    ),
    leave_in_float("Softmax", why="8 bits are too few for probabilities"),
    leave_in_float(
        *("LayerNormalization", "InstanceNormalization", "GroupNormalization", "ConvTranspose"),
        *("Einsum", "LSTM", "GRU", "RNN", "Gelu"),
        why="ONNX Runtime has no integer kernel for it on the CPU",
    ),
    SUBGRAPHS,
)


# --- TensorRT ---
#
# Its builders fuse by themselves: inputs of heavy operators are quantized. Outputs never are, nor
# anything between a convolution, its normalization and its activation, so that every fusion stays
# possible. Of an Add only the branch that is not fused is quantized.


def residual_layer(node: ir.Node) -> LayerPlan:
    """Quantize the branch that the engine does not fuse with the Add."""
    slot = find_residual_slot(node)
    inputs = () if slot is None else (slot,)
    return LayerPlan(node.op_type, inputs=inputs, note="the branch that is not fused is quantized")


def not_tiny(node: ir.Node) -> str:
    """Refuse convolutions with too few channels to fill an integer kernel."""
    shape, kernel = patterns.weight_shape(node), patterns.weight_shape(node)[2:]
    if not kernel:
        return ""
    group = node.attributes.get_int("group", 1)
    if node.op_type == "Conv":
        outputs, inputs = shape[0], shape[1]
    else:
        outputs, inputs = shape[1] * group, shape[0] // group
    if outputs >= MIN_CHANNELS and inputs >= MIN_CHANNELS:
        return ""
    if group > 1:
        worthwhile = outputs % 8 == 0 and min(kernel) >= 3
    else:
        reads_image = node.inputs[0] is not None and node.inputs[0].is_graph_input()
        wide = max(outputs, inputs) >= MIN_CHANNELS or reads_image
        square = len(set(kernel)) == 1
        worthwhile = square and wide and (outputs % 8 == 0 or inputs % 8 == 0)
    if worthwhile:
        return ""
    channels = f"{inputs} to {outputs} channels" + (f" in {group} groups" if group > 1 else "")
    return f"{channels} and a {'x'.join(map(str, kernel))} kernel are too few for integer kernels"


def no_narrow_groups(node: ir.Node) -> str:
    """Refuse convolutions whose groups TensorRT for RTX fills up with zeros.

    Its INT8 kernels multiply 16 channels at a time. An engine of depthwise convolutions holds 360
    times the bytes of their weights (release 1.7, measured by building them).
    """
    group = node.attributes.get_int("group", 1)
    shape = patterns.weight_shape(node)
    channels = shape[1] if node.op_type == "Conv" else shape[0] // group
    if group == 1 or channels >= MIN_CHANNELS // 4:
        return ""
    return f"TensorRT for RTX pads groups of {channels} channels to {MIN_CHANNELS} in integers"


def not_matrix_vector(node: ir.Node) -> str:
    """Refuse products of a single row or column: they are bound by memory, not by arithmetic."""
    shape, weight = node.outputs[0].shape, patterns.weight_shape(node)
    if shape is None or len(shape) < 2 or len(weight) != 2:
        return ""
    if all(size == 1 for size in shape[:-1]):
        return "a product of one row (a fixed batch of 1) is no faster in integers"
    inner, columns = (
        reversed(weight) if node.op_type == "Gemm" and patterns.is_transposed(node) else weight
    )
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
    """Refuse an Add that no convolution feeds, such as the residuals of a transformer."""
    missing = find_residual_slot(node) is None
    return "no convolution can be fused with it" if missing else ""


def need_quantized_branch(node: ir.Node, quantized: QuantizedNodes) -> str:
    """Require that the convolution with which the Add is fused is quantized."""
    slot = find_residual_slot(node)
    fused = find_convolution_behind(node.inputs[1 - slot]) if slot is not None else None
    return "" if fused in quantized else "the convolution it is fused with is left in float"


def need_quantized_neighbour(node: ir.Node, quantized: QuantizedNodes) -> str:
    """Require that a quantized operator computes the input of a pool, or reads its output."""
    producer = patterns.producer_of(node.inputs[0], *patterns.MOVING, *patterns.RECTIFIERS)
    near = producer in quantized or _is_consumed(node.outputs[0], quantized)
    return "" if near else "neither the operator before it nor one after it is quantized"


def need_quantized_reader(node: ir.Node, quantized: QuantizedNodes) -> str:
    """Require a quantizer behind the output that can move in front of the node."""
    return "" if _is_consumed(node.outputs[0], quantized) else "nothing that reads it is quantized"


def _is_consumed(value: ir.Value, quantized: QuantizedNodes) -> bool:
    """Whether a quantized linear operator reads a tensor, directly or moved."""
    return any(
        (node.op_type in patterns.WEIGHTED and node in quantized)
        or (
            node.op_type in patterns.MOVING | {"Concat"}
            and any(_is_consumed(output, quantized) for output in node.outputs)
        )
        for node, _ in value.uses()
    )


def find_residual_slot(node: ir.Node) -> int | None:
    """Return the input of an Add that is only added; None if nothing can be fused with it.

    An engine computes `relu(conv(x) + shortcut)` in one kernel. If both inputs come from a
    convolution, the one with fewer nodes since the branches parted is the shortcut.
    """
    if len(node.inputs) != 2:
        return None
    convolutions = [find_convolution_behind(value) for value in node.inputs]
    first, second = (_distances(value) for value in node.inputs)
    slot = 0 if convolutions[0] is None else 1
    if None not in convolutions and (common := first.keys() & second.keys()):
        parting = min(common, key=lambda value: (first[value] + second[value], value.name or ""))
        slot = 0 if first[parting] < second[parting] else 1
    fused = convolutions[1 - slot]
    # The shortcut must not depend on the convolution, or it cannot be ready when that is computed.
    depends = fused is not None and fused.outputs[0] in (first, second)[slot]
    return None if fused is None or depends else slot


def find_convolution_behind(value: ir.Value | None) -> ir.Node | None:
    """Return the convolution that computes a tensor, together with operators fused with it."""
    while (node := patterns.producer_of(value)) is not None:
        if node.op_type in patterns.CONVOLUTIONS:
            return node
        value = _fused_input(node)
    return None


def _fused_input(node: ir.Node) -> ir.Value | None:
    """Return the tensor that an operator fused with a convolution reads; None for others."""
    if node.op_type in patterns.RECTIFIERS | {"BatchNormalization", "MaxPool", "Identity"}:
        return node.inputs[0]
    if node.op_type in ("Mul", "Add") and len(node.inputs) == 2:
        activations = [value for value in node.inputs if patterns.constant_array(value) is None]
        if len(activations) == 1:
            return activations[0]
        # SiLU: x * sigmoid(x).
        for gate, value in (node.inputs, reversed(node.inputs)):
            sigmoid = patterns.producer_of(gate)
            if sigmoid is not None and "Sigmoid" in sigmoid.op_type and sigmoid.inputs[0] is value:
                return value
    return None


def _distances(value: ir.Value | None) -> dict[ir.Value, int]:
    """Return for each tensor before `value` the smallest number of nodes between the two."""
    distances = {value: 0} if value is not None else {}
    queue = list(distances)
    for tensor in queue:
        node = tensor.producer()
        for source in node.inputs if node is not None else ():
            if source is not None and source not in distances:
                distances[source] = distances[tensor] + 1
                queue.append(source)
    return distances


TENSORRT_RULES = (
    OperatorRule(
        patterns.CONVOLUTIONS,
        linear_layer,
        (constant_weight, float_activations, not_expectation, not_tiny),
    ),
    OperatorRule(
        frozenset({"Gemm", "MatMul"}),
        linear_layer,
        checks=(
            *(float_activations, unscaled_product, not_two_activations),
            *(matrix_weight, not_matrix_vector),
        ),
    ),
    OperatorRule(
        frozenset({"Add"}),
        residual_layer,
        checks=(two_activations, float_activations, has_residual_convolution),
        needs=(need_quantized_branch,),
    ),
    OperatorRule(
        frozenset({"AveragePool", "GlobalAveragePool"}),
        lambda node: LayerPlan(node.op_type, inputs=(0,)),
        checks=(float_activations,),
        needs=(need_quantized_neighbour,),
    ),
    # No quantizer: the builder moves that of the next operator in front of these two.
    OperatorRule(
        frozenset({"MaxPool"}),
        lambda node: LayerPlan(node.op_type, note="passes the scale of its input through"),
        needs=(need_quantized_reader,),
    ),
    OperatorRule(
        frozenset({"Concat"}),
        lambda node: LayerPlan(node.op_type, note="its inputs share one scale"),
        checks=(float_activations,),
        needs=(need_quantized_reader,),
    ),
    leave_in_float("Softmax", "LayerNormalization", "Gelu", why="it loses too much in 8 bits"),
    SUBGRAPHS,
)

RTX_RULES = (
    replace(TENSORRT_RULES[0], checks=(*TENSORRT_RULES[0].checks, no_narrow_groups)),
    *TENSORRT_RULES[1:],
)
