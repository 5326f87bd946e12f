"""Give the tensors of a graph their types, with a Cast wherever both types are read."""

from collections.abc import Container
from dataclasses import dataclass, field

import onnx_ir as ir

from qconvert.graph.half_types import NOTHING, TAKES_ANY, Typing, filled_with, is_float32
from qconvert.graph.names import Names, tensor_names
from qconvert.graph.overflow import fitted
from qconvert.graph.patterns import is_standard

FLOAT = ir.DataType.FLOAT
SUFFIX = {FLOAT: "fp32", ir.DataType.FLOAT16: "fp16", ir.DataType.BFLOAT16: "bf16"}


def lift_constants(graph: ir.Graph) -> None:
    """Store what `Constant` nodes hold as weights are stored."""
    for node in list(graph):
        tensor = _constant(node) if is_standard(node, "Constant") else None
        if tensor is None:
            continue
        stored = _stored(str(node.outputs[0].name), tensor)
        ir.convenience.replace_all_uses_with(node.outputs[0], stored, replace_graph_outputs=True)
        graph.remove(node, safe=True)
        graph.register_initializer(stored)


def retype(typing: Typing, islands: Container[ir.Node], *, keep_io: bool) -> None:
    """Make half precision of all but the islands and, if kept, the inputs and outputs."""
    graph = typing.model.graph
    plan = _plan(typing, islands, FLOAT if keep_io else typing.half)
    made = [value for node in graph for value in node.outputs]
    stored = [value for value in graph.initializers.values() if not value.is_graph_input()]
    for value in [each for each in (*graph.inputs, *stored, *made) if is_float32(each)]:
        native = plan.native(value)
        _set_type(value, native)
        other = typing.half if native is FLOAT else FLOAT
        if other in plan.wanted(value):
            plan.split(value, other)
    unread = [node for node in graph if is_standard(node, "Cast") and not _is_read(node)]
    graph.remove(unread, safe=True)


@dataclass(frozen=True)
class _Plan:
    """The type that each reader takes, None where it takes any, and that each node makes."""

    graph: ir.Graph
    half: ir.DataType
    outside: ir.DataType
    tensors: Names
    nodes: Names
    takes: dict[tuple[ir.Node, int], ir.DataType | None] = field(default_factory=dict)
    makes: dict[ir.Value, ir.DataType] = field(default_factory=dict)

    def wanted(self, value: ir.Value) -> set[ir.DataType | None]:
        """Return the types in which a value is read; the graphs inside nodes read float32."""
        types = {self.takes.get((use.node, use.idx), FLOAT) for use in value.uses()}
        return types | ({self.outside} if value.is_graph_output() else set())

    def native(self, value: ir.Value) -> ir.DataType:
        """Return the type that a value has where it comes from."""
        if value.is_graph_input():
            return self.outside
        if not value.is_initializer():
            return self.makes.get(value, FLOAT)
        return self.half if self.wanted(value) - {None} == {self.half} else FLOAT

    def split(self, value: ir.Value, other: ir.DataType) -> None:
        """Give the readers that take another type a copy; the graph's outputs keep their names."""
        uses = [use for use in value.uses() if self.takes.get((use.node, use.idx), FLOAT) is other]
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
        returned = value.is_graph_output() and self.outside is other
        if returned:
            value.name = self.tensors.free(f"{stem}_{SUFFIX[self.native(value)]}")
        else:
            name = self.tensors.free(f"{stem}_{SUFFIX[other]}")
        if value.is_initializer() and not value.is_graph_input():
            copy = self._stored_copy(value, name, other)
        else:
            copy = self._cast(value, name, other)
        if returned:
            self.graph.outputs[:] = [copy if each is value else each for each in self.graph.outputs]
        return copy

    def _stored_copy(self, value: ir.Value, name: str, other: ir.DataType) -> ir.Value:
        assert value.const_value is not None, "an initializer holds a tensor"
        copy = _stored(name, value.const_value)
        _set_type(copy, other)
        self.graph.register_initializer(copy)
        return copy

    def _cast(self, value: ir.Value, name: str, other: ir.DataType) -> ir.Value:
        label = self.nodes.free(f"{value.name}_{SUFFIX[other]}")
        cast = ir.node("Cast", [value], {"to": other}, name=label)
        copy = cast.outputs[0]
        copy.name, copy.shape, copy.type = name, value.shape, ir.TensorType(other)
        producer = value.producer()
        if producer is not None:
            self.graph.insert_after(producer, cast)
        else:
            self.graph.insert_before(self.graph[0], cast)
        return copy


def _plan(typing: Typing, islands: Container[ir.Node], outside: ir.DataType) -> _Plan:
    graph = typing.model.graph
    tensors = Names(tensor_names(graph))
    nodes = Names({node.name for node in graph.all_nodes() if node.name})
    plan = _Plan(graph, typing.half, outside, tensors, nodes)
    for node in graph:
        slots = NOTHING if node in islands else typing.slots(node)
        otherwise = None if is_standard(node, *TAKES_ANY) else FLOAT
        for place in range(len(node.inputs)):
            plan.takes[node, place] = typing.half if place in slots.inputs else otherwise
        for place in slots.outputs:
            plan.makes[node.outputs[place]] = typing.half
        if slots.outputs:
            _say_type(node, typing)
    return plan


def _is_read(node: ir.Node) -> bool:
    return any(value.uses() or value.is_graph_output() for value in node.outputs)


def _constant(node: ir.Node) -> ir.TensorProtocol | None:
    """Return what a node holds; its tensor is also the original graph's, and is not renamed."""
    value = node.attributes.get("value")
    if value is not None:
        return value.as_tensor()
    numbers = "value_float" in node.attributes or "value_floats" in node.attributes
    return ir.convenience.get_const_tensor(node.outputs[0]) if numbers else None


def _say_type(node: ir.Node, typing: Typing) -> None:
    """Let a node whose outputs become half say so in its attributes."""
    for name in typing.naming(node):
        node.attributes.add(ir.AttrInt64(name, typing.half))
    if is_standard(node, "ConstantOfShape"):
        value = fitted(filled_with(node).numpy(), typing.half)
        node.attributes.add(ir.AttrTensor("value", ir.tensor(value)))


def _stored(name: str, tensor: ir.TensorProtocol) -> ir.Value:
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
        value.const_value = ir.tensor(fitted(value.const_value.numpy(), dtype), name=value.name)
