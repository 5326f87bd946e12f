"""Which tensors calibration observes: every one that a backend could quantize, each once.

The choice does not depend on the backend, so a change of backend needs no new calibration. A tensor
that only moves values (`Reshape`, `MaxPool`, ...) is an alias of the tensor it moves. A tensor
whose only reader is a fused `Relu` or `Clip` is not observed: engines never quantize there, an
output there would break the fusion, and what overflows there in FP16 is clipped right after.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from qconvert.core.scales import MAX_MAGNITUDE
from qconvert.graph.patterns import FUSIBLE_ACTIVATIONS, constant_array, only_reader

CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})
PRODUCTS = frozenset({"Gemm", "MatMul", "Einsum"})
RECTIFIERS = frozenset({"Relu", "Clip", "LeakyRelu", "PRelu", "Elu", "Selu", "Celu", "HardSwish"})
QUANTIZABLE = frozenset(
    {"AveragePool", "GlobalAveragePool", "LpPool", "ReduceMean", "BatchNormalization"}
    | {"Add", "Sub", "Mul", "Div", "Sum", "Concat", "Pad", "Resize"}
    | {"Sigmoid", "HardSigmoid", "Tanh", "Gelu", "Mish", "Swish", "Softmax"}
    | (CONVOLUTIONS | PRODUCTS | RECTIFIERS)
)
CHANNEL_FIRST = frozenset(
    {"BatchNormalization", "InstanceNormalization", "GroupNormalization"}
    | {"AveragePool", "GlobalAveragePool", "MaxPool"}
    | CONVOLUTIONS
)
CHANNEL_LAST = PRODUCTS | {"LayerNormalization", "RMSNormalization"}
# Their outputs hold values of their first input and no others.
MOVING = frozenset(
    {"Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Identity"}
    | {"Slice", "Split", "Gather", "MaxPool", "GlobalMaxPool", "Dropout"}
    | {"Expand", "Tile", "DepthToSpace", "SpaceToDepth"}
)
FUSING = CONVOLUTIONS | {"Gemm", "MatMul", "Add", "BatchNormalization"}
# Their outputs are sizes and positions, not values of the image.
SHAPE_OPS = frozenset({"Shape", "Size", "NonZero", "NonMaxSuppression"})
DATA_DEPENDENT = frozenset({"NonZero", "NonMaxSuppression", "Compress", "Unique"})
NO_BATCH_AXIS = "its first axis is not the batch"
# A tensor with more channels than this is a flattened map: its channels mean nothing.
MAX_CHANNELS = 8192

FLOAT_TYPES = frozenset(
    {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE}
)


@dataclass(frozen=True)
class ObservedTensors:
    """The tensors to observe, in graph order.

    `quantizable` tensors could be quantized; of the `range_only` ones FP16 needs the extremes.
    `aliases` maps each tensor that only moves values to the tensor whose range it has.
    `skipped` has the reason for each other tensor of real numbers.
    """

    quantizable: tuple[str, ...]
    range_only: tuple[str, ...]
    aliases: dict[str, str]
    skipped: dict[str, str]
    one_image_per_run: bool


def find_observed_tensors(model: ir.Model) -> ObservedTensors:
    """Choose the tensors, and whether a run must hold a single image, as axes mix images."""
    images = [value for value in model.graph.inputs if not value.is_initializer()]
    shapes = [value.shape for value in images if value.shape is not None and len(value.shape)]
    batch = _dimension(shapes[0][0]) if shapes else None
    sources: dict[ir.Value, ir.Value] = {}
    for value in _activations(model.graph):
        # An activation that only moves values has those of the one before it.
        node = value.producer()
        source = node.inputs[0] if node is not None and only_moves_values(node) else None
        sources[value] = value if source is None else sources.get(source, value)
    candidates = {
        sources[value]
        for node in model.graph
        if node.op_type in QUANTIZABLE
        for value in (*node.inputs, *node.outputs)
        if value in sources
    }
    dynamic = _downstream(model.graph, lambda node: node.op_type in DATA_DEPENDENT)
    mixed = any(_reason_to_skip(value, batch, dynamic) == NO_BATCH_AXIS for value in candidates)
    one_image = batch in (1, None) or (mixed and not isinstance(batch, int))
    quantizable: list[str] = []
    range_only: list[str] = []
    aliases, skipped = {}, {}
    for value, source in sources.items():
        name = value.name or ""
        if reason := _reason_to_skip(source, 1 if one_image else batch, dynamic):
            skipped[name] = reason
        elif source is not value:
            aliases[name] = source.name or ""
        else:
            (quantizable if value in candidates else range_only).append(name)
    return ObservedTensors(tuple(quantizable), tuple(range_only), aliases, skipped, one_image)


def channel_axis(value: ir.Value) -> int | None:
    """Return the axis of a tensor's channels as its neighbours use it, if it has any."""
    if value.shape is None or len(value.shape) < 2:
        return None
    nodes = (value.producer(), *(use.node for use in value.uses()))
    neighbours = {node.op_type for node in nodes if node is not None}
    first = neighbours & CHANNEL_FIRST or (len(value.shape) == 4 and not neighbours & CHANNEL_LAST)
    axis = 1 if first else len(value.shape) - 1
    size = value.shape[axis]
    return axis if isinstance(size, int) and 0 < size <= MAX_CHANNELS else None


