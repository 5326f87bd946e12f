"""Which tensors calibration observes: every one that a backend could quantize, each once.

The choice does not depend on the backend, so a change of backend needs no new calibration. A tensor
that only moves values (`Reshape`, `MaxPool`, ...) is an alias of the tensor it moves. A tensor
whose only reader is a fused `Relu` or `Clip` is not observed: engines never quantize there, an
output there would break the fusion, and what overflows there in FP16 is clipped right after.

Taps are outputs of a copy of the model: sums, extremes and samples of its tensors. Everything is
reduced inside the graph, so that no whole activation is copied out.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qconvert.core.errors import QConvertError
from qconvert.core.scales import MAX_MAGNITUDE
from qconvert.core.tensors import tap_name
from qconvert.graph import patterns

PRODUCTS = frozenset({"Gemm", "MatMul", "Einsum"})
QUANTIZABLE = frozenset(
    {"AveragePool", "GlobalAveragePool", "LpPool", "ReduceMean", "BatchNormalization"}
    | {"Add", "Sub", "Mul", "Div", "Sum", "Concat", "Pad", "Resize"}
    | {"Sigmoid", "HardSigmoid", "Tanh", "Gelu", "Mish", "Swish", "Softmax"}
    | (patterns.CONVOLUTIONS | PRODUCTS | patterns.RECTIFIERS)
)
CHANNEL_FIRST = frozenset(
    {"BatchNormalization", "InstanceNormalization", "GroupNormalization"}
    | {"AveragePool", "GlobalAveragePool", "MaxPool"}
    | patterns.CONVOLUTIONS
)
CHANNEL_LAST = PRODUCTS | {"LayerNormalization", "RMSNormalization"}
FUSING = patterns.CONVOLUTIONS | {"Gemm", "MatMul", "Add", "BatchNormalization"}
# Their outputs are sizes and positions, not values of the image.
SHAPE_OPS = frozenset({"Shape", "Size", "NonZero", "NonMaxSuppression"})
DATA_DEPENDENT = frozenset({"NonZero", "NonMaxSuppression", "Compress", "Unique"})
NO_BATCH_AXIS = "its first axis is not the batch"
# A tensor with more channels than this is a flattened map: its channels mean nothing.
MAX_CHANNELS = 8192

FLOAT = ir.DataType.FLOAT
PREFIX = "qconvert."
PHASE = "qconvert.phase"
# At least two thirds of this many values are sampled per tensor and image, and less than twice.
SAMPLES_PER_TENSOR = 2048


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
        source = node.inputs[0] if node is not None and patterns.only_moves_values(node) else None
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


def find_masked_tensors(graph: ir.Graph) -> frozenset[str]:
    """Return the names of all tensors that depend on a stored infinity, such as a Softmax mask.

    Some graphs use the smallest float32 in its place. These tensors may be infinite on any image,
    which is valid.
    """

    def reads_infinity(node: ir.Node) -> bool:
        arrays = [patterns.constant_array(value) for value in node.inputs]
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
    return is_numeric(value) and (value.dtype is None or value.dtype in patterns.FLOAT_TYPES)


def _reason_to_skip(value: ir.Value, batch: int | str | None, dynamic: set[ir.Value]) -> str:
    """Return why a tensor cannot or need not be observed; empty if it is."""
    if value.dtype is None or value.shape is None:
        return "its type or rank is unknown"
    producer, reader = value.producer(), patterns.only_reader(value)
    operators = [node.op_type for node in (producer, reader) if node is not None]
    if (
        len(operators) == 2
        and operators[0] in FUSING
        and operators[1] in patterns.FUSIBLE_ACTIVATIONS
    ):
        return "its only reader is fused with the operator that computes it"
    if value in dynamic:
        return "its size depends on the values in the image"
    if not len(value.shape):
        return "it is a single number"
    return "" if batch in (1, _dimension(value.shape[0])) else NO_BATCH_AXIS


def _dimension(size: int | ir.SymbolicDim) -> int | str | None:
    return size if isinstance(size, int) else size.value


@dataclass
class ReductionTaps:
    """A graph that is being tapped, and the outputs added so far."""

    graph: ir.Graph
    outputs: list[ir.Value] = field(default_factory=list)
    casts: dict[ir.Value, ir.Value] = field(default_factory=dict)
    constants: dict[str, ir.Value] = field(default_factory=dict)

    def node(self, op: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        """Append a node to the graph and return its only output, still unnamed."""
        node = ir.node(op, inputs, attributes)
        self.graph.append(node)
        return node.outputs[0]

    def input(self, name: str, like: ir.Value) -> ir.Value:
        """Add a float32 input with the rank and the fixed sizes of another tensor."""
        sizes = like.shape
        shape = sizes and [size if isinstance(size, int) else None for size in sizes]
        self.graph.inputs.append(ir.val(name, FLOAT, shape))
        return self.graph.inputs[-1]

    def output(self, value: ir.Value, name: str, dtype: ir.DataType = FLOAT) -> str:
        """Make a value an output of the graph, under this name."""
        value.name, value.type = name, ir.TensorType(dtype)
        self.outputs.append(value)
        return name

    def constant(self, array: NDArray[np.generic], name: str) -> ir.Value:
        """Return a stored constant; each is stored once."""
        name = PREFIX + name
        if name not in self.constants:
            self.constants[name] = patterns.add_constant(self.graph, name, array)
        return self.constants[name]

    def as_float32(self, value: ir.Value) -> ir.Value:
        """Return a tensor in float32."""
        if value.dtype is FLOAT:
            return value
        if value not in self.casts:
            self.casts[value] = cast = self.node("Cast", value, to=FLOAT)
            cast.type, cast.shape = ir.TensorType(FLOAT), value.shape
        return self.casts[value]

    def sum_of_squares(self, value: ir.Value, name: str) -> str:
        """Output the sum of the squares of a tensor."""
        return self.output(self.node("ReduceSumSquare", value, keepdims=0), PREFIX + name)

    def count_equal(self, integers: ir.Value, limits: Sequence[int], name: str) -> str:
        """Output how many integers equal one of the limits, of which there are one or two."""
        wide = self.node("Cast", integers, to=ir.DataType.INT32)
        hits = [
            self.node("Equal", wide, self.constant(np.array(limit, np.int32), f"integer.{limit}"))
            for limit in limits
        ]
        return self._count(hits[0] if len(hits) == 1 else self.node("Or", *hits), name)

    def count_beyond(self, value: ir.Value, middle: float, radius: float, name: str) -> str:
        """Output how many values are further than `radius` from `middle`."""
        center, limit = (
            self.constant(np.array(number, np.float32), f"real.{number!r}")
            for number in (middle, radius)
        )
        distance = self.node("Abs", self.node("Sub", value, center))
        return self._count(self.node("Greater", distance, limit), name)

    def _count(self, condition: ir.Value, name: str) -> str:
        ones = self.node("Cast", condition, to=ir.DataType.INT32)
        total = self.node("ReduceSum", ones, keepdims=0)
        return self.output(total, PREFIX + name, ir.DataType.INT32)


@dataclass(frozen=True)
class TappedModel:
    """The model to run for calibration; `phase` is its input for the image indices, if any.

    Its outputs are the taps alone. With `observed.one_image_per_run` a run takes a single image.
    """

    model: ir.Model
    tensors: tuple[str, ...]
    phase: str | None
    observed: ObservedTensors


def add_calibration_taps(model: ir.Model, *, exact: bool = False) -> TappedModel:
    """Return a copy of `model` whose outputs are the range, mean and a sample of each tensor.

    The sample is strided: values `index % stride`, `index % stride + stride`, ... of image
    number `index`, so it depends on neither the batch nor the other images in it. With `exact`
    every value is in the sample.
    """
    opset = model.graph.opset_imports.get("", 0)
    if opset < 18:  # the axes of reductions are inputs since then
        raise QConvertError(
            f"calibration needs opset 18 or newer, the model has {opset}",
            hint="`qconvert export` raises the opset",
        )
    model = model.clone()
    observed = find_observed_tensors(model)
    if not observed.quantizable:
        raise QConvertError(
            "no tensor of this model can be quantized",
            details=[f"`{name}`: {why}" for name, why in list(observed.skipped.items())[:5]],
            hint="`qconvert inspect MODEL --nodes` shows its operators",
        )
    builder = _CalibrationTaps(model.graph, one_image_per_run=observed.one_image_per_run)
    values = {
        value.name: value for value in (*model.graph.inputs, *patterns.computed_values(model.graph))
    }
    if not exact:
        # The input for the index of each image.
        first = next(value.shape for value in model.graph.inputs if value.shape is not None)
        shape = ir.Shape([1 if observed.one_image_per_run else first[0], 1])
        builder.phase = ir.val(PHASE, ir.DataType.INT64, shape)
        model.graph.inputs.append(builder.phase)
    tensors = (*observed.quantizable, *observed.range_only)
    for name in tensors:
        builder.tap(values[name], sampled=name in observed.quantizable)
    model.graph.outputs[:] = builder.outputs
    return TappedModel(model, tensors, None if exact else PHASE, observed)


@dataclass
class _CalibrationTaps(ReductionTaps):
    """Outputs for calibration; a run with one image may have any first axis."""

    one_image_per_run: bool = False
    phase: ir.Value | None = None
    positions: dict[int, ir.Value] = field(default_factory=dict)

    def tap(self, value: ir.Value, *, sampled: bool) -> None:
        """Add the outputs of one tensor."""
        tensor, axis, value = str(value.name), channel_axis(value), self.as_float32(value)
        flat = self.node("Flatten", value, axis=0 if self.one_image_per_run else 1)
        size = self.node("Shape", flat, start=1, end=2)
        reductions = self._reductions(value, flat, axis)
        if sampled:
            if self.phase is None:
                drawn = self.node("Identity", flat)
            else:
                positions = self._positions(value, size, self.phase)
                drawn = self.node("GatherElements", flat, positions, axis=1)
            self.output(drawn, tap_name("sample", tensor))
        for statistic, reduced in zip(("low", "high", "mean"), reductions, strict=True):
            self.output(reduced, tap_name(statistic, tensor))
        self.output(size, tap_name("size", tensor), ir.DataType.INT64)

    def _integers(self, value: int | list[int]) -> ir.Value:
        return self.constant(np.array(value, dtype=np.int64), f"constant.{value}")

    def _reductions(self, value: ir.Value, flat: ir.Value, axis: int | None) -> list[ir.Value]:
        """Return the minimum, maximum and mean of each channel of each image."""
        operators = ("ReduceMin", "ReduceMax", "ReduceMean")
        if axis is None or value.shape is None:
            ones = self._integers([1])
            return [self.node(op, flat, ones, keepdims=1) for op in operators]
        remaining = {axis, 0} if value.shape[0] == 1 or not self.one_image_per_run else {axis}
        axes = sorted(set(range(len(value.shape))) - remaining)
        if not axes:
            return [self.node("Identity", flat) for _ in operators]
        over = self._integers(axes)
        reduced = [self.node(op, value, over, keepdims=0) for op in operators]
        if not self.one_image_per_run:
            return reduced
        return [self.node("Flatten", output, axis=0) for output in reduced]

    def _positions(self, value: ir.Value, size: ir.Value, phase: ir.Value) -> ir.Value:
        """Return the positions to sample: phase % stride + [0, stride, 2 * stride, ...].

        The stride is odd, so as not to stay within one column. Tensors of equal size share their
        positions, which matters for small networks of many tensors.
        """
        assert value.shape is not None, "a tensor of unknown rank is not tapped"
        sizes = list(value.shape)[0 if self.one_image_per_run else 1 :]
        fixed = [length for length in sizes if isinstance(length, int)]
        if len(fixed) < len(sizes):
            # The same inside the graph, for a size known only at run time.
            one, two = self._integers([1]), self._integers([2])
            halved = self.node("Div", size, self._integers([2 * SAMPLES_PER_TENSOR]))
            stride = self.node("Add", self.node("Mul", halved, two), one)
            stop = self.node("Add", self.node("Sub", size, stride), one)
            limits = [self.node("Squeeze", value) for value in (stop, stride)]
            offsets = self.node("Range", self._integers(0), *limits)
            return self.node("Add", self.node("Mod", phase, stride), offsets)
        count = math.prod(fixed)
        if count not in self.positions:
            step = count // (2 * SAMPLES_PER_TENSOR) * 2 + 1
            steps = np.arange(0, count - step + 1, step, dtype=np.int64)
            offsets = self.constant(steps, f"constant.steps.{count}")
            start = self.node("Mod", phase, self._integers(step))
            self.positions[count] = self.node("Add", start, offsets)
        return self.positions[count]
