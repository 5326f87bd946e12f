"""Attribute the error of a rewritten network to its layers, in one graph with a float twin.

The network is fed with the tensors of the reference besides its own inputs. Beside it stands every
layer once more, reading the reference's tensors in place of what the layers before made. The error
of the network at a tensor is the one that arrives there; the error of the copy is the one that this
layer makes alone. All outputs are sums over a batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from qconvert.graph.fp16.convert import emulate_half
from qconvert.graph.observed_tensors import find_observed_tensors, is_numeric
from qconvert.graph.patterns import constant_array, has_subgraph
from qconvert.graph.taps import FLOAT, ReductionTaps

OUTPUT_PREFIX = "qconvert.output."
REFERENCE_PREFIX = "qconvert.reference."
CONVERSIONS = frozenset({"QuantizeLinear", "DequantizeLinear", "Cast"})
HALF_PRECISIONS = {ir.DataType.FLOAT16: "fp16", ir.DataType.BFLOAT16: "bf16"}


def comparable_tensors(reference: ir.Model, model: ir.Model) -> list[str]:
    """Return the tensors that both networks have, in the order of the reference."""
    observed = find_observed_tensors(reference)
    outputs = (value.name or "" for value in reference.graph.outputs)
    names = {*observed.quantizable, *outputs} - {*observed.aliases}
    names &= values_by_name(model.graph).keys()
    return [
        name
        for name, value in values_by_name(reference.graph).items()
        if name in names and is_numeric(value) and not _is_conversion(value)
    ]


def values_by_name(graph: ir.Graph) -> dict[str, ir.Value]:
    """Return the inputs and the outputs of all nodes by name, in the order of the graph."""
    inputs = [value for value in graph.inputs if value.name not in graph.initializers]
    outputs = (value for node in graph for value in node.outputs)
    return {value.name: value for value in (*inputs, *outputs) if value.name}


def expose_tensors(model: ir.Model, tensors: Sequence[str]) -> ir.Model:
    """Return a copy whose outputs are these tensors as their consumers read them, in float32.

    The outputs are named after the tensors, with `OUTPUT_PREFIX`.
    """
    model = emulate_half(model)
    values = values_by_name(model.graph)
    taps = ReductionTaps(model.graph)
    for name in tensors:
        value = taps.as_float32(as_consumed(values[name]))
        taps.output(taps.node("Identity", value), OUTPUT_PREFIX + name)
    model.graph.outputs[:] = taps.outputs
    return model


def as_consumed(value: ir.Value) -> ir.Value:
    """Return a tensor as its consumers read it: quantized where none reads it as it was made."""
    node = _only_consumer(value)
    while node is not None and node.op_type == "Cast":
        node = _only_consumer(node.outputs[0])
    if node is None or node.op_type != "QuantizeLinear":
        return value
    dequantize = _only_consumer(node.outputs[0])
    if dequantize is None or dequantize.op_type != "DequantizeLinear":
        return value
    return dequantize.outputs[0]


@dataclass(frozen=True)
class ClippingRange:
    """How a tensor is quantized: its integers, the ends of their grid, and the real range.

    An end that stands for zero is left out, as a Relu ends there too. Values further than `radius`
    from `middle` lose more by clipping than any could lose by rounding.
    """

    integers: ir.Value
    ends: tuple[int, ...]
    middle: float
    radius: float


def clipping_range(value: ir.Value) -> ClippingRange | None:
    """Return how a tensor is quantized, None where it is not, or is per channel."""
    node = _quantize_node(value)
    if node is None:
        return None
    scale = constant_array(_before_cast(node.inputs[1]))
    zero_point = constant_array(node.inputs[2]) if len(node.inputs) > 2 else np.zeros((), np.uint8)
    if scale is None or zero_point is None or scale.size != 1:
        return None
    if zero_point.dtype.kind not in "iu" or zero_point.dtype.itemsize > 2:
        return None
    limits, zero = np.iinfo(zero_point.dtype.name), int(zero_point.reshape(()))
    step = float(scale.astype(np.float64).reshape(()))
    low, high = (limits.min - zero) * step, (limits.max - zero) * step
    ends = tuple(end for end in (limits.min, limits.max) if end != zero)
    return ClippingRange(node.outputs[0], ends, (low + high) / 2, (high - low + step) / 2)


@dataclass(frozen=True)
class ErrorOutputs:
    """The outputs that describe the error of one tensor; fields after `precision` are their names.

    Each is a sum over all values: of squares of the reference (`signal`), of this network
    (`power`), of the arriving error and of the error this layer makes alone (`made`), and of values
    that saturate or are clipped; None where it does not apply. `precision` is the layer's.
    """

    tensor: str
    precision: str
    signal: str
    power: str
    arriving: str
    made: str | None = None
    saturated: str | None = None
    clipped: str | None = None


@dataclass(frozen=True)
class AttributionModel:
    """A network with its float twin; it takes each reference tensor under `REFERENCE_PREFIX`."""

    model: ir.Model
    tensors: tuple[ErrorOutputs, ...]


def build_attribution_model(model: ir.Model, tensors: Sequence[str]) -> AttributionModel:
    """Return a copy that sums up its errors at these tensors."""
    model = emulate_half(model)
    values = values_by_name(model.graph)
    consumed = {name: as_consumed(values[name]) for name in tensors}
    # An input that is not quantized has no error, and no layer.
    consumed = {name: value for name, value in consumed.items() if value.producer() is not None}
    taps = ReductionTaps(model.graph)
    references = {name: taps.input(REFERENCE_PREFIX + name, values[name]) for name in consumed}
    layers = _IsolatedLayers(
        model.graph, {value: references[name] for name, value in consumed.items()}
    )
    outputs = []
    for name, value in consumed.items():
        reference, cone = references[name], layers.cone(value)
        arriving = taps.node("Sub", taps.as_float32(value), reference)
        made = saturated = clipped = None
        if cone is not None:
            own = taps.node("Sub", taps.as_float32(layers.copy(value, cone)), reference)
            made = taps.sum_of_squares(own, f"made.{name}")
        if grid := clipping_range(value):
            saturated = taps.count_equal(grid.integers, grid.ends, f"saturated.{name}")
            clipped = taps.count_beyond(reference, grid.middle, grid.radius, f"clipped.{name}")
        outputs.append(
            ErrorOutputs(
                name,
                _precision(value, cone),
                signal=taps.sum_of_squares(reference, f"signal.{name}"),
                power=taps.sum_of_squares(taps.as_float32(value), f"power.{name}"),
                arriving=taps.sum_of_squares(arriving, f"arriving.{name}"),
                made=made,
                saturated=saturated,
                clipped=clipped,
            )
        )
    model.graph.outputs[:] = taps.outputs
    return AttributionModel(model, tuple(outputs))


class _IsolatedLayers:
    """Copies layers so that they read the tensors of the reference."""

    def __init__(self, graph: ir.Graph, references: Mapping[ir.Value, ir.Value]) -> None:
        self._graph, self._references = graph, references
        self._position = {node: position for position, node in enumerate(graph)}
        self._dependent = _input_dependent(graph)

    def cone(self, value: ir.Value) -> list[ir.Node] | None:
        """Return the nodes between the tensors of the reference and this one, in their order.

        None where one of them holds a subgraph, which may read anything.
        """
        cone: set[ir.Node] = set()
        waiting = [value.producer()]
        while waiting:
            node = waiting.pop()
            if node is None or node in cone or not self._dependent.intersection(node.outputs):
                continue
            if has_subgraph(node):
                return None
            cone.add(node)
            waiting += [
                source.producer()
                for source in node.inputs
                if source is not None and source not in self._references
            ]
        return sorted(cone, key=self._position.__getitem__)

    def copy(self, value: ir.Value, cone: Sequence[ir.Node]) -> ir.Value:
        """Return the tensor as it is when everything before the layer is exact."""
        copies: dict[ir.Value, ir.Value] = {}
        for node in cone:
            inputs = [self._input(source, copies) for source in node.inputs]
            copy = ir.Node(
                node.domain,
                node.op_type,
                inputs,
                list(node.attributes.values()),
                overload=node.overload,
                num_outputs=len(node.outputs),
            )
            for old, new in zip(node.outputs, copy.outputs, strict=True):
                new.type, new.shape = old.type, old.shape
                copies[old] = new
            self._graph.append(copy)
        return copies.get(value, value)

    def _input(self, value: ir.Value | None, copies: dict[ir.Value, ir.Value]) -> ir.Value | None:
        if value is None:
            return None
        if value not in copies:
            reference = self._references.get(value, value)
            if reference is not value and value.dtype is not FLOAT:
                cast = ir.node("Cast", [reference], {"to": value.dtype})
                self._graph.append(cast)
                copies[value] = reference = cast.outputs[0]
            return reference
        return copies[value]


def _input_dependent(graph: ir.Graph) -> set[ir.Value]:
    """Return the tensors that change with the inputs."""
    dependent = {value for value in graph.inputs if not value.is_initializer()}
    for node in graph:
        if has_subgraph(node) or dependent.intersection(filter(None, node.inputs)):
            dependent.update(node.outputs)
    return dependent


def _precision(value: ir.Value, cone: Sequence[ir.Node] | None) -> str:
    """Return what a layer computes in: integers where anything of it came from integers."""
    producer = value.producer()
    nodes = [*(cone or ()), *([producer] if producer is not None else [])]
    sources = [source.producer() for node in nodes for source in node.inputs if source is not None]
    if any(node is not None and node.op_type == "DequantizeLinear" for node in (*nodes, *sources)):
        return "int8"
    dtypes = [output.dtype for node in nodes for output in node.outputs if output.dtype]
    return next((HALF_PRECISIONS[dtype] for dtype in dtypes if dtype in HALF_PRECISIONS), "fp32")


def _quantize_node(value: ir.Value) -> ir.Node | None:
    """Return the node that quantizes a tensor, for all of its consumers or for some."""
    producer = value.producer()
    if producer is not None and producer.op_type == "DequantizeLinear":
        integers = producer.inputs[0]
        node = integers.producer() if integers is not None else None
        return node if node is not None and node.op_type == "QuantizeLinear" else None
    casts = [use.node.outputs[0] for use in value.uses() if use.node.op_type == "Cast"]
    nodes = (use.node for source in (value, *casts) for use in source.uses())
    return next((node for node in nodes if node.op_type == "QuantizeLinear"), None)


def _only_consumer(value: ir.Value) -> ir.Node | None:
    """Return the node that reads a tensor, if it is the only one and the graph does not output it."""
    consumers = {use.node for use in value.uses()}
    return consumers.pop() if len(consumers) == 1 and not value.is_graph_output() else None


def _before_cast(value: ir.Value | None) -> ir.Value | None:
    producer = value.producer() if value is not None else None
    return producer.inputs[0] if producer is not None and producer.op_type == "Cast" else value


def _is_conversion(value: ir.Value) -> bool:
    producer = value.producer()
    return producer is not None and producer.op_type in CONVERSIONS
