"""The tensors of a network that can be compared with those of another, and how they are read."""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from qconvert.graph.literal import literal
from qconvert.graph.observed import holds_numbers, observe
from qconvert.graph.patterns import constant
from qconvert.graph.sum_taps import Taps

ANSWER = "qconvert.answer."
ROUNDING = frozenset({"QuantizeLinear", "DequantizeLinear", "Cast"})


def common(reference: ir.Model, model: ir.Model) -> list[str]:
    """Return the tensors to compare, in the order of the reference: those that both have."""
    seen = observe(reference)
    there, theirs = by_name(model.graph), by_name(reference.graph)
    wanted = {*seen.counted, *(value.name or "" for value in reference.graph.outputs)}
    return [
        name
        for name, value in theirs.items()
        if name in wanted - {*seen.shares} and name in there
        if holds_numbers(value) and not _only_rounds(value)
    ]


def answering(model: ir.Model, tensors: list[str]) -> ir.Model:
    """Return a copy that answers with these tensors, each as its readers get it, in float32.

    Their names are those of the tensors behind `ANSWER`.
    """
    model = literal(model)
    known = by_name(model.graph)
    taps = Taps.of(model.graph)
    for name in tensors:
        value = taps.floats(as_read(known[name]))
        taps.output(taps.node("Identity", value), ANSWER + name)
    model.graph.outputs[:] = taps.outputs
    return model


def by_name(graph: ir.Graph) -> dict[str, ir.Value]:
    """Return inputs and what nodes make, by name, in the order of the graph."""
    stored = graph.initializers
    given = [value for value in graph.inputs if value.name not in stored]
    made = (value for node in graph for value in node.outputs)
    return {value.name: value for value in (*given, *made) if value.name}


def as_read(value: ir.Value) -> ir.Value:
    """Return a tensor as its readers get it: rounded, where nobody reads it as it was made."""
    there = _only_reader(value)
    while there is not None and there.op_type == "Cast":
        there = _only_reader(there.outputs[0])
    if there is None or there.op_type != "QuantizeLinear":
        return value
    back = _only_reader(there.outputs[0])
    return back.outputs[0] if back is not None and back.op_type == "DequantizeLinear" else value


@dataclass(frozen=True)
class Kept:
    """What a tensor is rounded to: its integers, the ends of their grid, and the real range.

    An end that stands for zero is none: a Relu ends there too. Values further than `reach` from
    `middle` lose more by being clipped than any could lose by rounding.
    """

    integers: ir.Value
    ends: tuple[int, ...]
    middle: float
    reach: float


def kept_range(value: ir.Value) -> Kept | None:
    """Return the range that a tensor is rounded to, None where it is not, or by channels."""
    there = _quantizer(value)
    if there is None:
        return None
    step = constant(_before_cast(there.inputs[1]))
    zero = constant(there.inputs[2]) if len(there.inputs) > 2 else np.zeros((), np.uint8)
    if step is None or zero is None or step.size != 1 or zero.dtype.itemsize > 2:
        return None
    if zero.dtype.kind not in "iu":
        return None
    limits, at = np.iinfo(zero.dtype.name), int(zero.reshape(()))
    size = float(step.astype(np.float64).reshape(()))
    low, high = (limits.min - at) * size, (limits.max - at) * size
    ends = tuple(end for end in (limits.min, limits.max) if end != at)
    return Kept(there.outputs[0], ends, (low + high) / 2, (high - low + size) / 2)


def _quantizer(value: ir.Value) -> ir.Node | None:
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


def _only_reader(value: ir.Value) -> ir.Node | None:
    """Return the node that reads a tensor, if it is only one and the graph does not return it."""
    readers = {use.node for use in value.uses()}
    return readers.pop() if len(readers) == 1 and not value.is_graph_output() else None


def _before_cast(value: ir.Value | None) -> ir.Value | None:
    made = value.producer() if value is not None else None
    return made.inputs[0] if made is not None and made.op_type == "Cast" else value


def _only_rounds(value: ir.Value) -> bool:
    made = value.producer()
    return made is not None and made.op_type in ROUNDING
