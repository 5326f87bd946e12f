"""A copy of a model that answers with what calibration wants to know of its tensors.

Extremes and means are computed inside the graph, so that no activation is copied out; counts come
from a sample that the graph draws with a fixed stride. The stride starts at a place given by the
number of the image, so the sample of an image depends on neither its batch nor its neighbours.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qconvert.core.errors import QConvertError
from qconvert.core.tensors import TensorTap
from qconvert.graph.observed_tensors import ObservedTensors, channel_axis, find_observed_tensors

PHASE = "qconvert.phase"
# At least two thirds of this many values are drawn from a tensor and image, and less than twice.
SAMPLES_PER_TENSOR = 2048
MIN_OPSET = 18
REDUCTIONS = ("ReduceMin", "ReduceMax", "ReduceMean")


@dataclass(frozen=True)
class TappedModel:
    """The model to run for calibration; `phase` is the input for the images' numbers, if any.

    Its outputs are the taps alone. With `observed.one_at_a_time` a run takes a single image.
    """

    model: ir.Model
    taps: tuple[TensorTap, ...]
    phase: str | None
    observed: ObservedTensors


def add_calibration_taps(model: ir.Model, *, exact: bool = False) -> TappedModel:
    """Return a copy of `model` that answers with its taps; `exact` samples every value."""
    opset = model.graph.opset_imports.get("", 0)
    if opset < MIN_OPSET:
        raise QConvertError(
            f"calibration needs opset {MIN_OPSET} or newer, the model has {opset}",
            hint="`qconvert export` raises the opset",
        )
    model = model.clone()
    observed = find_observed_tensors(model)
    if not observed.quantizable:
        raise QConvertError(
            "no tensor of this model could be quantized",
            details=[f"`{name}`: {why}" for name, why in list(observed.skipped.items())[:5]],
            hint="`qconvert inspect MODEL --nodes` shows what it is made of",
        )
    wiring = _CalibrationTapBuilder(model.graph, one_image_per_run=observed.one_image_per_run)
    values = _values_by_name(model.graph)
    phase = None if exact else wiring.input(PHASE)
    taps = [
        _add_tap(wiring, values[name], sampled=True, phase=phase) for name in observed.quantizable
    ]
    taps += [
        _add_tap(wiring, values[name], sampled=False, phase=None) for name in observed.range_only
    ]
    model.graph.outputs.clear()
    model.graph.outputs.extend(wiring.outputs)
    return TappedModel(model, tuple(taps), PHASE if phase else None, observed)


@dataclass
class _CalibrationTapBuilder:
    """Adds nodes to the end of a graph."""

    graph: ir.Graph
    one_image_per_run: bool  # a run holds one image, whatever the first axis of a tensor is
    outputs: list[ir.Value] = field(default_factory=list)
    constants: dict[str, ir.Value] = field(default_factory=dict)
    sample_positions: dict[int, ir.Value] = field(default_factory=dict)

    def node(self, op: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        """Add a node and return its only output, without a name."""
        made = ir.node(op, inputs, attributes)
        self.graph.append(made)
        return made.outputs[0]

    def integers(self, value: int | list[int]) -> ir.Value:
        """Return a stored constant, each only once."""
        return self.constant(np.array(value, dtype=np.int64), str(value))

    def constant(self, array: NDArray[np.int64], what: str) -> ir.Value:
        """Return a stored array, each only once."""
        name = f"qconvert.constant.{what}"
        if name not in self.constants:
            stored = ir.Value(
                name=name,
                shape=ir.Shape(array.shape),
                type=ir.TensorType(ir.DataType.INT64),
                const_value=ir.tensor(array, name=name),
            )
            self.graph.register_initializer(stored)
            self.constants[name] = stored
        return self.constants[name]

    def input(self, name: str) -> ir.Value:
        """Add an input that takes one integer for each image."""
        first = next(value.shape for value in self.graph.inputs if value.shape is not None)
        images = 1 if self.one_image_per_run else first[0]
        shape, kind = ir.Shape([images, 1]), ir.TensorType(ir.DataType.INT64)
        self.graph.inputs.append(ir.Value(name=name, shape=shape, type=kind))
        return self.graph.inputs[-1]

    def output(self, value: ir.Value, name: str, dtype: ir.DataType = ir.DataType.FLOAT) -> str:
        """Make a value an output of the graph."""
        value.name = name
        value.type = ir.TensorType(dtype)
        self.outputs.append(value)
        return name


def _add_tap(
    wiring: _CalibrationTapBuilder, value: ir.Value, *, sampled: bool, phase: ir.Value | None
) -> TensorTap:
    tensor, axis = str(value.name), channel_axis(value)
    if value.dtype is not ir.DataType.FLOAT:
        shape, value = value.shape, wiring.node("Cast", value, to=ir.DataType.FLOAT)
        value.shape = shape
    flat = wiring.node("Flatten", value, axis=0 if wiring.one_image_per_run else 1)
    size = wiring.node("Shape", flat, start=1, end=2)
    low, high, mean = _reductions(wiring, value, flat, axis)
    sample = None
    if sampled:
        places = (
            _sample_positions(wiring, _values_per_image(wiring, value), size, phase)
            if phase
            else None
        )
        drawn = _draw_sample(wiring, flat, places)
        sample = wiring.output(drawn, f"qconvert.sample.{tensor}")
    return TensorTap(
        tensor,
        axis,
        low=wiring.output(low, f"qconvert.low.{tensor}"),
        high=wiring.output(high, f"qconvert.high.{tensor}"),
        mean=wiring.output(mean, f"qconvert.mean.{tensor}"),
        size=wiring.output(size, f"qconvert.size.{tensor}", ir.DataType.INT64),
        sample=sample,
    )


def _reductions(
    wiring: _CalibrationTapBuilder, value: ir.Value, flat: ir.Value, axis: int | None
) -> tuple[ir.Value, ...]:
    """Return the least, the largest and the mean value of each channel of each image."""
    if axis is None or value.shape is None:
        ones = wiring.integers([1])
        return tuple(wiring.node(op, flat, ones, keepdims=1) for op in REDUCTIONS)
    image_axes = {0} if value.shape[0] == 1 or not wiring.one_image_per_run else set()
    axes = sorted(set(range(len(value.shape))) - image_axes - {axis})
    if not axes:
        return tuple(wiring.node("Identity", flat) for _ in REDUCTIONS)
    over = wiring.integers(axes)
    reduced = tuple(wiring.node(op, value, over, keepdims=0) for op in REDUCTIONS)
    if not wiring.one_image_per_run:
        return reduced
    return tuple(wiring.node("Flatten", each, axis=0) for each in reduced)


def _draw_sample(
    wiring: _CalibrationTapBuilder, flat: ir.Value, places: ir.Value | None
) -> ir.Value:
    if places is None:
        return wiring.node("Identity", flat)
    return wiring.node("GatherElements", flat, places, axis=1)


def _values_per_image(wiring: _CalibrationTapBuilder, value: ir.Value) -> int | None:
    """Return how many values of a tensor an image has, None where only the run tells."""
    assert value.shape is not None, "a tensor of unknown rank is not tapped"
    sizes = list(value.shape)[0 if wiring.one_image_per_run else 1 :]
    known = [size for size in sizes if isinstance(size, int)]
    return math.prod(known) if len(known) == len(sizes) else None


def _sample_positions(
    wiring: _CalibrationTapBuilder, count: int | None, size: ir.Value, phase: ir.Value
) -> ir.Value:
    """Return where to draw: every n-th value; n is odd, so as not to walk along one column.

    Tensors of one size share their places, which matters for small networks of many tensors.
    """
    if count is None:
        return _dynamic_sample_positions(wiring, size, phase)
    if count not in wiring.sample_positions:
        stride = count // (2 * SAMPLES_PER_TENSOR) * 2 + 1
        steps = wiring.constant(np.arange(0, count - stride + 1, stride), f"steps.{count}")
        start = wiring.node("Mod", phase, wiring.integers(stride))
        wiring.sample_positions[count] = wiring.node("Add", start, steps)
    return wiring.sample_positions[count]


def _dynamic_sample_positions(
    wiring: _CalibrationTapBuilder, size: ir.Value, phase: ir.Value
) -> ir.Value:
    """Compute the same places inside the graph, for a size that only the run tells."""
    one, two = wiring.integers([1]), wiring.integers([2])
    halved = wiring.node("Div", size, wiring.integers([2 * SAMPLES_PER_TENSOR]))
    stride = wiring.node("Add", wiring.node("Mul", halved, two), one)
    stop = wiring.node("Add", wiring.node("Sub", size, stride), one)
    ends = [wiring.node("Squeeze", value) for value in (stop, stride)]
    steps = wiring.node("Range", wiring.integers(0), *ends)
    return wiring.node("Add", wiring.node("Mod", phase, stride), steps)


def _values_by_name(graph: ir.Graph) -> dict[str, ir.Value]:
    made = (value for node in graph for value in node.outputs)
    return {value.name: value for value in (*graph.inputs, *made) if value.name}


FLOAT, COUNT_TYPE = ir.DataType.FLOAT, ir.DataType.INT32
PREFIX = "qconvert."


@dataclass
class ReductionTaps:
    """A graph that is being tapped, and the outputs that it gets."""

    graph: ir.Graph
    outputs: list[ir.Value] = field(default_factory=list)
    casts: dict[ir.Value, ir.Value] = field(default_factory=dict)
    constants: dict[str, ir.Value] = field(default_factory=dict)

    @classmethod
    def of(cls, graph: ir.Graph) -> "ReductionTaps":
        """Start without outputs."""
        return cls(graph)

    def node(self, op: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        """Add a node to the end of the graph and return its only output, without a name."""
        made = ir.node(op, inputs, attributes)
        self.graph.append(made)
        return made.outputs[0]

    def input(self, name: str, like: ir.Value) -> ir.Value:
        """Add an input of float32 with as many dimensions as another tensor."""
        shape = like.shape
        sizes = (
            None if shape is None else [each if isinstance(each, int) else None for each in shape]
        )
        value = ir.Value(
            name=name,
            shape=None if sizes is None else ir.Shape(sizes),
            type=ir.TensorType(FLOAT),
        )
        self.graph.inputs.append(value)
        return value

    def output(self, value: ir.Value, name: str, kind: ir.DataType = FLOAT) -> str:
        """Make a value an output of the graph under a name."""
        value.name, value.type = name, ir.TensorType(kind)
        self.outputs.append(value)
        return name

    def as_float32(self, value: ir.Value) -> ir.Value:
        """Return a tensor in float32."""
        if value.dtype is FLOAT:
            return value
        if value not in self.casts:
            self.casts[value] = self.node("Cast", value, to=FLOAT)
        return self.casts[value]

    def sum_of_squares(self, value: ir.Value, name: str) -> str:
        """Answer with the sum of the squares of a tensor."""
        return self.output(self.node("ReduceSumSquare", value, keepdims=0), PREFIX + name)

    def count_equal(self, integers: ir.Value, wanted: Sequence[int], name: str) -> str:
        """Answer with how many integers are one of those wanted."""
        wide = self.node("Cast", integers, to=COUNT_TYPE)
        found = [self.node("Equal", wide, self._integer(each)) for each in wanted]
        both = found[0] if len(found) == 1 else self.node("Or", *found)
        return self._count(both, name)

    def count_beyond(self, value: ir.Value, middle: float, reach: float, name: str) -> str:
        """Answer with how many values are further than `reach` from `middle`."""
        far = self.node("Abs", self.node("Sub", value, self._real(middle)))
        return self._count(self.node("Greater", far, self._real(reach)), name)

    def _count(self, found: ir.Value, name: str) -> str:
        ones = self.node("Cast", found, to=COUNT_TYPE)
        return self.output(self.node("ReduceSum", ones, keepdims=0), PREFIX + name, COUNT_TYPE)

    def _integer(self, number: int) -> ir.Value:
        return self._constant(np.array(number, np.int32), f"integer.{number}")

    def _real(self, number: float) -> ir.Value:
        return self._constant(np.array(number, np.float32), f"real.{number!r}")

    def _constant(self, array: NDArray[np.generic], what: str) -> ir.Value:
        """Return a stored number, each only once."""
        name = f"{PREFIX}{what}"
        if name not in self.constants:
            tensor = ir.tensor(array, name=name)
            stored = ir.Value(
                name=name, shape=ir.Shape([]), type=ir.TensorType(tensor.dtype), const_value=tensor
            )
            self.graph.register_initializer(stored)
            self.constants[name] = stored
        return self.constants[name]
