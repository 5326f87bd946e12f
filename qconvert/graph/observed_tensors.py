"""Which tensors calibration looks at: every one that a backend could quantize, each once.

The choice does not depend on a backend, so that changing the backend runs no image again. A tensor
that only moves values (`Reshape`, `MaxPool`, ...) is represented by the tensor it moves. A tensor
whose only reader is a fused `Relu` or `Clip` is not looked at: engines never round there, looking
would break the fusion, and what overflows there in FP16 is clipped right after.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from qconvert.core.scales import MAX_MAGNITUDE
from qconvert.graph import patterns
from qconvert.graph.patterns import constant_array

CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})
PRODUCTS = frozenset({"Gemm", "MatMul", "Einsum"})
POOLS = frozenset({"AveragePool", "GlobalAveragePool", "LpPool", "ReduceMean"})
COMBINATIONS = frozenset({"Add", "Sub", "Mul", "Div", "Sum", "Concat", "Pad", "Resize"})
RECTIFIERS = frozenset({"Relu", "Clip", "LeakyRelu", "PRelu", "Elu", "Selu", "Celu", "HardSwish"})
SATURATING = frozenset({"Sigmoid", "HardSigmoid", "Tanh", "Gelu", "Mish", "Swish", "Softmax"})
NORMS = frozenset({"BatchNormalization", "InstanceNormalization", "GroupNormalization"})
ROW_NORMS = frozenset({"LayerNormalization", "RMSNormalization"})

QUANTIZABLE = (
    CONVOLUTIONS
    | PRODUCTS
    | POOLS
    | COMBINATIONS
    | RECTIFIERS
    | SATURATING
    | {"BatchNormalization"}
)
CHANNEL_FIRST = CONVOLUTIONS | NORMS | {"AveragePool", "GlobalAveragePool", "MaxPool"}
CHANNEL_LAST = PRODUCTS | ROW_NORMS
# What comes out of them are values of their first input and no others.
RESHAPING = frozenset({"Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Identity"})
SELECTING = frozenset({"Slice", "Split", "Gather", "MaxPool", "GlobalMaxPool", "Dropout"})
COPYING = frozenset({"Expand", "Tile", "DepthToSpace", "SpaceToDepth"})
MODE, COORDINATES = "mode", "coordinate_transformation_mode"
RESIZE_ATTRIBUTES = (MODE, COORDINATES)
MOVING = RESHAPING | SELECTING | COPYING

FUSING = CONVOLUTIONS | {"Gemm", "MatMul", "Add", "BatchNormalization"}
FUSED_READERS = frozenset({"Relu", "Clip"})
# They answer with sizes and places, not with values of the image.
SHAPE_OPS = frozenset({"Shape", "Size", "NonZero", "NonMaxSuppression"})
DATA_DEPENDENT = frozenset({"NonZero", "NonMaxSuppression", "Compress", "Unique"})
NO_BATCH_AXIS = "its first axis is not the batch"
# Above this many channels a tensor is a flattened map; its channels mean nothing to a consumer.
MAX_CHANNELS = 8192

FLOAT_TYPES = frozenset(
    {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE}
)


@dataclass(frozen=True)
class ObservedTensors:
    """The tensors to look at, in graph order.

    `counted` could be quantized; `bounded` could not, but their extremes decide about FP16.
    `shares` names for each tensor that only moves values the tensor whose range it has.
    `skipped` gives the reason for each other tensor of real numbers.
    """

    quantizable: tuple[str, ...]
    range_only: tuple[str, ...]
    aliases: dict[str, str]
    skipped: dict[str, str]
    one_image_per_run: bool


def find_observed_tensors(model: ir.Model) -> ObservedTensors:
    """Choose the tensors, and whether a run must hold one image for each to be told apart."""
    batch = _batch_dimension(model.graph)
    live = list(_live_tensors(model.graph))
    known = set(live)
    wanted = {
        _alias_source(value, known)
        for node in model.graph
        if node.op_type in QUANTIZABLE
        for value in (*node.inputs, *node.outputs)
        if value in known
    }
    unsized = _data_dependent_tensors(model.graph)
    lost = any(_reason_to_skip(value, batch, unsized) == NO_BATCH_AXIS for value in wanted)
    one_at_a_time = batch in (1, None) or (lost and not isinstance(batch, int))
    counted: list[str] = []
    bounded: list[str] = []
    shares, skipped = {}, {}
    for value in live:
        source = _alias_source(value, known)
        why = _reason_to_skip(source, 1 if one_at_a_time else batch, unsized)
        if why:
            skipped[_name(value)] = why
        elif source is not value:
            shares[_name(value)] = _name(source)
        else:
            (counted if value in wanted else bounded).append(_name(value))
    return ObservedTensors(tuple(counted), tuple(bounded), shares, skipped, one_at_a_time)


def channel_axis(value: ir.Value) -> int | None:
    """Return the axis of a tensor's channels as its neighbours use it, if it has any."""
    if value.shape is None or len(value.shape) < 2:
        return None
    around = {use.node.op_type for use in value.uses()}
    producer = value.producer()
    if producer is not None:
        around.add(producer.op_type)
    first = around & CHANNEL_FIRST or (len(value.shape) == 4 and not around & CHANNEL_LAST)
    axis = 1 if first else len(value.shape) - 1
    size = value.shape[axis]
    return axis if isinstance(size, int) and 0 < size <= MAX_CHANNELS else None


