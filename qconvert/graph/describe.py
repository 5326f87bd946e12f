"""A model in numbers: inputs, outputs, operators, parameters, multiply-accumulates."""

import math
from collections import Counter
from dataclasses import dataclass

import onnx_ir as ir

from qconvert.core import onnx_io
from qconvert.core.tensors import TensorSpec, fixed_batch
from qconvert.graph.patterns import is_quantized, is_standard


@dataclass(frozen=True)
class NodeInfo:
    """One node; `macs` is None where a shape is not known, and counts one image.

    A fixed batch counts once too, where it is the first axis of what the node computes.
    """

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
    """Everything `inspect` shows."""

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
    """Return what the model is made of; subgraphs and functions count too."""
    seen: set[int] = set()
    batch = fixed_batch(onnx_io.inputs(model))
    nodes = tuple(_describe_node(node, seen, batch) for node in onnx_io.all_nodes(model))
    return ModelInfo(
        opset=model.opset_imports.get("", 0),
        producer=" ".join(filter(None, [model.producer_name, model.producer_version])),
        inputs=onnx_io.inputs(model),
        outputs=onnx_io.outputs(model),
        parameters=sum(tensor.size for tensor in onnx_io.all_tensors(model) if is_weight(tensor)),
        weight_bytes=onnx_io.weight_bytes(model),
        quantized=is_quantized(model),
        functions=len(model.functions),
        operators=_describe_operators(nodes),
        nodes=nodes,
    )


def _describe_operators(nodes: tuple[NodeInfo, ...]) -> tuple[OperatorInfo, ...]:
    counts = Counter(node.op for node in nodes)
    found = []
    for op, count in counts.most_common():
        same = [node for node in nodes if node.op == op]
        macs = [node.macs for node in same]
        total = None if None in macs else sum(each or 0 for each in macs)
        found.append(OperatorInfo(op, count, sum(node.parameters for node in same), total))
    return tuple(sorted(found, key=lambda each: (-(each.macs or 0), -each.nodes, each.op)))


def _describe_node(node: ir.Node, seen: set[int], batch: int | None) -> NodeInfo:
    op = node.op_type if is_standard(node) else f"{node.domain}::{node.op_type}"
    return NodeInfo(
        name=node.name or "",
        op=op,
        inputs=tuple(value.name or "" for value in node.inputs if value is not None),
        outputs=tuple(str(onnx_io.tensor_spec(value)) for value in node.outputs),
        parameters=_count_parameters(node, seen),
        macs=_count_macs(node, batch),
    )


def _count_parameters(node: ir.Node, seen: set[int]) -> int:
    """Count the weights a node reads; a shared tensor counts at its first reader."""
    total = 0
    for value in node.inputs:
        tensor = value.const_value if value is not None else None
        if tensor is not None and id(value) not in seen and is_weight(tensor):
            seen.add(id(value))
            total += tensor.size
    return total


def is_weight(tensor: ir.TensorProtocol) -> bool:
    """Whether a tensor is learned: not a shape, an index or a single limit or scale."""
    return len(tensor.shape) > 0 and tensor.dtype not in (ir.DataType.INT64, ir.DataType.BOOL)


def _count_macs(node: ir.Node, batch: int | None) -> int | None:
    """Return the multiply-accumulates of a linear operator for one image, 0 for any other."""
    if not is_standard(node, "Conv", "ConvTranspose", "Gemm", "MatMul"):
        return 0
    # Every input value of a ConvTranspose meets the whole filter.
    counted = node.inputs[0] if node.op_type == "ConvTranspose" else node.outputs[0]
    weight, output = _shape(node.inputs[1]), _shape(counted, batch)
    if weight is None or output is None:
        return None
    if node.op_type in ("Conv", "ConvTranspose"):
        return math.prod(output) * math.prod(weight[1:])
    by_row = node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1
    return math.prod(output) * weight[-1 if by_row else max(len(weight) - 2, 0)]


def _shape(value: ir.Value | None, batch: int | None = None) -> tuple[int, ...] | None:
    """Return the sizes, an open first one or `batch` as 1; None where another is open."""
    if value is None or value.shape is None:
        return None
    sizes = [size if isinstance(size, int) else None for size in value.shape]
    if sizes and (sizes[0] is None or sizes[0] == batch):
        sizes[0] = 1
    return None if None in sizes else tuple(size or 0 for size in sizes)
