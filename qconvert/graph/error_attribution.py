"""The tensors of a network that can be compared with those of another, and how they are read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from qconvert.graph.fp16.convert import emulate_half
from qconvert.graph.observed_tensors import find_observed_tensors, is_numeric
from qconvert.graph.patterns import constant_array, has_subgraph
from qconvert.graph.taps import FLOAT, ReductionTaps

OUTPUT_PREFIX = "qconvert.answer."
CONVERSIONS = frozenset({"QuantizeLinear", "DequantizeLinear", "Cast"})


def comparable_tensors(reference: ir.Model, model: ir.Model) -> list[str]:
    """Return the tensors to compare, in the order of the reference: those that both have."""
    seen = find_observed_tensors(reference)
    there, theirs = values_by_name(model.graph), values_by_name(reference.graph)
    wanted = {*seen.quantizable, *(value.name or "" for value in reference.graph.outputs)}
    return [
        name
        for name, value in theirs.items()
        if name in wanted - {*seen.aliases} and name in there
        if is_numeric(value) and not _is_conversion(value)
    ]


def expose_tensors(model: ir.Model, tensors: list[str]) -> ir.Model:
    """Return a copy that answers with these tensors, each as its readers get it, in float32.

    Their names are those of the tensors behind `ANSWER`.
    """
    model = emulate_half(model)
    known = values_by_name(model.graph)
    taps = ReductionTaps(model.graph)
    for name in tensors:
        value = taps.as_float32(as_consumed(known[name]))
        taps.output(taps.node("Identity", value), OUTPUT_PREFIX + name)
    model.graph.outputs[:] = taps.outputs
    return model


def values_by_name(graph: ir.Graph) -> dict[str, ir.Value]:
    """Return inputs and what nodes make, by name, in the order of the graph."""
    stored = graph.initializers
    given = [value for value in graph.inputs if value.name not in stored]
    made = (value for node in graph for value in node.outputs)
    return {value.name: value for value in (*given, *made) if value.name}


def as_consumed(value: ir.Value) -> ir.Value:
    """Return a tensor as its readers get it: rounded, where nobody reads it as it was made."""
    there = _only_consumer(value)
    while there is not None and there.op_type == "Cast":
        there = _only_consumer(there.outputs[0])
    if there is None or there.op_type != "QuantizeLinear":
        return value
    back = _only_consumer(there.outputs[0])
    return back.outputs[0] if back is not None and back.op_type == "DequantizeLinear" else value


@dataclass(frozen=True)
class ClippingRange:
    """What a tensor is rounded to: its integers, the ends of their grid, and the real range.

    An end that stands for zero is none: a Relu ends there too. Values further than `reach` from
    `middle` lose more by being clipped than any could lose by rounding.
    """

    integers: ir.Value
    ends: tuple[int, ...]
    middle: float
    radius: float


def clipping_range(value: ir.Value) -> ClippingRange | None:
    """Return the range that a tensor is rounded to, None where it is not, or by channels."""
    there = _quantize_node(value)
    if there is None:
        return None
    step = constant_array(_before_cast(there.inputs[1]))
    zero = constant_array(there.inputs[2]) if len(there.inputs) > 2 else np.zeros((), np.uint8)
    if step is None or zero is None or step.size != 1 or zero.dtype.itemsize > 2:
        return None
    if zero.dtype.kind not in "iu":
        return None
    limits, at = np.iinfo(zero.dtype.name), int(zero.reshape(()))
    size = float(step.astype(np.float64).reshape(()))
    low, high = (limits.min - at) * size, (limits.max - at) * size
    ends = tuple(end for end in (limits.min, limits.max) if end != at)
    return ClippingRange(there.outputs[0], ends, (low + high) / 2, (high - low + size) / 2)


def _quantize_node(value: ir.Value) -> ir.Node | None:
    """Return what rounds a tensor: before those who read it, or for some of them."""
    back = value.producer()
    if back is not None and back.op_type == "DequantizeLinear":
        integers = back.inputs[0]
        there = integers.producer() if integers is not None else None
        return there if there is not None and there.op_type == "QuantizeLinear" else None
    casts = [use.node for use in value.uses() if use.node.op_type == "Cast"]
    read = (value, *(node.outputs[0] for node in casts))
    return next(
        (use.node for each in read for use in each.uses() if use.node.op_type == "QuantizeLinear"),
        None,
    )


def _only_consumer(value: ir.Value) -> ir.Node | None:
    """Return the node that reads a tensor, if it is only one and the graph does not return it."""
    readers = {use.node for use in value.uses()}
    return readers.pop() if len(readers) == 1 and not value.is_graph_output() else None


def _before_cast(value: ir.Value | None) -> ir.Value | None:
    made = value.producer() if value is not None else None
    return made.inputs[0] if made is not None and made.op_type == "Cast" else value


def _is_conversion(value: ir.Value) -> bool:
    made = value.producer()
    return made is not None and made.op_type in CONVERSIONS


HALF_PRECISIONS = {ir.DataType.FLOAT16: "fp16", ir.DataType.BFLOAT16: "bf16"}
REFERENCE_PREFIX = "qconvert.reference."


@dataclass(frozen=True)
class ErrorOutputs:
    """What is known of one tensor; the fields after `precision` are names of outputs.

    Each is a sum over all values: of squares of the reference (`signal`), of this network
    (`power`), of the error that arrives and of the one made here, and how many values saturate or
    are clipped. None is what does not apply. `precision` is that of the layer that makes it here.
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
    """A network with its shadow; it is fed with the tensor of each point under `FED` too."""

    model: ir.Model
    tensors: tuple[ErrorOutputs, ...]


