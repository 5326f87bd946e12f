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
from qconvert.graph.taps import FLOAT, PREFIX, ReductionTaps

OUTPUT_PREFIX = "qconvert.output."
REFERENCE_PREFIX = "qconvert.reference."
CONVERSIONS = frozenset({"QuantizeLinear", "DequantizeLinear", "Cast"})
HALF_PRECISIONS = {ir.DataType.FLOAT16: "fp16", ir.DataType.BFLOAT16: "bf16"}
PRECISIONS = ("int8", *HALF_PRECISIONS.values())


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
class AttributionModel:
    """A network with its float twin; it takes each reference tensor under `REFERENCE_PREFIX`.

    Its outputs are sums over all values of a tensor, named by `error_output`: the squares of the
    reference (`signal`), of this network (`power`), of the error that arrives (`arriving`) and of
    the one this layer makes alone (`made`), and how many values are `saturated` or `clipped`. The
    last three are absent where they do not apply. `precisions` are those of the layers by tensor.
    """

    model: ir.Model
    precisions: Mapping[str, str]


def error_output(kind: str, tensor: str) -> str:
    """Return the name of an output of an attribution model."""
    return f"{PREFIX}{kind}.{tensor}"


def build_attribution_model(model: ir.Model, tensors: Sequence[str]) -> AttributionModel:
    """Return a copy that sums up its errors at these tensors."""
    model = emulate_half(model)
    values = values_by_name(model.graph)
    consumed = {name: as_consumed(values[name]) for name in tensors}
    # An input that is not quantized has no error, and no layer.
    consumed = {name: value for name, value in consumed.items() if value.producer() is not None}
    taps = ReductionTaps(model.graph)
    references = {name: taps.input(REFERENCE_PREFIX + name, values[name]) for name in consumed}
    twins = _add_twin(model.graph, {value: references[name] for name, value in consumed.items()})
    precisions = {}
    for name, value in consumed.items():
        reference, own = references[name], taps.as_float32(value)
        twin = twins.get(value, _Twin(value, frozenset()))
        precisions[name] = next((kind for kind in PRECISIONS if kind in twin.precisions), "fp32")
        taps.sum_of_squares(reference, f"signal.{name}")
        taps.sum_of_squares(own, f"power.{name}")
        taps.sum_of_squares(taps.node("Sub", own, reference), f"arriving.{name}")
        if twin.value is not None:
            error = taps.node("Sub", taps.as_float32(twin.value), reference)
            taps.sum_of_squares(error, f"made.{name}")
        if grid := clipping_range(value):
            taps.count_equal(grid.integers, grid.ends, f"saturated.{name}")
            taps.count_beyond(reference, grid.middle, grid.radius, f"clipped.{name}")
    model.graph.outputs[:] = taps.outputs
    return AttributionModel(model, precisions)


@dataclass(frozen=True)
class _Twin:
    """A tensor as it is when everything before its layer is exact, and what the layer computes in.

    It is None behind a subgraph, which may read anything.
    """

    value: ir.Value | None
    precisions: frozenset[str]


def _add_twin(graph: ir.Graph, references: Mapping[ir.Value, ir.Value]) -> Mapping[ir.Value, _Twin]:
    """Copy every node that depends on the inputs so that it reads the tensors of the reference."""
    nodes = list(graph)
    exact = {
        value: reference if value.dtype is FLOAT else _cast(graph, reference, value.dtype)
        for value, reference in references.items()
    }
    # The tensors that depend on the inputs; the others are their own twins.
    inputs = [value for value in graph.inputs if not value.is_initializer()]
    twins = {value: _Twin(value, frozenset()) for value in inputs}
    for node in nodes:
        sources = [value for value in node.inputs if value is not None]
        layer = {value: twins[value] for value in sources if value in twins and value not in exact}
        precisions = _precisions(node)
        if has_subgraph(node) or any(twin.value is None for twin in layer.values()):
            twins.update(dict.fromkeys(node.outputs, _Twin(None, precisions)))
        elif not twins.keys().isdisjoint(sources):
            read: dict[ir.Value, ir.Value | None]
            read = {value: exact[value] for value in sources if value in exact}
            read |= {value: twin.value for value, twin in layer.items()}
            copy = ir.Node(
                node.domain,
                node.op_type,
                [None if value is None else read.get(value, value) for value in node.inputs],
                list(node.attributes.values()),
                overload=node.overload,
                num_outputs=len(node.outputs),
            )
            graph.append(copy)
            precisions = precisions.union(*(twin.precisions for twin in layer.values()))
            for value, copied in zip(node.outputs, copy.outputs, strict=True):
                copied.type, copied.shape = value.type, value.shape
                twins[value] = _Twin(copied, precisions)
    return twins


def _cast(graph: ir.Graph, value: ir.Value, dtype: ir.DataType | None) -> ir.Value:
    graph.append(node := ir.node("Cast", [value], {"to": dtype}))
    return node.outputs[0]


def _precisions(node: ir.Node) -> frozenset[str]:
    """Return what a node computes in: integers where it reads what came from integers."""
    producers = [value.producer() for value in node.inputs if value is not None]
    integers = any(
        source is not None and source.op_type == "DequantizeLinear" for source in (node, *producers)
    )
    halves = {
        HALF_PRECISIONS[value.dtype] for value in node.outputs if value.dtype in HALF_PRECISIONS
    }
    return frozenset({*halves, *(["int8"] if integers else [])})


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
