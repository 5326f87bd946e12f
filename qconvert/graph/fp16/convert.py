"""Give the tensors of a graph their types, with a Cast wherever both types are read."""

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import onnx_ir as ir

from qconvert.core.errors import QConvertError
from qconvert.graph.fp16.half_types import (
    MAX_FINITE,
    NO_SLOTS,
    TYPE_AGNOSTIC,
    TYPE_NAMES,
    HalfTyping,
    cast_to_half,
    fill_value,
    is_float32,
    onnx_opset,
)
from qconvert.graph.fp16.islands import find_islands
from qconvert.graph.names import UniqueNames, tensor_names
from qconvert.graph.patterns import is_standard
from qconvert.graph.simplify import infer_shapes

FLOAT = ir.DataType.FLOAT
SUFFIX = {FLOAT: "fp32", ir.DataType.FLOAT16: "fp16", ir.DataType.BFLOAT16: "bf16"}


def store_constants(graph: ir.Graph) -> None:
    """Store what `Constant` nodes hold as weights are stored."""
    for node in list(graph):
        tensor = _constant_tensor(node) if is_standard(node, "Constant") else None
        if tensor is None:
            continue
        stored = _make_initializer(str(node.outputs[0].name), tensor)
        ir.convenience.replace_all_uses_with(node.outputs[0], stored, replace_graph_outputs=True)
        graph.remove(node, safe=True)
        graph.register_initializer(stored)


def assign_types(typing: HalfTyping, islands: Container[ir.Node], *, keep_io: bool) -> None:
    """Make half precision of all but the islands and, if kept, the inputs and outputs."""
    graph = typing.model.graph
    plan = _plan_types(typing, islands, FLOAT if keep_io else typing.half)
    made = [value for node in graph for value in node.outputs]
    stored = [value for value in graph.initializers.values() if not value.is_graph_input()]
    for value in [each for each in (*graph.inputs, *stored, *made) if is_float32(each)]:
        native = plan.own_type(value)
        _set_type(value, native)
        other = typing.half if native is FLOAT else FLOAT
        if other in plan.types_read(value):
            plan.add_copy(value, other)
    unread = [node for node in graph if is_standard(node, "Cast") and not _is_read(node)]
    graph.remove(unread, safe=True)


