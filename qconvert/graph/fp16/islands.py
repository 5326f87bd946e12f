"""Float32 islands: which nodes stay in float32 when the rest becomes half precision, and why.

float16 ends at 65504 and has 11 bits of precision; bfloat16 has the range of float32.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from qconvert.graph import patterns

# The largest magnitude that calibration measured for each tensor.
Magnitudes = Mapping[str, float]
IslandReasons = dict[ir.Node, str]

FLOAT = ir.DataType.FLOAT
MAX_FINITE = {ir.DataType.FLOAT16: 65504.0, ir.DataType.BFLOAT16: 3.3895313892515355e38}
SMALLEST_FLOAT16 = 2.0**-24  # what bfloat16 rounds to zero, float32 nearly does too
# They accept a tensor of any type without computing with it, so they need no Cast.
TYPE_AGNOSTIC = frozenset({"Cast", "Shape", "Size"})
# Type variables that do not follow the others: the attribute `stash_type` sets that of statistics,
# and the bits of a number are those of one type.
FIXED_TYPES = {"LayerNormalization": frozenset({"U"}), "BitCast": frozenset({"T1", "T2"})}
# In the ONNX standard, but refused by TensorRT for RTX 1.7 or (without inputs) by ONNX Runtime.
UNSUPPORTED_BY_ENGINES = {
    ir.DataType.FLOAT16: frozenset(
        {"Celu", "EyeLike", "HannWindow", "HammingWindow", "BlackmanWindow"}
    ),
    ir.DataType.BFLOAT16: frozenset(
        {"Celu", "ConvTranspose", "GRU", "GlobalLpPool", "HardSwish", "LpNormalization"}
        | {"LpPool", "MeanVarianceNormalization", "Mish"}
    ),
}
# Half of what float16 holds: other images may have larger values than those used for calibration.
FLOAT16_LIMIT = MAX_FINITE[ir.DataType.FLOAT16] / 2.0
# Below this magnitude, half of the values of a tensor have fewer than six binary digits.
FEW_DIGITS = 2.0**-12
# float16 does not hold every whole number above this, so a sum of ones stops growing there.
MAX_EXACT_INTEGER = 2048
# Since these opsets the attribute `stash_type` sets the type in which they accumulate.
STASH_TYPE_SINCE = {"LayerNormalization": 17, "RMSNormalization": 23, "GroupNormalization": 21}
ROOTS = frozenset({"Sqrt", "Pow"})
SCALING = patterns.MOVING | {"ReduceSum", "ReduceMean", "Add", "Mul", "Div", "Max", "Clip"}


class HalfSlots(NamedTuple):
    """The indices of the float32 inputs and outputs of a node that may have a half type."""

    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()


@dataclass(frozen=True)
class HalfTyping:
    """What the opset of a model allows its nodes to do in one half type."""

    model: ir.Model
    half: ir.DataType

    @property
    def opset(self) -> int:
        """The version of ONNX's own operators."""
        return onnx_opset(self.model.opset_imports)

    def slots(self, node: ir.Node) -> HalfSlots:
        """Return the inputs and outputs that may be half; none of a node without a schema."""
        schema = self.schema(node)
        if schema is None:
            return HalfSlots()
        allowed = {
            constraint.type_param_str
            for constraint in schema.type_constraints
            if f"tensor({type_name(self.half)})" in constraint.allowed_type_strs
        } - FIXED_TYPES.get(node.op_type, frozenset())
        inputs = () if patterns.is_standard(node, *TYPE_AGNOSTIC) else node.inputs
        # The output of a Cast from half to float32 stays: its input is the half tensor.
        source = node.inputs[0] if patterns.is_standard(node, "Cast") else None
        outputs = () if source is not None and source.dtype is self.half else node.outputs
        half_slots = []
        for values, formals in ((inputs, schema.inputs), (outputs, schema.outputs)):
            slots = [slot for slot, value in enumerate(values) if is_float32(value)]
            # The last formal parameter of a variadic operator takes all remaining values.
            kinds = {slot: formals[min(slot, len(formals) - 1)].type_str for slot in slots}
            half_slots.append(tuple(slot for slot in slots if kinds[slot] in allowed))
        return HalfSlots(*half_slots)

    def set_type_attributes(self, node: ir.Node) -> None:
        """Set to half what makes the node output float32: an attribute, its default, a value."""
        schema = self.schema(node)
        attributes = schema.attributes if schema is not None else {}
        for name in ("to", "dtype", "output_datatype", "output_dtype"):
            default = attributes[name].default_value.i if name in attributes else None
            if default is not None and node.attributes.get_int(name, default) == FLOAT:
                node.attributes.add(ir.AttrInt64(name, self.half))
        if patterns.is_standard(node, "ConstantOfShape"):
            value = cast_to_half(fill_value(node).numpy(), self.half)
            node.attributes.add(ir.AttrTensor("value", ir.tensor(value)))

    def schema(self, node: ir.Node) -> onnx.defs.OpSchema | None:
        """Return ONNX's schema of a node, if it has one."""
        if not patterns.is_standard(node):
            return None
        try:
            return onnx.defs.get_schema(node.op_type, self.opset, "")
        except onnx.defs.SchemaError:
            return None