def build_attribution_model(model: ir.Model, tensors: Sequence[str]) -> AttributionModel:
    """Return the network that compares itself at these tensors; `model` stays as it is."""
    model = emulate_half(model)
    known = values_by_name(model.graph)
    read = {name: as_consumed(known[name]) for name in tensors}
    # An input that nobody rounds has no error, and no layer.
    here = {name: value for name, value in read.items() if value.producer() is not None}
    taps = ReductionTaps(model.graph)
    fed = {name: taps.input(REFERENCE_PREFIX + name, known[name]) for name in here}
    shadow = _IsolatedLayers(model.graph, {here[name]: fed[name] for name in here})
    points = tuple(_error_outputs(name, here[name], fed[name], (taps, shadow)) for name in here)
    model.graph.outputs[:] = taps.outputs
    return AttributionModel(model, points)


def _error_outputs(
    name: str, here: ir.Value, fed: ir.Value, tools: tuple[ReductionTaps, "_IsolatedLayers"]
) -> ErrorOutputs:
    taps, shadow = tools
    cone = shadow.cone(here)
    apart = taps.node("Sub", taps.as_float32(here), fed)
    made = None
    if cone is not None:
        alone = taps.node("Sub", taps.as_float32(shadow.copy(here, cone)), fed)
        made = taps.sum_of_squares(alone, f"made.{name}")
    saturated = clipped = None
    if kept := clipping_range(here):
        saturated = taps.count_equal(kept.integers, kept.ends, f"saturated.{name}")
        clipped = taps.count_beyond(fed, kept.middle, kept.radius, f"clipped.{name}")
    return ErrorOutputs(
        name,
        _precision(here, cone),
        signal=taps.sum_of_squares(fed, f"signal.{name}"),
        power=taps.sum_of_squares(taps.as_float32(here), f"power.{name}"),
        arriving=taps.sum_of_squares(apart, f"arriving.{name}"),
        made=made,
        saturated=saturated,
        clipped=clipped,
    )


def _precision(value: ir.Value, cone: Sequence[ir.Node] | None) -> str:
    """Return what a layer computes in: integers where anything of it came from integers."""
    nodes = [*(cone or ()), *([made] if (made := value.producer()) is not None else [])]
    around = [each.producer() for node in nodes for each in node.inputs if each is not None]
    if any(node is not None and node.op_type == "DequantizeLinear" for node in (*nodes, *around)):
        return "int8"
    kinds = [
        HALF_PRECISIONS.get(each.dtype) for node in nodes for each in node.outputs if each.dtype
    ]
    return next((kind for kind in kinds if kind), "fp32")


class _IsolatedLayers:
    """Copies layers so that they read the reference."""

    def __init__(self, graph: ir.Graph, fed: Mapping[ir.Value, ir.Value]) -> None:
        self._graph, self._fed = graph, fed
        self._place = {node: place for place, node in enumerate(graph)}
        self._live = _input_dependent(graph)

    def cone(self, value: ir.Value) -> list[ir.Node] | None:
        """Return the nodes between the tensors of the reference and this one, in their order.

        None where one of them holds a graph of its own, which may read anything.
        """
        found: set[ir.Node] = set()
        waiting = [value.producer()]
        while waiting:
            node = waiting.pop()
            if node is None or node in found or not self._live.intersection(node.outputs):
                continue
            if has_subgraph(node):
                return None
            found.add(node)
            waiting += [
                each.producer()
                for each in node.inputs
                if each is not None and each not in self._fed
            ]
        return sorted(found, key=self._place.__getitem__)

    def copy(self, value: ir.Value, cone: Sequence[ir.Node]) -> ir.Value:
        """Return the tensor as it is when all before the layer is exact."""
        made: dict[ir.Value, ir.Value] = {}
        for node in cone:
            inputs = [self._read(each, made) for each in node.inputs]
            again = ir.Node(
                node.domain,
                node.op_type,
                inputs,
                list(node.attributes.values()),
                overload=node.overload,
                num_outputs=len(node.outputs),
            )
            for old, new in zip(node.outputs, again.outputs, strict=True):
                new.type, new.shape = old.type, old.shape
            made.update(zip(node.outputs, again.outputs, strict=True))
            self._graph.append(again)
        return made.get(value, value)

    def _read(self, value: ir.Value | None, made: dict[ir.Value, ir.Value]) -> ir.Value | None:
        if value is None or value in made:
            return made[value] if value is not None else None
        fed = self._fed.get(value)
        if fed is None or value.dtype is FLOAT:
            return value if fed is None else fed
        cast = ir.node("Cast", [fed], {"to": value.dtype})
        self._graph.append(cast)
        return made.setdefault(value, cast.outputs[0])


def _input_dependent(graph: ir.Graph) -> set[ir.Value]:
    """Return the tensors that change with the image."""
    found = {value for value in graph.inputs if not value.is_initializer()}
    for node in graph:
        if has_subgraph(node) or found.intersection(each for each in node.inputs if each):
            found.update(node.outputs)
    return found