@dataclass(frozen=True)
class _TypeAssignment:
    """The type that each reader takes, None where it takes any, and that each node makes."""

    graph: ir.Graph
    half: ir.DataType
    io_type: ir.DataType
    tensors: UniqueNames
    nodes: UniqueNames
    input_types: dict[tuple[ir.Node, int], ir.DataType | None] = field(default_factory=dict)
    output_types: dict[ir.Value, ir.DataType] = field(default_factory=dict)

    def types_read(self, value: ir.Value) -> set[ir.DataType | None]:
        """Return the types in which a value is read; the graphs inside nodes read float32."""
        types = {self.input_types.get((use.node, use.idx), FLOAT) for use in value.uses()}
        return types | ({self.io_type} if value.is_graph_output() else set())

    def own_type(self, value: ir.Value) -> ir.DataType:
        """Return the type that a value has where it comes from."""
        if value.is_graph_input():
            return self.io_type
        if not value.is_initializer():
            return self.output_types.get(value, FLOAT)
        return self.half if self.types_read(value) - {None} == {self.half} else FLOAT

    def add_copy(self, value: ir.Value, other: ir.DataType) -> None:
        """Give the readers that take another type a copy; the graph's outputs keep their names."""
        uses = [
            use for use in value.uses() if self.input_types.get((use.node, use.idx), FLOAT) is other
        ]
        copy = self._before_cast(value, other) or self._copy(value, other)
        for use in uses:
            use.node.replace_input_with(use.idx, copy)

    def _before_cast(self, value: ir.Value, other: ir.DataType) -> ir.Value | None:
        """Return what a Cast of the model itself reads, where that is what is wanted."""
        cast = value.producer()
        if cast is None or not is_standard(cast, "Cast") or value.is_graph_output():
            return None
        source = cast.inputs[0]
        return source if source is not None and source.dtype is other else None

    def _copy(self, value: ir.Value, other: ir.DataType) -> ir.Value:
        name = stem = str(value.name)
        returned = value.is_graph_output() and self.io_type is other
        if returned:
            value.name = self.tensors.reserve(f"{stem}_{SUFFIX[self.own_type(value)]}")
        else:
            name = self.tensors.reserve(f"{stem}_{SUFFIX[other]}")
        if value.is_initializer() and not value.is_graph_input():
            copy = self._stored_copy(value, name, other)
        else:
            copy = self._cast(value, name, other)
        if returned:
            self.graph.outputs[:] = [copy if each is value else each for each in self.graph.outputs]
        return copy

    def _stored_copy(self, value: ir.Value, name: str, other: ir.DataType) -> ir.Value:
        assert value.const_value is not None, "an initializer holds a tensor"
        copy = _make_initializer(name, value.const_value)
        _set_type(copy, other)
        self.graph.register_initializer(copy)
        return copy

    def _cast(self, value: ir.Value, name: str, other: ir.DataType) -> ir.Value:
        label = self.nodes.reserve(f"{value.name}_{SUFFIX[other]}")
        cast = ir.node("Cast", [value], {"to": other}, name=label)
        copy = cast.outputs[0]
        copy.name, copy.shape, copy.type = name, value.shape, ir.TensorType(other)
        producer = value.producer()
        if producer is not None:
            self.graph.insert_after(producer, cast)
        else:
            self.graph.insert_before(self.graph[0], cast)
        return copy


def _plan_types(
    typing: HalfTyping, islands: Container[ir.Node], outside: ir.DataType
) -> _TypeAssignment:
    graph = typing.model.graph
    tensors = UniqueNames(tensor_names(graph))
    nodes = UniqueNames({node.name for node in graph.all_nodes() if node.name})
    plan = _TypeAssignment(graph, typing.half, outside, tensors, nodes)
    for node in graph:
        slots = NO_SLOTS if node in islands else typing.slots(node)
        otherwise = None if is_standard(node, *TYPE_AGNOSTIC) else FLOAT
        for place in range(len(node.inputs)):
            plan.input_types[node, place] = typing.half if place in slots.inputs else otherwise
        for place in slots.outputs:
            plan.output_types[node.outputs[place]] = typing.half
        if slots.outputs:
            _set_type_attributes(node, typing)
    return plan


def _is_read(node: ir.Node) -> bool:
    return any(value.uses() or value.is_graph_output() for value in node.outputs)


def _constant_tensor(node: ir.Node) -> ir.TensorProtocol | None:
    """Return what a node holds; its tensor is also the original graph's, and is not renamed."""
    value = node.attributes.get("value")
    if value is not None:
        return value.as_tensor()
    numbers = "value_float" in node.attributes or "value_floats" in node.attributes
    return ir.convenience.get_const_tensor(node.outputs[0]) if numbers else None


def _set_type_attributes(node: ir.Node, typing: HalfTyping) -> None:
    """Let a node whose outputs become half say so in its attributes."""
    for name in typing.type_attributes(node):
        node.attributes.add(ir.AttrInt64(name, typing.half))
    if is_standard(node, "ConstantOfShape"):
        value = cast_to_half(fill_value(node).numpy(), typing.half)
        node.attributes.add(ir.AttrTensor("value", ir.tensor(value)))


def _make_initializer(name: str, tensor: ir.TensorProtocol) -> ir.Value:
    array = tensor.numpy()
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype))
    value.const_value = ir.tensor(array, name=name)
    return value