def type_name(half: ir.DataType) -> str:
    return half.name.lower()


def onnx_opset(imports: Mapping[str, int]) -> int:
    """Return the opset of ONNX's own operators, 0 where there are none."""
    return imports.get("", imports.get("ai.onnx", 0))


def is_float32(value: ir.Value | None) -> bool:
    return value is not None and isinstance(value.type, ir.TensorType) and value.dtype is FLOAT


def fill_value(node: ir.Node) -> ir.TensorProtocol:
    """Return the tensor that a `ConstantOfShape` repeats."""
    value = node.attributes.get("value")
    return ir.tensor([0.0], dtype=FLOAT) if value is None else value.as_tensor()


def largest_magnitude(array: NDArray[np.generic]) -> float:
    """Return the largest finite magnitude of an array."""
    if array.size == 0:
        return 0.0
    largest = max(abs(float(array.max())), abs(float(array.min())))
    if math.isfinite(largest):
        return largest
    finite = array[np.isfinite(array.astype(np.float32))]
    return float(np.abs(finite).max(initial=0.0))


def cast_to_half(array: NDArray[np.generic], half: ir.DataType) -> NDArray[np.generic]:
    """Return an array in half precision, its finite values clamped to the range of the type."""
    limit = MAX_FINITE[half]
    if largest_magnitude(array) > limit:
        array = np.where(np.isfinite(array), np.clip(array, -limit, limit), array)
    cast: NDArray[np.generic] = array.astype(half.numpy())
    if array.size == 1 and array.any() and not cast.any():
        # A single number is an epsilon that prevents division by zero, so it must not become 0.
        cast[...] = SMALLEST_FLOAT16 if array.max() > 0 else -SMALLEST_FLOAT16
    return cast


def find_islands(typing: HalfTyping, magnitudes: Magnitudes) -> IslandReasons:
    """Return the nodes that stay in float32, in graph order, each with the reason."""
    graph = typing.model.graph
    positions = set(_position_nodes(graph))
    islands: IslandReasons = {}
    for node in graph:
        inputs = () if patterns.is_standard(node, *TYPE_AGNOSTIC) else node.inputs
        handles_float32 = patterns.has_subgraph(node) or any(
            value.type is None or value.dtype is FLOAT
            for value in (*inputs, *node.outputs)
            if value is not None and value.name
        )
        if handles_float32 and (reason := _reason(node, typing, magnitudes)):
            islands[node] = reason
        elif node in positions:
            half = type_name(typing.half)
            islands[node] = f"it computes sizes or positions, and {half} lacks most whole numbers"
    if typing.half is ir.DataType.FLOAT16:
        _add_squares(graph, islands)
    _add_moved_values(graph, islands)
    return {node: islands[node] for node in graph if node in islands}


