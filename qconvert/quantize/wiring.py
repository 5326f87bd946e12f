"""Adds constants and Q/DQ nodes to a graph, under names that are free."""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qconvert.graph.names import Names, tensor_names
from qconvert.scales import Scale


@dataclass(frozen=True)
class Wiring:
    """A graph that is being rewritten, and the names in it."""

    graph: ir.Graph
    names: Names

    @classmethod
    def of(cls, graph: ir.Graph) -> "Wiring":
        """Start with the names that the graph has."""
        nodes = {node.name for node in graph.all_nodes() if node.name}
        return cls(graph, Names(tensor_names(graph) | nodes))

    def store(self, array: NDArray[np.generic], name: str) -> ir.Value:
        """Add a constant."""
        tensor = ir.tensor(array, name=self.names.free(name))
        kind = ir.TensorType(tensor.dtype)
        value = ir.Value(
            name=tensor.name, shape=ir.Shape(array.shape), type=kind, const_value=tensor
        )
        self.graph.register_initializer(value)
        return value

    def node(self, op: str, inputs: list[ir.Value], name: str, axis: int | None = None) -> ir.Node:
        """Make a node that stands in no graph yet; its result is called like the node."""
        name = self.names.free(name)
        made = ir.node(op, inputs, {} if axis is None else {"axis": axis}, name=name)
        made.outputs[0].name = name
        return made

    def through_integers(self, value: ir.Value, scale: Scale) -> ir.Value:
        """Return a tensor rounded to a scale: quantized and brought back right after it is made."""
        tensor, kind = str(value.name), ir.DataType[scale.grid.storage.upper()]
        step = self.store(scale.steps, f"{tensor}_scale")
        zero = self.store(scale.zeros.astype(kind.numpy()), f"{tensor}_zero_point")
        there = self.node("QuantizeLinear", [value, step, zero], f"{tensor}_quantized")
        integers = there.outputs[0]
        integers.type, integers.shape = ir.TensorType(kind), value.shape
        back = self.node("DequantizeLinear", [integers, step, zero], f"{tensor}_rounded")
        back.outputs[0].type, back.outputs[0].shape = value.type, value.shape
        producer = value.producer()
        if producer is None:
            self.graph.insert_before(self.graph[0], [there, back])
        else:
            self.graph.insert_after(producer, [there, back])
        return back.outputs[0]

    def from_integers(
        self, integers: ir.Value, steps: NDArray[np.float32], axis: int, reader: ir.Node
    ) -> ir.Value:
        """Return the real values of stored integers, made right before `reader` needs them."""
        name = str(integers.name).removesuffix("_quantized")
        given = [integers, self.store(steps, f"{name}_scale")]
        if integers.dtype is not ir.DataType.INT32:
            # Without its zeros ONNX Runtime does not take the node for part of an integer product.
            zeros = np.zeros(steps.shape, dtype=integers.dtype.numpy() if integers.dtype else None)
            given.append(self.store(zeros, f"{name}_zero_point"))
        back = self.node("DequantizeLinear", given, f"{name}_rounded", axis)
        result = back.outputs[0]
        result.type, result.shape = ir.TensorType(ir.DataType.FLOAT), integers.shape
        self.graph.insert_before(reader, back)
        return result

    def answer(self, value: ir.Value, result: ir.Value) -> None:
        """Let the graph return `result` instead of `value`, under the name that callers know."""
        name, outputs = value.name, self.graph.outputs
        places = [place for place, each in enumerate(outputs) if each is value]
        value.name = self.names.free(f"{name}_float")
        result.name = name
        for place in places:
            outputs[place] = result