def _set_type(value: ir.Value, dtype: ir.DataType) -> None:
    if dtype is FLOAT:
        return
    # A copy of a graph shares the types of the original.
    value.type = ir.TensorType(dtype)
    if value.const_value is not None:
        value.const_value = ir.tensor(
            cast_to_half(value.const_value.numpy(), dtype), name=value.name
        )


HalfPrecision = Literal["fp16", "bf16"]

HALF_DTYPES: dict[HalfPrecision, ir.DataType] = {
    "fp16": ir.DataType.FLOAT16,
    "bf16": ir.DataType.BFLOAT16,
}
# Before this opset `Conv` has no bfloat16, and after it all that compute have it.
BFLOAT16_MIN_OPSET = 22
# Before this opset the scales of QuantizeLinear and DequantizeLinear are float32.
HALF_SCALES_MIN_OPSET = 19


@dataclass(frozen=True)
class HalfModel:
    """The rewritten model; `islands` gives the reason for each node that stayed in float32."""

    model: ir.Model
    islands: dict[str, str]


def convert_to_half(
    model: ir.Model, kind: HalfPrecision, largest: Mapping[str, float], *, keep_io: bool = True
) -> HalfModel:
    """Return a copy in half precision, but for what would overflow or has no such type.

    `largest` has the largest magnitude that each tensor took. With `keep_io` the inputs and outputs
    stay as they are. A model that computes in half precision anywhere already is left alone: where
    it does so was decided by who made it.
    """
    if _is_convertible(model):
        return HalfModel(model, {})
    dtype = HALF_DTYPES[kind]
    _require_opset(model, dtype)
    if not keep_io:
        _require_io_in_range(model.graph, dtype, largest)
    untyped = any(value.type is None or value.shape is None for value in _values(model.graph))
    copy = infer_shapes(model)[0] if untyped else model.clone()
    store_constants(copy.graph)
    typing = HalfTyping(copy, dtype)
    kept = find_islands(typing, largest)
    assign_types(typing, kept, keep_io=keep_io)
    return HalfModel(copy, {node.name or str(node.outputs[0].name): kept[node] for node in kept})


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from (value for value in node.outputs if value.name)


def _is_convertible(model: ir.Model) -> bool:
    """Whether a model has no operators of ONNX itself, no float32, or half precision already."""
    computing = [node for node in model.graph if not is_standard(node, "Cast")]
    halved = any(value.dtype in TYPE_NAMES for node in computing for value in node.outputs)
    known = [is_float32(value) or value.type is None for value in _values(model.graph)]
    return halved or not any(known) or not onnx_opset(model.opset_imports)


def _require_opset(model: ir.Model, dtype: ir.DataType) -> None:
    found = onnx_opset(model.opset_imports)
    if dtype is ir.DataType.BFLOAT16 and found < BFLOAT16_MIN_OPSET:
        raise QConvertError(
            f"the model has opset {found}, in which `Conv` and others have no bfloat16",
            hint=f"`--opset {BFLOAT16_MIN_OPSET}` raises it; fp16 needs none so new",
        )
    scaled = any(is_standard(node, "QuantizeLinear", "DequantizeLinear") for node in model.graph)
    if scaled and found < HALF_SCALES_MIN_OPSET:
        raise QConvertError(
            f"the model has opset {found}, in which quantized tensors have float32 scales only",
            hint=f"`--opset {HALF_SCALES_MIN_OPSET}` or newer raises it",
        )


def _require_io_in_range(graph: ir.Graph, dtype: ir.DataType, largest: Mapping[str, float]) -> None:
    """Refuse to hand out in half precision what it cannot hold."""
    for value in (*graph.inputs, *graph.outputs):
        top = largest.get(value.name or "", 0.0)
        if is_float32(value) and top > MAX_FINITE[dtype]:
            raise QConvertError(
                f"`{value.name}` goes up to {top:.4g}, {TYPE_NAMES[dtype]} to {MAX_FINITE[dtype]:.5g}",
                hint="keep the inputs and outputs of the model in float32",
            )
