"""Adds constants and Q/DQ nodes to a graph, under names that are free."""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qconvert.core.scales import QuantParams
from qconvert.graph.names import UniqueNames, tensor_names


@dataclass(frozen=True)
class QDQBuilder:
    """A graph that is being rewritten, and the names in it."""

    graph: ir.Graph
    names: UniqueNames

    @classmethod
    def of(cls, graph: ir.Graph) -> "QDQBuilder":
        """Start with the names that the graph has."""
        nodes = {node.name for node in graph.all_nodes() if node.name}
        return cls(graph, UniqueNames(tensor_names(graph) | nodes))

    def add_constant(self, array: NDArray[np.generic], name: str) -> ir.Value:
        """Add a constant."""
        tensor = ir.tensor(array, name=self.names.reserve(name))
        kind = ir.TensorType(tensor.dtype)
        value = ir.Value(
            name=tensor.name, shape=ir.Shape(array.shape), type=kind, const_value=tensor
        )
        self.graph.register_initializer(value)
        return value

    def make_node(
        self, op: str, inputs: list[ir.Value], name: str, axis: int | None = None
    ) -> ir.Node:
        """Make a node that stands in no graph yet; its result is called like the node."""
        name = self.names.reserve(name)
        made = ir.node(op, inputs, {} if axis is None else {"axis": axis}, name=name)
        made.outputs[0].name = name
        return made

    def quantize_dequantize(self, value: ir.Value, scale: QuantParams) -> ir.Value:
        """Return a tensor rounded to a scale: quantized and brought back right after it is made."""
        tensor, kind = str(value.name), ir.DataType[scale.grid.onnx_dtype.upper()]
        step = self.add_constant(scale.scale, f"{tensor}_scale")
        zero = self.add_constant(scale.zero_point.astype(kind.numpy()), f"{tensor}_zero_point")
        there = self.make_node("QuantizeLinear", [value, step, zero], f"{tensor}_quantized")
        integers = there.outputs[0]
        integers.type, integers.shape = ir.TensorType(kind), value.shape
        back = self.make_node("DequantizeLinear", [integers, step, zero], f"{tensor}_rounded")
        back.outputs[0].type, back.outputs[0].shape = value.type, value.shape
        producer = value.producer()
        if producer is None:
            self.graph.insert_before(self.graph[0], [there, back])
        else:
            self.graph.insert_after(producer, [there, back])
        return back.outputs[0]

    def dequantize(
        self, integers: ir.Value, steps: NDArray[np.float32], axis: int, reader: ir.Node
    ) -> ir.Value:
        """Return the real values of stored integers, made right before `reader` needs them."""
        name = str(integers.name).removesuffix("_quantized")
        given = [integers, self.add_constant(steps, f"{name}_scale")]
        if integers.dtype is not ir.DataType.INT32:
            # Without its zeros ONNX Runtime does not take the node for part of an integer product.
            zeros = np.zeros(steps.shape, dtype=integers.dtype.numpy() if integers.dtype else None)
            given.append(self.add_constant(zeros, f"{name}_zero_point"))
        back = self.make_node("DequantizeLinear", given, f"{name}_rounded", axis)
        result = back.outputs[0]
        result.type, result.shape = ir.TensorType(ir.DataType.FLOAT), integers.shape
        self.graph.insert_before(reader, back)
        return result

    def replace_output(self, value: ir.Value, result: ir.Value) -> None:
        """Let the graph return `result` instead of `value`, under the name that callers know."""
        name, outputs = value.name, self.graph.outputs
        places = [place for place, each in enumerate(outputs) if each is value]
        value.name = self.names.reserve(f"{name}_float")
        result.name = name
        for place in places:
            outputs[place] = result
