"""Attribute the error of a rewritten network to its layers, in one graph with a float twin.

The network is fed with the tensors of the reference besides its own inputs. The graph also holds a
copy of every layer, which reads the reference's tensors instead of the outputs of the layers
before. The error of the network at a tensor is the one that arrives there; the error of the copy is
the one that this layer makes alone. All outputs are sums over a batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qconvert.graph import patterns
from qconvert.graph.fp16.convert import emulate_half
from qconvert.graph.taps import FLOAT, ReductionTaps, find_observed_tensors, is_numeric

OUTPUT_PREFIX = "qconvert.output."
REFERENCE_PREFIX = "qconvert.reference."
FROM_INTEGERS = patterns.INTEGER_OPS | {"DequantizeLinear"}
FOUR_BITS = frozenset({ir.DataType.INT4, ir.DataType.UINT4})
PRECISIONS = ("int4", "int8", "fp16", "bf16", "fp32")
HALF_PRECISIONS = {ir.DataType.FLOAT16: "fp16", ir.DataType.BFLOAT16: "bf16"}


def comparable_tensors(reference: ir.Model, model: ir.Model) -> list[str]:
    """Return the tensors that both networks have, in the order of the reference."""
    observed = find_observed_tensors(reference)
    outputs = (value.name or "" for value in reference.graph.outputs)
    names = {*observed.quantizable, *outputs} - {*observed.aliases}
    names &= values_by_name(model.graph).keys()
    conversions = ("QuantizeLinear", "DequantizeLinear", "Cast")
    return [
        name
        for name, value in values_by_name(reference.graph).items()
        if name in names and is_numeric(value) and _operator(value) not in conversions
    ]


def values_by_name(graph: ir.Graph) -> dict[str, ir.Value]:
    """Return the inputs and the outputs of all nodes by name, in the order of the graph."""
    inputs = [value for value in graph.inputs if value.name not in graph.initializers]
    return {
        value.name: value for value in (*inputs, *patterns.computed_values(graph)) if value.name
    }


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
    node = patterns.only_reader(value, "Cast")
    if node is not None and node.op_type == "QuantizeLinear":
        node = patterns.only_reader(node.outputs[0], "Clip")
        if node is not None and node.op_type == "DequantizeLinear":
            return node.outputs[0]
    return value


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
    producer = value.producer()
    if producer is not None and producer.op_type == "DequantizeLinear":
        nodes = [patterns.find_quantizer(producer)]
    else:
        # It may be quantized for some of its consumers only.
        casts = [use.node.outputs[0] for use in value.uses() if use.node.op_type == "Cast"]
        nodes = [use.node for source in (value, *casts) for use in source.uses()]
    quantizing = (node for node in nodes if node is not None and node.op_type == "QuantizeLinear")
    if (node := next(quantizing, None)) is None:
        return None
    source = node.inputs[1]
    if (cast := patterns.producer_of(source)) is not None and cast.op_type == "Cast":
        source = cast.inputs[0]
    scale = patterns.constant_array(source)
    zero_point = (
        patterns.constant_array(node.inputs[2]) if len(node.inputs) > 2 else np.zeros((), np.uint8)
    )
    if scale is None or zero_point is None or scale.size != 1:
        return None
    if zero_point.dtype.kind not in "iu" or zero_point.dtype.itemsize > 2:
        return None
    integers, limits = _stored_integers(node, zero_point)
    zero = int(zero_point.reshape(()))
    step = float(scale.astype(np.float64).reshape(()))
    low, high = ((limit - zero) * step for limit in limits)
    ends = tuple(end for end in limits if end != zero)
    return ClippingRange(integers, ends, (low + high) / 2, (high - low + step) / 2)


def _stored_integers(
    quantize: ir.Node, zero_point: NDArray[np.generic]
) -> tuple[ir.Value, tuple[int, int]]:
    """Return the integers of a quantizer with their limits: of its type, or of a Clip behind it."""
    reader = patterns.only_reader(quantize.outputs[0])
    if reader is not None and patterns.clips_integers(reader):
        low, high = (patterns.constant_array(value) for value in reader.inputs[1:3])
        if low is not None and high is not None:
            return reader.outputs[0], (int(low), int(high))
    limits = np.iinfo(zero_point.dtype.name)
    return quantize.outputs[0], (limits.min, limits.max)


def build_attribution_model(
    model: ir.Model, tensors: Sequence[str]
) -> tuple[ir.Model, dict[str, str]]:
    """Return a copy with its float twin, and the precision of each layer by its tensor.

    The copy takes each reference tensor under `REFERENCE_PREFIX`. Its outputs are sums over all
    values of a tensor `x`, named `qconvert.signal.x` and so on: the squares of the reference
    (`signal`), of this network (`power`), of the error that arrives (`arriving`) and of the one
    this layer makes alone (`made`), and how many values are `saturated` or `clipped`. The last
    three are absent where they do not apply.
    """
    model = emulate_half(model)
    values = values_by_name(model.graph)
    consumed = {name: as_consumed(values[name]) for name in tensors}
    # An input that is not quantized has no error, and no layer.
    consumed = {name: value for name, value in consumed.items() if value.producer() is not None}
    taps = ReductionTaps(model.graph)
    references = {name: taps.input(REFERENCE_PREFIX + name, values[name]) for name in consumed}
    twins, kinds = _add_twin(taps, {value: references[name] for name, value in consumed.items()})
    precisions = {}
    for name, value in consumed.items():
        reference, own = references[name], taps.as_float32(value)
        # The first of these in which a part of the layer computes.
        kinds_of_layer = kinds.get(value, frozenset()) | {"fp32"}
        precisions[name] = min(kinds_of_layer, key=PRECISIONS.index)
        taps.sum_of_squares(reference, f"signal.{name}")
        taps.sum_of_squares(own, f"power.{name}")
        taps.sum_of_squares(taps.node("Sub", own, reference), f"arriving.{name}")
        # A constant is its own twin.
        if (twin := twins.get(value, value)) is not None:
            error = taps.node("Sub", taps.as_float32(twin), reference)
            taps.sum_of_squares(error, f"made.{name}")
        if grid := clipping_range(value):
            taps.count_equal(grid.integers, grid.ends, f"saturated.{name}")
            taps.count_beyond(reference, grid.middle, grid.radius, f"clipped.{name}")
    model.graph.outputs[:] = taps.outputs
    return model, precisions


def _add_twin(
    taps: ReductionTaps, references: Mapping[ir.Value, ir.Value]
) -> tuple[dict[ir.Value, ir.Value | None], dict[ir.Value, frozenset[str]]]:
    """Copy every node that depends on the inputs so that it reads the tensors of the reference.

    Returns each tensor that depends on them as it is when everything before its layer is exact,
    None behind a subgraph, which may read anything; and what the layer of each tensor computes in.
    """
    nodes = list(taps.graph)
    exact = {
        value: reference
        if value.dtype is FLOAT
        else taps.node("Cast", reference, to=value.dtype or FLOAT)
        for value, reference in references.items()
    }
    twins: dict[ir.Value, ir.Value | None]
    twins = {value: value for value in taps.graph.inputs if not value.is_initializer()}
    kinds: dict[ir.Value, frozenset[str]] = {}
    for node in nodes:
        sources = [value for value in node.inputs if value is not None]
        layer = [value for value in sources if value in twins and value not in exact]
        # A node computes in integers where it reads what came from integers.
        producers = [producer for value in sources if (producer := value.producer()) is not None]
        computed_in = set[str]().union(*map(_integer_precision, (node, *producers)))
        computed_in |= {HALF_PRECISIONS.get(value.dtype or FLOAT, "fp32") for value in node.outputs}
        kinds.update(dict.fromkeys(node.outputs, frozenset(computed_in)))
        if patterns.has_subgraph(node) or any(twins[value] is None for value in layer):
            twins.update(dict.fromkeys(node.outputs))
        elif not twins.keys().isdisjoint(sources):
            read = {**exact, **{value: twins[value] for value in layer}}
            copy = ir.Node(
                node.domain,
                node.op_type,
                [None if value is None else read.get(value, value) for value in node.inputs],
                list(node.attributes.values()),
                overload=node.overload,
                num_outputs=len(node.outputs),
            )
            taps.graph.append(copy)
            for value, copied in zip(node.outputs, copy.outputs, strict=True):
                copied.type, copied.shape = value.type, value.shape
                twins[value] = copied
                kinds[value] = kinds[value].union(*(kinds.get(source, ()) for source in layer))
    return twins, kinds


def _operator(value: ir.Value) -> str:
    producer = value.producer()
    return producer.op_type if producer is not None else ""


def _integer_precision(node: ir.Node) -> set[str]:
    """Return the precision of the integers that a node reads or computes with, if there are any."""
    if node.op_type in patterns.WEIGHT_ONLY_OPS:
        return {f"int{node.attributes.get_int('bits', 4)}"}
    if node.op_type not in FROM_INTEGERS:
        return set()
    value = node.inputs[0] if node.inputs else None
    return {"int4" if value is not None and value.dtype in FOUR_BITS else "int8"}
