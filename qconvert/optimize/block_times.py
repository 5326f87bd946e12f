"""What blocks cost in INT8 and in float, from the times of the operators of both engines.

ONNX Runtime fuses operators and adds its own, so times are attributed by name: a fused operator, or
what it computes, has the name of a node or of a tensor of the model with a suffix, and a conversion
between integers and floats that of its tensor. Any other belongs to the block of the one before it.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from qconvert.backends.ort_profile import OperatorTime
from qconvert.graph.patterns import constant_array
from qconvert.optimize.blocks import Block

# What ONNX Runtime appends to the names of nodes and tensors, and the rewrite to those of tensors.
SUFFIXES = re.compile(
    r"(_nchwc|_token_\d+|/duplicated\w*|_quantized|_rounded|_shifted|_pooled|_q|_dq)+$"
)
CONVERSIONS = ("QuantizeLinear", "DequantizeLinear")
# What a conversion takes if none was measured: its start, and the time of each value.
CONVERSION_MS, VALUE_MS = 0.01, 1e-6


@dataclass(frozen=True)
class Border:
    """A tensor that several blocks share, and the milliseconds to convert it in each direction.

    `None` as producer or consumer stands for what is in float anyway.
    """

    producer: str | None
    consumers: frozenset[str | None]
    quantize_ms: float
    dequantize_ms: float


@dataclass(frozen=True)
class BlockCosts:
    """The milliseconds of every block in INT8 and in float, and of conversions between blocks."""

    int8_ms: Mapping[str, float]
    float_ms: Mapping[str, float]
    borders: tuple[Border, ...]


@dataclass(frozen=True)
class _Attributed:
    """Milliseconds by block, and by tensor and operator for conversions."""

    blocks: dict[str, float]
    conversions: dict[tuple[str, str], float]


def measure_costs(
    model: ir.Model,
    blocks: Sequence[Block],
    int8: Sequence[OperatorTime],
    floats: Sequence[OperatorTime],
    int8_to_float: float,
) -> BlockCosts:
    """Return the costs of blocks from the operators of the INT8 engine and of the float engine.

    Only differences between both count, and the profiler does not slow both down alike:
    `int8_to_float`, the ratio of their whole latencies, corrects the times in INT8.
    """
    owners = _owners(model, blocks)
    sums = [sum(time.ms for time in times) for times in (int8, floats)]
    factor = int8_to_float * sums[1] / sums[0] if all(sums) else 1.0
    int8 = [replace(time, ms=factor * time.ms) for time in int8]
    in_int8, in_float = _attribute(int8, owners, blocks), _attribute(floats, owners, blocks)
    borders = _borders(model, blocks, in_int8.conversions)
    return BlockCosts(in_int8.blocks, in_float.blocks, borders)


def _owners(model: ir.Model, blocks: Sequence[Block]) -> dict[str, str]:
    """Return the block of every node and of every tensor, by name; empty if it is in none."""
    by_node = {node: block.name for block in blocks for node in block.nodes + block.followers}
    owners = {value.name or "": "" for value in model.graph.inputs}
    for node in model.graph:
        block = by_node.get(node.name or "", "")
        owners[node.name or ""] = block
        owners |= {value.name or "": block for value in node.outputs}
    return owners


def _attribute(
    times: Iterable[OperatorTime], owners: Mapping[str, str], blocks: Sequence[Block]
) -> _Attributed:
    result, current, waiting = _Attributed({block.name: 0.0 for block in blocks}, {}), "", 0.0
    last: tuple[str, str] | None = None
    for time in times:
        name = _model_name(time, owners)
        if time.op in CONVERSIONS and name in owners:
            last, current = (name, time.op), owners[name]
            total = result.conversions.get(last, 0.0) + time.ms + waiting
            result.conversions[last], waiting = total, 0.0
        elif time.op == "Transpose" and name not in owners:
            # Integers are computed channels last: such a transpose comes with a conversion.
            if last is not None and last[1] == "QuantizeLinear":
                result.conversions[last] += time.ms
            else:
                waiting += time.ms
        else:
            current, last = owners.get(name, current), None
            if current:
                result.blocks[current] += time.ms + waiting
            waiting = 0.0
    return result


def _model_name(time: OperatorTime, owners: Mapping[str, str]) -> str:
    """Return the name of a node or tensor of the model that an operator has, else its own."""
    names = (time.name, *time.outputs)
    candidates = (*names, *(SUFFIXES.sub("", name) for name in names))
    return next((name for name in candidates if name in owners), time.name)


def _borders(
    model: ir.Model, blocks: Sequence[Block], conversions: Mapping[tuple[str, str], float]
) -> tuple[Border, ...]:
    """Return the tensors whose conversion depends on which blocks are in float."""
    by_node = {node: block.name for block in blocks for node in block.nodes}
    values = {value.name or "": value for node in model.graph for value in node.outputs}
    values |= {value.name or "": value for value in model.graph.inputs}
    start, per_value = _conversion_cost(conversions, values)
    borders = []
    for name, value in values.items():
        if constant_array(value) is not None or value.dtype != ir.DataType.FLOAT:
            continue
        producer = value.producer()
        source = by_node.get(producer.name or "") if producer is not None else None
        readers = {by_node.get(reader.name or "") for reader in value.consumers()}
        if value.is_graph_output():
            readers.add(None)
        if readers - {source}:
            usual = start + per_value * _size(value)
            costs = (conversions.get((name, op), usual) for op in CONVERSIONS)
            borders.append(Border(source, frozenset(readers), *costs))
    return tuple(borders)


def _conversion_cost(
    conversions: Mapping[tuple[str, str], float], values: Mapping[str, ir.Value]
) -> tuple[float, float]:
    """Return the milliseconds of starting a conversion, and those for each value of its tensor."""
    sizes = sum(_size(values[name]) for name, _ in conversions if name in values)
    if not sizes:
        return CONVERSION_MS, VALUE_MS
    start = min(conversions.values())
    return start, (sum(conversions.values()) - start * len(conversions)) / sizes


def _size(value: ir.Value) -> int:
    """Return the number of values of a tensor; a size that is not fixed counts as one."""
    return math.prod(size for size in value.shape or () if isinstance(size, int))