def describe_overflow(name: str, magnitude: float, half: ir.DataType) -> str:
    return f"{name} reaches {magnitude:.4g}, {type_name(half)} only {MAX_FINITE[half]:.5g}"


def _reason(node: ir.Node, typing: HalfTyping, magnitudes: Magnitudes) -> str:
    """Return why a node cannot be half, or should not be; empty if it can."""
    half = type_name(typing.half)
    if node.op_identifier() in typing.model.functions or patterns.has_subgraph(node):
        return "it holds a graph of its own"
    if typing.schema(node) is None:
        full_name = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        return f"the input and output types of `{full_name}` are unknown"
    for value in (*node.inputs, *node.outputs):
        if value is not None and value.name and not isinstance(value.type, ir.TensorType):
            return f"`{value.name}` is not a tensor, or its type is unknown"
    if node.op_type in UNSUPPORTED_BY_ENGINES[typing.half]:
        return f"engines have no {half} `{node.op_type}`"
    slots = typing.slots(node)
    if not any(slots) and node.op_type not in TYPE_AGNOSTIC:
        return f"`{node.op_type}` has no {half} in opset {typing.opset}"
    reason = _check_constants(node, slots, typing.half)
    if reason or typing.half is ir.DataType.BFLOAT16:
        return reason
    values = [node.inputs[index] for index in slots.inputs]
    values += [node.outputs[index] for index in slots.outputs]
    names = [value.name or "" for value in values if value is not None]
    for name in names:
        if (magnitude := magnitudes.get(name, 0.0)) > FLOAT16_LIMIT:
            return describe_overflow(f"`{name}`", magnitude, ir.DataType.FLOAT16)
    for name in names:
        if 0 < (magnitude := magnitudes.get(name, 0.0)) < FEW_DIGITS:
            return f"`{name}` never exceeds {magnitude:.1e}, where float16 has few digits"
    return _check_sum(node, typing, magnitudes)


def _check_constants(node: ir.Node, slots: HalfSlots, half: ir.DataType) -> str:
    # These compare with their constants: one out of range is as good clamped to the largest number.
    if patterns.is_standard(node, "Clip", "Max", "Min"):
        return ""
    values = {f"`{value.name}`": value for index in slots.inputs if (value := node.inputs[index])}
    constants = {name: patterns.constant_array(value) for name, value in values.items()}
    if patterns.is_standard(node, "ConstantOfShape"):
        constants = {"its value": fill_value(node).numpy()}
    for name, array in constants.items():
        magnitude = 0.0 if array is None else largest_magnitude(array)
        if magnitude > MAX_FINITE[half]:
            return describe_overflow(name, magnitude, half)
    if not patterns.is_standard(node, "QuantizeLinear", "DequantizeLinear"):
        return ""
    scale, quantized = patterns.constant_array(node.inputs[1]), node.inputs[0]
    if quantized is not None and quantized.dtype is ir.DataType.INT32:
        # A quantized bias: its scale is the product of two scales.
        return f"it reads int32, which {type_name(half)} cannot hold"
    if scale is None or np.all((scale.astype(half.numpy()) != 0) | (scale == 0)):
        return ""
    smallest = float(scale[scale != 0].min())
    return f"its scale of {smallest:.4g} would be 0 in {type_name(half)}"


class _Sum(NamedTuple):
    """How many terms an operator adds up, the bound of a term, and what the terms are.

    A `heavy` one stays in float32 if nothing was measured at all.
    """

    length: Callable[[ir.Node], int | None]
    term: Callable[[float], float] = float
    terms: str = "values"
    heavy: bool = True


