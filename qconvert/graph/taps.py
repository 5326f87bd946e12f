"""Add outputs to a copy of a model: sums, extremes and samples of its tensors.

Everything is reduced inside the graph, so that no whole activation is copied out.
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
from qconvert.graph.patterns import add_constant, computed_values

FLOAT = ir.DataType.FLOAT
PREFIX = "qconvert."
PHASE = "qconvert.phase"
# At least two thirds of this many values are sampled per tensor and image, and less than twice.
SAMPLES_PER_TENSOR = 2048


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
            self.constants[name] = add_constant(self.graph, name, array)
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
    taps: tuple[TensorTap, ...]
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
    values = {value.name: value for value in (*model.graph.inputs, *computed_values(model.graph))}
    if not exact:
        # The input for the index of each image.
        first = next(value.shape for value in model.graph.inputs if value.shape is not None)
        shape = ir.Shape([1 if observed.one_image_per_run else first[0], 1])
        builder.phase = ir.val(PHASE, ir.DataType.INT64, shape)
        model.graph.inputs.append(builder.phase)
    taps = [builder.tap(values[name], sampled=True) for name in observed.quantizable]
    taps += [builder.tap(values[name], sampled=False) for name in observed.range_only]
    model.graph.outputs[:] = builder.outputs
    return TappedModel(model, tuple(taps), None if exact else PHASE, observed)


@dataclass
class _CalibrationTaps(ReductionTaps):
    """Outputs for calibration; a run with one image may have any first axis."""

    one_image_per_run: bool = False
    phase: ir.Value | None = None
    positions: dict[int, ir.Value] = field(default_factory=dict)

    def tap(self, value: ir.Value, *, sampled: bool) -> TensorTap:
        """Add the outputs of one tensor."""
        tensor, axis, value = str(value.name), channel_axis(value), self.as_float32(value)
        flat = self.node("Flatten", value, axis=0 if self.one_image_per_run else 1)
        size = self.node("Shape", flat, start=1, end=2)
        low, high, mean = self._reductions(value, flat, axis)
        sample = None
        if sampled:
            if self.phase is None:
                drawn = self.node("Identity", flat)
            else:
                positions = self._positions(value, size, self.phase)
                drawn = self.node("GatherElements", flat, positions, axis=1)
            sample = self.output(drawn, f"qconvert.sample.{tensor}")
        return TensorTap(
            tensor,
            axis,
            low=self.output(low, f"qconvert.low.{tensor}"),
            high=self.output(high, f"qconvert.high.{tensor}"),
            mean=self.output(mean, f"qconvert.mean.{tensor}"),
            size=self.output(size, f"qconvert.size.{tensor}", ir.DataType.INT64),
            sample=sample,
        )

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
