"""Rewrite a float32 graph into half precision, written down as tensor types and Casts.

Builders of strongly typed engines take such a graph as it is: no flag says where to round.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from qconvert.errors import QConvertError
from qconvert.graph.half_casts import lift_constants, retype
from qconvert.graph.half_islands import islands
from qconvert.graph.half_types import SPELLED, Typing, is_float32, opset
from qconvert.graph.overflow import MOST
from qconvert.graph.patterns import is_standard
from qconvert.graph.simplify import infer_shapes

HalfKind = Literal["fp16", "bf16"]

HALVES: dict[HalfKind, ir.DataType] = {
    "fp16": ir.DataType.FLOAT16,
    "bf16": ir.DataType.BFLOAT16,
}
# Before this opset `Conv` has no bfloat16, and after it all that compute have it.
BFLOAT16_OPSET = 22
# Before this opset the scales of QuantizeLinear and DequantizeLinear are float32.
HALF_SCALES_OPSET = 19


@dataclass(frozen=True)
class Halved:
    """The rewritten model; `islands` gives the reason for each node that stayed in float32."""

    model: ir.Model
    islands: dict[str, str]


def half(
    model: ir.Model, kind: HalfKind, largest: Mapping[str, float], *, keep_io: bool = True
) -> Halved:
    """Return a copy in half precision, but for what would overflow or has no such type.

    `largest` has the largest magnitude that each tensor took. With `keep_io` the inputs and outputs
    stay as they are. A model that computes in half precision anywhere already is left alone: where
    it does so was decided by who made it.
    """
    if _has_nothing_to_do(model):
        return Halved(model, {})
    dtype = HALVES[kind]
    _require_opset(model, dtype)
    if not keep_io:
        _require_small(model.graph, dtype, largest)
    untyped = any(value.type is None or value.shape is None for value in _values(model.graph))
    copy = infer_shapes(model)[0] if untyped else model.clone()
    lift_constants(copy.graph)
    typing = Typing(copy, dtype)
    kept = islands(typing, largest)
    retype(typing, kept, keep_io=keep_io)
    return Halved(copy, {node.name or str(node.outputs[0].name): kept[node] for node in kept})


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from (value for value in node.outputs if value.name)


def _has_nothing_to_do(model: ir.Model) -> bool:
    """Whether a model has no operators of ONNX itself, no float32, or half precision already."""
    computing = [node for node in model.graph if not is_standard(node, "Cast")]
    halved = any(value.dtype in SPELLED for node in computing for value in node.outputs)
    known = [is_float32(value) or value.type is None for value in _values(model.graph)]
    return halved or not any(known) or not opset(model.opset_imports)


def _require_opset(model: ir.Model, dtype: ir.DataType) -> None:
    found = opset(model.opset_imports)
    if dtype is ir.DataType.BFLOAT16 and found < BFLOAT16_OPSET:
        raise QConvertError(
            f"the model has opset {found}, in which `Conv` and others have no bfloat16",
            hint=f"`--opset {BFLOAT16_OPSET}` raises it; fp16 needs none so new",
        )
    scaled = any(is_standard(node, "QuantizeLinear", "DequantizeLinear") for node in model.graph)
    if scaled and found < HALF_SCALES_OPSET:
        raise QConvertError(
            f"the model has opset {found}, in which quantized tensors have float32 scales only",
            hint=f"`--opset {HALF_SCALES_OPSET}` or newer raises it",
        )


def _require_small(graph: ir.Graph, dtype: ir.DataType, largest: Mapping[str, float]) -> None:
    """Refuse to hand out in half precision what it cannot hold."""
    for value in (*graph.inputs, *graph.outputs):
        top = largest.get(value.name or "", 0.0)
        if is_float32(value) and top > MOST[dtype]:
            raise QConvertError(
                f"`{value.name}` goes up to {top:.4g}, {SPELLED[dtype]} to {MOST[dtype]:.5g}",
                hint="keep the inputs and outputs of the model in float32",
            )
