"""Count the kernels of ONNX Runtime and of TensorRT by the precision they compute in."""

import json
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import onnx_ir as ir

OTHER, CASTS = "other", "casts"

CASTING = frozenset({"QuantizeLinear", "DequantizeLinear", "Cast"})
# ONNX Runtime's own integer kernels have this in their names.
INTEGER_NAMES = ("QLinear", "Integer", "QGemm", "QAttention", "DynamicQuantize")
PRECISIONS = {
    ir.DataType.FLOAT: "fp32",
    ir.DataType.DOUBLE: "fp64",
    ir.DataType.FLOAT16: "fp16",
    ir.DataType.BFLOAT16: "bf16",
    ir.DataType.INT8: "int8",
    ir.DataType.UINT8: "int8",
}
# Operators whose output has a fixed type.
FIXED_DTYPES = {
    **dict.fromkeys(("Shape", "Size", "ArgMax", "ArgMin", "NonZero"), ir.DataType.INT64),
    **dict.fromkeys(("MatMulInteger", "ConvInteger"), ir.DataType.INT32),
    **dict.fromkeys(
        ("MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QAttention"), ir.DataType.FLOAT
    ),
}
# Operators whose output has the type of one input, and the type if that input is missing.
DTYPES_BY_INPUT = {
    "QGemm": (8, ir.DataType.FLOAT),
    "QLinearConcat": (1, ir.DataType.UINT8),
    "DequantizeLinear": (1, ir.DataType.FLOAT),
    "QuantizeLinear": (2, ir.DataType.UINT8),
}

# TensorRT's releases spell types differently: `Row major linear FP32`, `Half`, `Int8 NHWC32`.
SPELLINGS = (
    ("bf16", re.compile(r"bf16|bfloat", re.IGNORECASE)),
    ("fp16", re.compile(r"fp16|half", re.IGNORECASE)),
    ("fp8", re.compile(r"fp8", re.IGNORECASE)),
    ("int8", re.compile(r"int8", re.IGNORECASE)),
    ("fp32", re.compile(r"fp32|float", re.IGNORECASE)),
)

Dtypes = dict[str, ir.DataType]


def kernel_precisions(optimized: ir.Model) -> Mapping[str, int]:
    """Count the nodes of a graph that ONNX Runtime optimized by the precision they compute in.

    Conversions between precisions count as `casts`, arithmetic on shapes and indices as `other`.
    ONNX Runtime does not write the types of tensors that it introduced; they are inferred here.
    """
    dtypes = {
        str(value.name): value.dtype
        for value in (*optimized.graph.inputs, *optimized.graph.initializers.values())
        if value.dtype is not None
    }
    counts: Counter[str] = Counter()
    for node in optimized.graph:
        dtype = _output_dtype(node, dtypes)
        for value in node.outputs:
            if value.name:
                dtypes[value.name] = dtype
        counts[_kernel_precision(node, dtype)] += 1
    return dict(sorted(counts.items()))


def layer_precisions(text: str) -> Mapping[str, int] | None:
    """Count the layers of a TensorRT engine by the type of their first input, None if not given.

    A layer that reads INT8 multiplies INT8, whatever type it returns. Reformatting counts as
    `casts`. Written from the description of the format; no engine was inspected to test it.
    """
    try:
        layers = json.loads(text).get("Layers", [])
    except (ValueError, AttributeError):
        return None
    if not layers or not all(isinstance(layer, dict) for layer in layers):
        return None
    counts = Counter(_layer_precision(layer) for layer in layers)
    return dict(sorted(counts.items()))


def _kernel_precision(node: ir.Node, output_dtype: ir.DataType) -> str:
    if node.op_type in CASTING:
        return CASTS
    if any(name in node.op_type for name in INTEGER_NAMES):
        return "int8"
    return PRECISIONS.get(output_dtype, OTHER)


def _output_dtype(node: ir.Node, dtypes: Dtypes) -> ir.DataType:
    """Infer the type of a node's output from its operator, else from its inputs."""
    op = node.op_type
    if op == "Cast":
        return ir.DataType(node.attributes.get_int("to", ir.DataType.FLOAT.value))
    if op in FIXED_DTYPES:
        return FIXED_DTYPES[op]
    if op in DTYPES_BY_INPUT:
        index, default = DTYPES_BY_INPUT[op]
        return _input_dtype(node, index, dtypes) or default
    inputs = [_input_dtype(node, index, dtypes) for index in range(len(node.inputs))]
    # The first numeric input: indices and shapes come later, or are of no type listed here.
    numeric = [dtype for dtype in inputs if dtype in PRECISIONS]
    declared = node.outputs[0].dtype if node.outputs else None
    return next(iter(numeric), None) or declared or ir.DataType.UNDEFINED


def _input_dtype(node: ir.Node, index: int, dtypes: Dtypes) -> ir.DataType | None:
    value = node.inputs[index] if index < len(node.inputs) else None
    return None if value is None else dtypes.get(str(value.name))


def _layer_precision(layer: Mapping[str, Any]) -> str:
    if layer.get("LayerType") == "Reformat":
        return CASTS
    tensors = [*layer.get("Inputs", []), *layer.get("Outputs", [])]
    for tensor in tensors:
        text = str(tensor.get("Format/Datatype", tensor.get("Datatype", "")))
        for precision, pattern in SPELLINGS:
            if pattern.search(text):
                return precision
    return OTHER