def _check_sum(node: ir.Node, typing: HalfTyping, magnitudes: Magnitudes) -> str:
    """Return why float16 may be too small for a sum: count * term(magnitude) > FLOAT16_LIMIT."""
    if patterns.is_standard(node, "Softmax", "LogSoftmax"):
        row = _size(node, [node.attributes.get_int("axis", -1)]) or 0
        too_long = row > MAX_EXACT_INTEGER
        return f"its rows of {row} are longer than float16 can count" if too_long else ""
    if patterns.is_standard(node, "Exp"):
        magnitude = _magnitude(node.inputs[0], magnitudes)
        if magnitude is None:
            return "it is exponential, and its range was not measured" if magnitudes else ""
        overflows = _exponential(magnitude) > FLOAT16_LIMIT
        return f"e to the power of {magnitude:.4g} exceeds float16" if overflows else ""
    summed = SUMS.get(node.op_type) if patterns.is_standard(node) else None
    in_float32 = typing.opset >= STASH_TYPE_SINCE.get(node.op_type, math.inf)
    if summed is None or (in_float32 and node.attributes.get_int("stash_type", FLOAT) == FLOAT):
        return ""
    magnitude, count = _magnitude(node.inputs[0], magnitudes), summed.length(node)
    if magnitude is None:
        unknown = magnitudes or summed.heavy
        return "it adds up values whose range was not measured" if unknown else ""
    if count is None:
        return "how many values it adds up is unknown"
    too_large = count * summed.term(magnitude) > FLOAT16_LIMIT
    return f"it adds up {count} {summed.terms} of up to {magnitude:.4g}" if too_large else ""


def _magnitude(value: ir.Value | None, magnitudes: Magnitudes) -> float | None:
    """Return the largest magnitude of a constant, or the one measured; None if unknown."""
    array = patterns.constant_array(value)
    name = value.name if value is not None else None
    return magnitudes.get(name or "") if array is None else largest_magnitude(array)


def _size(node: ir.Node, axes: Sequence[int] | int) -> int | None:
    """Count the values of the first input along axes, or from one on; None if that is dynamic."""
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    if shape is None or not len(shape):
        return None
    axes = range(len(shape))[axes:] if isinstance(axes, int) else axes
    if any(not -len(shape) <= axis < len(shape) for axis in axes):
        return None
    sizes = [size for axis in axes if isinstance(size := shape[axis], int)]
    return math.prod(sizes) if len(sizes) == len(axes) else None


def _group_size(node: ir.Node) -> int | None:
    values = _size(node, 1)
    return None if values is None else values // node.attributes.get_int("num_groups", 1)


def _reduced_size(node: ir.Node) -> int | None:
    """Count along the axes of a Reduce operator: an input, or an attribute in older opsets."""
    axes = list(node.attributes.get_ints("axes", ()))
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        array = patterns.constant_array(node.inputs[1])
        if array is None:
            return None
        axes = [int(axis) for axis in array.ravel()]
    noop: int = node.attributes.get_int("noop_with_empty_axes", 0)
    return 1 if noop and not axes else _size(node, axes or 0)


def _kernel_size(node: ir.Node) -> int | None:
    return math.prod(node.attributes["kernel_shape"].as_ints())


def _exponential(magnitude: float) -> float:
    return math.exp(min(magnitude, 700.0))