def _live_tensors(graph: ir.Graph) -> Iterator[ir.Value]:
    """Yield, in graph order, the tensors of real numbers that change with the image."""
    known = {value for value in graph.inputs if not value.is_initializer()}
    yield from (value for value in graph.inputs if value in known and _is_float(value))
    for node in graph:
        reads = any(value in known for value in (*node.inputs, *_captured_values(node)))
        if not reads or node.op_type in SHAPE_OPS:
            continue
        known.update(node.outputs)
        for value in node.outputs:
            if value.name and _is_float(value) and (value.uses() or value.is_graph_output()):
                yield value


def _captured_values(node: ir.Node) -> Iterator[ir.Value]:
    """Yield what the bodies of an `If`, `Loop` or `Scan` read from the graph around them."""
    for attribute in node.attributes.values():
        if attribute.type is ir.AttributeType.GRAPH:
            for inner in attribute.as_graph().all_nodes():
                yield from (value for value in inner.inputs if value is not None)


def _is_float(value: ir.Value) -> bool:
    return is_numeric(value) and (value.dtype is None or value.dtype in FLOAT_TYPES)


def is_numeric(value: ir.Value) -> bool:
    """Whether a value may be a tensor of numbers: no text, and no sequence of tensors."""
    many = isinstance(value.type, ir.SequenceType | ir.OptionalType)
    return not many and value.dtype is not ir.DataType.STRING


def _alias_source(value: ir.Value, known: set[ir.Value]) -> ir.Value:
    """Follow a tensor back to the one whose values it holds."""
    while (
        (node := value.producer()) is not None
        and only_moves_values(node)
        and node.inputs[0] in known
    ):
        value = node.inputs[0]
    return value


def only_moves_values(node: ir.Node) -> bool:
    """Whether what comes out of a node are values of its first input and no others."""
    if node.op_type == "Resize":
        # A cubic filter overshoots, the others stay between the values they read.
        # Cropping beyond the edge fills in a value of its own.
        how = {
            name: each.as_string()
            for name, each in node.attributes.items()
            if name in RESIZE_ATTRIBUTES
        }
        return how.get(MODE) != "cubic" and how.get(COORDINATES) != "tf_crop_and_resize"
    return node.op_type in MOVING


def _reason_to_skip(value: ir.Value, batch: int | str | None, unsized: set[ir.Value]) -> str:
    """Say why a tensor cannot or need not be looked at; empty where it can."""
    if value.dtype is None or value.shape is None:
        return "its type and rank are not known"
    if _is_fused(value):
        return "its only reader is fused with the operator that makes it"
    if value in unsized:
        return "its size depends on the values in the image"
    if not len(value.shape):
        return "it is a single number"
    return "" if batch in (1, _dimension(value.shape[0])) else NO_BATCH_AXIS


def _data_dependent_tensors(graph: ir.Graph) -> set[ir.Value]:
    """Return all that follows from tensors whose size is known only after the image was seen."""
    found: set[ir.Value] = set()
    for node in graph:
        if node.op_type in DATA_DEPENDENT or any(value in found for value in node.inputs):
            found.update(node.outputs)
    return found


def _is_fused(value: ir.Value) -> bool:
    producer, reader = value.producer(), patterns.only_reader(value)
    if producer is None or reader is None:
        return False
    return producer.op_type in FUSING and reader.op_type in FUSED_READERS


def _batch_dimension(graph: ir.Graph) -> int | str | None:
    """Return the first dimension of the first input; None where it has no name."""
    for value in graph.inputs:
        if not value.is_initializer() and value.shape is not None and len(value.shape):
            return _dimension(value.shape[0])
    return None


def _dimension(size: int | ir.SymbolicDim) -> int | str | None:
    return size if isinstance(size, int) else size.value


def _name(value: ir.Value) -> str:
    return value.name or ""


def find_masked_tensors(graph: ir.Graph) -> frozenset[str]:
    """Return the names of all tensors that follow from a stored infinity, or what is like one.

    They may be infinite on any image, and nothing is wrong with it.
    """
    found: set[ir.Value] = set()
    for node in graph:
        if any(value in found or _holds_infinity(value) for value in node.inputs):
            found.update(node.outputs)
    return frozenset(value.name or "" for value in found)


def _holds_infinity(value: ir.Value | None) -> bool:
    array = constant_array(value)
    return (
        array is not None
        and array.dtype.kind == "f"
        and bool((np.abs(array) > MAX_MAGNITUDE).any())
    )
