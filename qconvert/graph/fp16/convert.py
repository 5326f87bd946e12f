"""Rewrite a float32 graph into half precision with explicit tensor types and Casts.

Builders of strongly typed engines take such a graph as it is; no flag decides where to round.
"""

from collections.abc import Container, Iterator
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from qconvert.core.errors import QConvertError
from qconvert.graph import patterns
from qconvert.graph.fp16.islands import (
    FLOAT,
    MAX_FINITE,
    TYPE_AGNOSTIC,
    HalfSlots,
    HalfTyping,
    Magnitudes,
    cast_to_half,
    describe_overflow,
    find_islands,
    is_float32,
    onnx_opset,
)
from qconvert.graph.passes import infer_shapes

HalfPrecision = Literal["fp16", "bf16"]

SUFFIX = {FLOAT: "fp32", ir.DataType.FLOAT16: "fp16", ir.DataType.BFLOAT16: "bf16"}
# Before this opset `Conv` has no bfloat16; since then every operator that computes has it.
BFLOAT16_MIN_OPSET = 22
# Before this opset the scales of QuantizeLinear and DequantizeLinear are float32.
HALF_SCALES_MIN_OPSET = 19


@dataclass(frozen=True)
class HalfModel:
    """The rewritten model, and for each node that stayed in float32 the reason."""

    model: ir.Model
    islands: dict[str, str]


def convert_to_half(
    model: ir.Model, kind: HalfPrecision, magnitudes: Magnitudes, *, keep_io: bool = True
) -> HalfModel:
    """Return a copy in half precision, except for what would overflow or has no half type.

    With `keep_io` the inputs and outputs keep their type. A model that already computes in half
    precision somewhere is returned unchanged: its author decided where. So is one without float32
    tensors, or without ONNX's own operators.
    """
    computing = [node for node in model.graph if not patterns.is_standard(node, "Cast")]
    has_half = any(_is_half(value) for node in computing for value in node.outputs)
    may_be_float = any(is_float32(value) or value.type is None for value in _values(model.graph))
    opset = onnx_opset(model.opset_imports)
    if has_half or not may_be_float or not opset:
        return HalfModel(model, {})
    half = ir.DataType.FLOAT16 if kind == "fp16" else ir.DataType.BFLOAT16
    if kind == "bf16" and opset < BFLOAT16_MIN_OPSET:
        raise QConvertError(
            f"the model has opset {opset}, in which `Conv` and others do not support bfloat16",
            hint=f"raise the opset with `--opset {BFLOAT16_MIN_OPSET}`, or use fp16",
        )
    quantized = any(
        patterns.is_standard(node, "QuantizeLinear", "DequantizeLinear") for node in model.graph
    )
    if quantized and opset < HALF_SCALES_MIN_OPSET:
        raise QConvertError(
            f"the model has opset {opset}, in which quantized tensors only have float32 scales",
            hint=f"raise the opset with `--opset {HALF_SCALES_MIN_OPSET}` or newer",
        )
    for value in () if keep_io else (*model.graph.inputs, *model.graph.outputs):
        magnitude = magnitudes.get(value.name or "", 0.0)
        if is_float32(value) and magnitude > MAX_FINITE[half]:
            raise QConvertError(
                describe_overflow(f"`{value.name}`", magnitude, half),
                hint="keep the inputs and outputs of the model in float32",
            )
    untyped = any(value.type is None or value.shape is None for value in _values(model.graph))
    copy = infer_shapes(model)[0] if untyped else model.clone()
    _store_constants(copy.graph)
    typing = HalfTyping(copy, half)
    islands = find_islands(typing, magnitudes)
    _Retyping(typing, islands, keep_io=keep_io).apply()
    reasons = {node.name or str(node.outputs[0].name): islands[node] for node in islands}
    return HalfModel(copy, reasons)


def emulate_half(model: ir.Model) -> ir.Model:
    """Return a copy that computes in float32 and casts each result to its half type and back.

    A runtime without half kernels may keep float32 between the nodes of a half graph, but not
    between casts that the graph asks for, so it computes what half kernels would. Tensors keep
    their names.
    """
    model = model.clone()
    graph, names = model.graph, patterns.UniqueNames(patterns.tensor_names(model.graph))
    for node in list(graph):
        if (
            not patterns.is_standard(node)
            or patterns.is_standard(node, "Cast", "CastLike")
            or patterns.has_subgraph(node)
        ):
            continue
        halves = [(slot, value) for slot, value in enumerate(node.inputs) if _is_half(value)]
        for slot, value in halves:
            assert value is not None
            name = names.reserve(f"{value.name}_wide")
            cast = patterns.make_node("Cast", [value], name, FLOAT, to=FLOAT)
            graph.insert_before(node, cast)
            node.replace_input_with(slot, cast.outputs[0])
        # A node without half inputs sets its output type by an attribute, and keeps it.
        for output in node.outputs if halves else ():
            if _is_half(output) and output.dtype is not None:
                name, dtype = str(output.name), output.dtype
                cast = patterns.make_node("Cast", [output], name, dtype, to=dtype)
                output.replace_all_uses_with(cast.outputs[0], replace_graph_outputs=True)
                cast.replace_input_with(0, output)
                output.name, output.type = names.reserve(f"{name}_exact"), ir.TensorType(FLOAT)
                graph.insert_after(node, cast)
    return model


