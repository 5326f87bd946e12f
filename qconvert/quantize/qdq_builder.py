"""Adds constants, QuantizeLinear and DequantizeLinear nodes to a graph, under unused names."""

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qconvert.core.scales import QuantParams
from qconvert.graph.names import UniqueNames, tensor_names
from qconvert.graph.patterns import make_initializer


class QDQBuilder:
    """A graph that is being quantized, and the names in it."""

    def __init__(self, graph: ir.Graph) -> None:
        nodes = {node.name for node in graph.all_nodes() if node.name}
        self.graph = graph
        self.names = UniqueNames(tensor_names(graph) | nodes)

    def add_constant(self, array: NDArray[np.generic], name: str) -> ir.Value:
        """Store a constant in the graph."""
        value = make_initializer(self.names.reserve(name), array)
        self.graph.register_initializer(value)
        return value

    def make_node(
        self, op: str, inputs: list[ir.Value], name: str, axis: int | None = None
    ) -> ir.Node:
        """Make a node outside the graph; its output has the name of the node."""
        name = self.names.reserve(name)
        node = ir.node(op, inputs, {} if axis is None else {"axis": axis}, name=name)
        node.outputs[0].name = name
        return node

    def quantize_dequantize(self, value: ir.Value, qparams: QuantParams) -> ir.Value:
        """Add a Q/DQ pair right behind a tensor and return its output."""
        name, dtype = str(value.name), ir.DataType[qparams.grid.onnx_dtype.upper()]
        scale = self.add_constant(qparams.scale, f"{name}_scale")
        zero_point = self.add_constant(
            qparams.zero_point.astype(dtype.numpy()), f"{name}_zero_point"
        )
        quantize = self.make_node("QuantizeLinear", [value, scale, zero_point], f"{name}_quantized")
        integers = quantize.outputs[0]
        integers.type, integers.shape = ir.TensorType(dtype), value.shape
        dequantize = self.make_node(
            "DequantizeLinear", [integers, scale, zero_point], f"{name}_rounded"
        )
        result = dequantize.outputs[0]
        result.type, result.shape = value.type, value.shape
        producer = value.producer()
        if producer is None:
            self.graph.insert_before(self.graph[0], [quantize, dequantize])
        else:
            self.graph.insert_after(producer, [quantize, dequantize])
        return result

    def dequantize(
        self, integers: ir.Value, scale: NDArray[np.float32], axis: int, reader: ir.Node
    ) -> ir.Value:
        """Add a DequantizeLinear of stored integers right before `reader`; return its output."""
        name = str(integers.name).removesuffix("_quantized")
        inputs = [integers, self.add_constant(scale, f"{name}_scale")]
        if integers.dtype is not None and integers.dtype is not ir.DataType.INT32:
            # ONNX Runtime fuses the node into an integer product only with explicit zero points.
            zero_points = np.zeros(scale.shape, dtype=integers.dtype.numpy())
            inputs.append(self.add_constant(zero_points, f"{name}_zero_point"))
        node = self.make_node("DequantizeLinear", inputs, f"{name}_rounded", axis)
        result = node.outputs[0]
        result.type, result.shape = ir.TensorType(ir.DataType.FLOAT), integers.shape
        self.graph.insert_before(reader, node)
        return result

    def replace_output(self, value: ir.Value, result: ir.Value) -> None:
        """Let the graph return `result` instead of `value`, under the name that callers know."""
        name, outputs = value.name, self.graph.outputs
        value.name = self.names.reserve(f"{name}_float")
        result.name = name
        outputs[:] = [result if output is value else output for output in outputs]