def is_numeric(value: ir.Value) -> bool:
    """Whether a value may be a tensor of numbers: not text, and not a sequence of tensors."""
    container = isinstance(value.type, ir.SequenceType | ir.OptionalType)
    return not container and value.dtype is not ir.DataType.STRING


def only_moves_values(node: ir.Node) -> bool:
    """Whether the outputs of a node hold values of its first input and no others."""
    if node.op_type != "Resize":
        return node.op_type in MOVING
    # A cubic filter overshoots, and cropping beyond the edge fills in another value.
    mode = node.attributes.get_string("mode", "")
    coordinates = node.attributes.get_string("coordinate_transformation_mode", "")
    return mode != "cubic" and coordinates != "tf_crop_and_resize"


def find_masked_tensors(graph: ir.Graph) -> frozenset[str]:
    """Return the names of all tensors that depend on a stored infinity, such as a Softmax mask.

    Some graphs use the smallest float32 in its place. These tensors may be infinite on any image,
    which is valid.
    """

    def reads_infinity(node: ir.Node) -> bool:
        arrays = [constant_array(value) for value in node.inputs]
        floats = [array for array in arrays if array is not None and array.dtype.kind == "f"]
        return any((np.abs(array) > MAX_MAGNITUDE).any() for array in floats)

    return frozenset(value.name or "" for value in _downstream(graph, reads_infinity))


def _downstream(graph: ir.Graph, starts: Callable[[ir.Node], bool]) -> set[ir.Value]:
    """Return the outputs of the nodes where something starts, and all that depend on them."""
    values: set[ir.Value] = set()
    for node in graph:
        if starts(node) or any(value in values for value in node.inputs):
            values.update(node.outputs)
    return values


def _activations(graph: ir.Graph) -> Iterator[ir.Value]:
    """Yield, in graph order, the tensors of real numbers that change with the image."""
    changing = {value for value in graph.inputs if not value.is_initializer()}
    yield from (value for value in graph.inputs if value in changing and _is_float(value))
    for node in graph:
        read = set(node.inputs)
        for attribute in node.attributes.values():
            # The bodies of an `If`, `Loop` or `Scan` read from the graph around them.
            if attribute.type is ir.AttributeType.GRAPH:
                read.update(*(inner.inputs for inner in attribute.as_graph().all_nodes()))
        if changing.isdisjoint(read) or node.op_type in SHAPE_OPS:
            continue
        changing.update(node.outputs)
        for value in node.outputs:
            if value.name and _is_float(value) and (value.uses() or value.is_graph_output()):
                yield value


def _is_float(value: ir.Value) -> bool:
    return is_numeric(value) and (value.dtype is None or value.dtype in FLOAT_TYPES)


def _reason_to_skip(value: ir.Value, batch: int | str | None, dynamic: set[ir.Value]) -> str:
    """Return why a tensor cannot or need not be observed; empty if it is."""
    if value.dtype is None or value.shape is None:
        return "its type or rank is unknown"
    producer, reader = value.producer(), only_reader(value)
    operators = [node.op_type for node in (producer, reader) if node is not None]
    if len(operators) == 2 and operators[0] in FUSING and operators[1] in FUSIBLE_ACTIVATIONS:
        return "its only reader is fused with the operator that computes it"
    if value in dynamic:
        return "its size depends on the values in the image"
    if not len(value.shape):
        return "it is a single number"
    return "" if batch in (1, _dimension(value.shape[0])) else NO_BATCH_AXIS


def _dimension(size: int | ir.SymbolicDim) -> int | str | None:
    return size if isinstance(size, int) else size.value