def _is_half(value: ir.Value | None) -> bool:
    return value is not None and value.dtype in MAX_FINITE


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    yield from graph.initializers.values()
    yield from (value for value in patterns.computed_values(graph) if value.name)


def _store_constants(graph: ir.Graph) -> None:
    """Turn `Constant` nodes into initializers, as weights are stored."""
    for node in [node for node in graph if patterns.is_standard(node, "Constant")]:
        tensor = None
        if (value := node.attributes.get("value")) is not None:
            # Not `get_const_tensor`: it renames the tensor, which the original model holds too.
            tensor = value.as_tensor()
        elif "value_float" in node.attributes or "value_floats" in node.attributes:
            tensor = ir.convenience.get_const_tensor(node.outputs[0])
        if tensor is not None:
            stored = patterns.add_constant(graph, str(node.outputs[0].name), tensor.numpy())
            node.outputs[0].replace_all_uses_with(stored, replace_graph_outputs=True)
            graph.remove(node, safe=True)


def _set_half_type(value: ir.Value, half: ir.DataType) -> None:
    # A copy of a graph shares the type objects of the original, so this needs a new one.
    value.type = ir.TensorType(half)
    if value.const_value is not None:
        array = cast_to_half(value.const_value.numpy(), half)
        value.const_value = ir.tensor(array, name=value.name)


class _Retyping:
    """The type that each node reads (None: any) and computes, and the Casts between them."""

    def __init__(self, typing: HalfTyping, islands: Container[ir.Node], *, keep_io: bool) -> None:
        self.graph, self.half = typing.model.graph, typing.half
        self.io_type = FLOAT if keep_io else typing.half
        self.tensor_names = patterns.UniqueNames(patterns.tensor_names(self.graph))
        self.node_names = patterns.UniqueNames(
            {node.name for node in self.graph.all_nodes() if node.name}
        )
        self.input_types: dict[tuple[ir.Node, int], ir.DataType | None] = {}
        self.half_outputs: set[ir.Value] = set()
        for node in self.graph:
            slots = HalfSlots() if node in islands else typing.slots(node)
            default = None if patterns.is_standard(node, *TYPE_AGNOSTIC) else FLOAT
            for index in range(len(node.inputs)):
                self.input_types[node, index] = self.half if index in slots.inputs else default
            self.half_outputs.update(node.outputs[index] for index in slots.outputs)
            if slots.outputs:
                typing.set_type_attributes(node)

    def apply(self) -> None:
        """Give every float32 tensor its type, and a copy in the other one if that is read too."""
        stored = [value for value in self.graph.initializers.values() if not value.is_graph_input()]
        values = (*self.graph.inputs, *stored, *patterns.computed_values(self.graph))
        for value in [value for value in values if is_float32(value)]:
            types = {self._read_type(*use) for use in value.uses()}
            types |= {self.io_type} if value.is_graph_output() else set()
            # The type in which the value is fed, stored or computed.
            if value.is_graph_input():
                is_half = self.io_type is self.half
            elif value.is_initializer():
                is_half = types - {None} == {self.half}
            else:
                is_half = value in self.half_outputs
            if is_half:
                _set_half_type(value, self.half)
            other = FLOAT if is_half else self.half
            if other in types:
                uses = [use for use in value.uses() if self._read_type(*use) is other]
                # A Cast of the model itself may read the other type already.
                cast, copy = value.producer(), None
                if (
                    cast is not None
                    and patterns.is_standard(cast, "Cast")
                    and not value.is_graph_output()
                ):
                    copy = cast.inputs[0]
                if copy is None or copy.dtype is not other:
                    copy = self._copy(value, other)
                for node, index in uses:
                    node.replace_input_with(index, copy)
        for cast in [node for node in self.graph if patterns.is_standard(node, "Cast")]:
            if not cast.outputs[0].uses() and not cast.outputs[0].is_graph_output():
                self.graph.remove(cast, safe=True)

    def _read_type(self, node: ir.Node, index: int) -> ir.DataType | None:
        # The graphs inside nodes are not rewritten: they read float32.
        return self.input_types.get((node, index), FLOAT)

    def _copy(self, value: ir.Value, other: ir.DataType) -> ir.Value:
        """Return a new value of the other type; a graph output takes over the name."""
        name = str(value.name)
        is_output = value.is_graph_output() and self.io_type is other
        if is_output:
            own = self.half if other is FLOAT else FLOAT
            value.name = self.tensor_names.reserve(f"{name}_{SUFFIX[own]}")
        else:
            name = self.tensor_names.reserve(f"{name}_{SUFFIX[other]}")
        if value.is_initializer() and not value.is_graph_input():
            assert value.const_value is not None, "an initializer holds a tensor"
            copy = patterns.add_constant(self.graph, name, value.const_value.numpy())
            if other is self.half:
                _set_half_type(copy, other)
        else:
            cast = patterns.make_node("Cast", [value], name, other, to=other)
            cast.name = self.node_names.reserve(f"{value.name}_{SUFFIX[other]}")
            copy, producer = cast.outputs[0], value.producer()
            if producer is not None:
                self.graph.insert_after(producer, cast)
            else:
                self.graph.insert_before(self.graph[0], cast)
        if is_output:
            outputs = self.graph.outputs
            outputs[:] = [copy if output is value else output for output in outputs]
        return copy
