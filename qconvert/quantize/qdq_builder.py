"""Q/DQ nodes added to a graph, with unused names."""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qconvert.core.scales import FloatArray, QuantParams
from qconvert.graph import patterns


class QDQBuilder:
    """A graph that is being quantized, and the names in it."""

    def __init__(self, graph: ir.Graph) -> None:
        nodes = {node.name for node in graph.all_nodes() if node.name}
        self.graph = graph
        self.names = patterns.UniqueNames(patterns.tensor_names(graph) | nodes)

    def constant(self, array: NDArray[np.generic], name: str) -> ir.Value:
        """Store a constant in the graph, under an unused name."""
        return patterns.add_constant(self.graph, self.names.reserve(name), array)

    def node(
        self,
        op: str,
        inputs: Sequence[ir.Value],
        name: str,
        dtype: ir.DataType | None,
        **attributes: int | float,
    ) -> ir.Node:
        """Make a node outside the graph that has an unused name, as its output has."""
        node = patterns.make_node(op, inputs, self.names.reserve(name), dtype, **attributes)
        node.name = node.outputs[0].name
        return node

    def quantize(
        self, value: ir.Value, qparams: QuantParams, read_as: float = 1.0, tensor: str = ""
    ) -> ir.Value:
        """Add Q/DQ right behind a tensor and return their output: `read_as` times the tensor.

        `tensor` is the one of the plan whose parameters these are, by default `value`. A grid with
        fewer integers than its type gets a Clip between the two (QCDQ, Pappalardo et al. 2022),
        because QuantizeLinear clips at the ends of the type.
        """
        name, dtype = str(value.name), ir.DataType[qparams.grid.onnx_dtype.upper()]
        scale = self.constant(qparams.scale, f"{name}_scale")
        zero_point = self.constant(qparams.zero_point.astype(dtype.numpy()), f"{name}_zero_point")
        quantize = self.node(
            "QuantizeLinear", [value, scale, zero_point], f"{name}_quantized", dtype
        )
        if read_as != 1.0:
            factor = np.float32(read_as)
            scale = self.constant(qparams.scale * factor, f"{name}_scale_read")
        nodes = [quantize]
        if not qparams.grid.fills_type:
            ends = {"min": qparams.grid.quant_min, "max": qparams.grid.quant_max}
            limits = [
                self.constant(np.array(end, dtype.numpy()), f"{name}_{side}")
                for side, end in ends.items()
            ]
            inputs = [quantize.outputs[0], *limits]
            nodes.append(self.node("Clip", inputs, f"{name}_clipped", dtype))
        inputs = [nodes[-1].outputs[0], scale, zero_point]
        dequantize = self.node("DequantizeLinear", inputs, f"{name}_rounded", value.dtype)
        dequantize.meta["tensor"] = tensor or name  # not written to files
        nodes.append(dequantize)
        if (producer := value.producer()) is None:
            self.graph.insert_before(self.graph[0], nodes)
        else:
            self.graph.insert_after(producer, nodes)
        return dequantize.outputs[0]

    def dequantize(
        self, array: NDArray[np.generic], name: str, scale: FloatArray, axis: int, reader: ir.Node
    ) -> ir.Value:
        """Store integers, add their DequantizeLinear right before `reader`; return its output."""
        integers = self.constant(array, f"{name}_quantized")
        name = str(integers.name).removesuffix("_quantized")
        inputs = [integers, self.constant(scale, f"{name}_scale")]
        if array.dtype != np.int32:
            # ONNX Runtime fuses the node into an integer product only with explicit zero points.
            zero_points = np.zeros(scale.shape, dtype=array.dtype)
            inputs.append(self.constant(zero_points, f"{name}_zero_point"))
        dtype = ir.DataType.FLOAT
        node = self.node("DequantizeLinear", inputs, f"{name}_rounded", dtype, axis=axis)
        self.graph.insert_before(reader, node)
        return node.outputs[0]
