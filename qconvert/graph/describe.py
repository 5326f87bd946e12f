"""A model in numbers: inputs, outputs, operators, parameters and multiply-accumulates."""

import math
from collections import Counter
from dataclasses import dataclass

import onnx_ir as ir

from qconvert.core import onnx_io
from qconvert.core.tensors import TensorSpec, fixed_batch
from qconvert.graph.patterns import WEIGHTED, is_quantized, is_standard, is_transposed


@dataclass(frozen=True)
class NodeInfo:
    """One node; `macs` counts one image, and is None where a shape is not known."""

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    parameters: int
    macs: int | None


@dataclass(frozen=True)
class OperatorInfo:
    """All nodes of one operator together."""

    op: str
    nodes: int
    parameters: int
    macs: int | None


@dataclass(frozen=True)
class ModelInfo:
    """Everything that `inspect` shows."""

    opset: int
    producer: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    parameters: int
    weight_bytes: int
    quantized: bool
    functions: int
    operators: tuple[OperatorInfo, ...]
    nodes: tuple[NodeInfo, ...]


def describe_model(model: ir.Model) -> ModelInfo:
    """Return what the model consists of, its subgraphs and functions included."""
    batch = fixed_batch(onnx_io.inputs(model))
    nodes: list[NodeInfo] = []
    counted: set[ir.Value] = set()  # a shared weight counts at its first reader
    for node in onnx_io.all_nodes(model):
        inputs = [value for value in node.inputs if value is not None]
        weights = {
            value: value.const_value.size
            for value in inputs
            if value.const_value is not None and is_weight(value.const_value)
        }
        info = NodeInfo(
            name=node.name or "",
            op=node.op_type if is_standard(node) else f"{node.domain}::{node.op_type}",
            inputs=tuple(value.name or "" for value in inputs),
            outputs=tuple(str(onnx_io.tensor_spec(value)) for value in node.outputs),
            parameters=sum(size for value, size in weights.items() if value not in counted),
            macs=_count_macs(node, batch),
        )
        counted.update(weights)
        nodes.append(info)
    operators = []
    for op, count in Counter(info.op for info in nodes).items():
        same = [info for info in nodes if info.op == op]
        macs = [info.macs for info in same if info.macs is not None]
        total = sum(macs) if len(macs) == count else None
        operators.append(OperatorInfo(op, count, sum(info.parameters for info in same), total))
    operators.sort(key=lambda info: (-(info.macs or 0), -info.nodes, info.op))
    return ModelInfo(
        opset=model.opset_imports.get("", 0),
        producer=" ".join(filter(None, [model.producer_name, model.producer_version])),
        inputs=onnx_io.inputs(model),
        outputs=onnx_io.outputs(model),
        parameters=sum(tensor.size for tensor in onnx_io.all_tensors(model) if is_weight(tensor)),
        weight_bytes=onnx_io.weight_bytes(model),
        quantized=is_quantized(model),
        functions=len(model.functions),
        operators=tuple(operators),
        nodes=tuple(nodes),
    )


def is_weight(tensor: ir.TensorProtocol) -> bool:
    """Whether a tensor is learned: not a shape, an index or a single limit or scale."""
    return len(tensor.shape) > 0 and tensor.dtype not in (ir.DataType.INT64, ir.DataType.BOOL)


def _count_macs(node: ir.Node, batch: int | None) -> int | None:
    """Return the multiply-accumulates of a linear operator for one image, 0 for any other."""
    if not is_standard(node, *WEIGHTED):
        return 0
    # A convolution applies the filter at each output, its transpose at each input.
    places = node.inputs[0] if node.op_type == "ConvTranspose" else node.outputs[0]
    weight, output = _shape(node.inputs[1]), _shape(places, batch)
    if weight is None or output is None:
        return None
    if node.op_type in ("Conv", "ConvTranspose"):
        return math.prod(output) * math.prod(weight[1:])
    by_row = node.op_type == "Gemm" and is_transposed(node)
    return math.prod(output) * weight[-1 if by_row else max(len(weight) - 2, 0)]


def _shape(value: ir.Value | None, batch: int | None = None) -> tuple[int, ...] | None:
    """Return the shape for one image; None if another size than the batch is dynamic."""
    if value is None or value.shape is None:
        return None
    sizes = [size if isinstance(size, int) else None for size in value.shape]
    if sizes and (sizes[0] is None or sizes[0] == batch):
        sizes[0] = 1
    return None if None in sizes else tuple(size or 0 for size in sizes)