_squares = partial(_Sum, term=lambda magnitude: magnitude * magnitude, terms="squares of values")
# Products (`Conv`, `MatMul`, ...) are not listed: every engine accumulates those in float32.
SUMS: dict[str, _Sum] = {
    **dict.fromkeys(("ReduceSum", "ReduceMean", "ReduceL1", "ReduceLogSum"), _Sum(_reduced_size)),
    **dict.fromkeys(("ReduceSumSquare", "ReduceL2"), _squares(_reduced_size)),
    "ReduceLogSumExp": _Sum(_reduced_size, _exponential, "powers of e with exponents"),
    **dict.fromkeys(
        ("LayerNormalization", "RMSNormalization"),
        _squares(lambda node: _size(node, node.attributes.get_int("axis", -1))),
    ),
    "GroupNormalization": _squares(_group_size),
    "InstanceNormalization": _squares(lambda node: _size(node, 2)),
    "MeanVarianceNormalization": _squares(
        lambda node: _size(node, node.attributes.get_ints("axes", (0, 2, 3)))
    ),
    "LpNormalization": _squares(lambda node: _size(node, [node.attributes.get_int("axis", -1)])),
    "LRN": _squares(lambda node: node.attributes["size"].as_int()),
    "GlobalAveragePool": _Sum(lambda node: _size(node, 2), heavy=False),
    "AveragePool": _Sum(_kernel_size, heavy=False),
    "GlobalLpPool": _squares(lambda node: _size(node, 2), heavy=False),
    "LpPool": _squares(_kernel_size, heavy=False),
}


def _position_nodes(graph: ir.Graph) -> Iterator[ir.Node]:
    """Yield the nodes that compute real numbers from the sizes of tensors alone."""
    sizes: set[ir.Value] = set()
    for node in graph:
        inputs = [
            value
            for value in node.inputs
            if value is not None and patterns.constant_array(value) is None
        ]
        outputs_float = any(is_float32(value) for value in node.outputs)
        if outputs_float and not patterns.is_standard(node, "Cast", "Range"):
            inputs = [value for value in inputs if is_float32(value)]
        if patterns.is_standard(node, "Shape", "Size", "Range") or (
            inputs and sizes.issuperset(inputs)
        ):
            sizes.update(node.outputs)
            if outputs_float:
                yield node


def _add_squares(graph: ir.Graph, islands: IslandReasons) -> None:
    """Add the nodes before sums of squares, and after squares up to the root, which is small."""
    for node in graph:
        readers = _readers(node) if node not in islands and _is_square(node) else []
        if readers and all(reader in islands and reader.op_type in SUMS for reader in readers):
            islands[node] = "its squares are added up in float32"
    squares: set[ir.Value | None] = set()
    for node in graph:
        others = [value for value in node.inputs if value not in squares]
        alone = all(value is None or patterns.constant_array(value) is not None for value in others)
        if node in islands and (_is_square(node) or patterns.is_standard(node, "ReduceSumSquare")):
            squares.update(node.outputs)
        elif (
            len(others) < len(node.inputs)
            and alone
            and patterns.is_standard(node, *SCALING, *ROOTS)
        ):
            islands.setdefault(node, "it reads squares, which may exceed float16")
            squares.update(() if patterns.is_standard(node, *ROOTS) else node.outputs)


def _add_moved_values(graph: ir.Graph, islands: IslandReasons) -> None:
    """Add the nodes that only move values from one float32 node to others."""
    before_islands: set[ir.Node] = set(islands)
    for node in reversed(graph):
        readers = _readers(node)
        if (
            patterns.is_standard(node, *patterns.MOVING)
            and readers
            and before_islands.issuperset(readers)
        ):
            before_islands.add(node)
    for node in graph:
        source = patterns.producer_of(node.inputs[0]) if node.inputs else None
        if node in before_islands and source in islands and is_float32(node.outputs[0]):
            islands.setdefault(node, "it only moves values between float32 nodes")


def _readers(node: ir.Node) -> list[ir.Node]:
    """Return the nodes that read the outputs of a node; none if the graph returns one."""
    if any(value.is_graph_output() for value in node.outputs):
        return []
    return [use.node for value in node.outputs for use in value.uses()]


def _is_square(node: ir.Node) -> bool:
    if patterns.is_standard(node, "Mul"):
        return node.inputs[0] is node.inputs[1]
    exponent = (
        patterns.constant_array(node.inputs[1]) if patterns.is_standard(node, "Pow") else None
    )
    return exponent is not None and bool(np.all(exponent == 2))
