"""In which precision each kernel computes, read from the graph that ONNX Runtime really runs."""

import json
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import onnx_ir as ir

OTHER, CASTS = "other", "casts"

CASTING = frozenset({"QuantizeLinear", "DequantizeLinear", "Cast"})
# Kernels of the runtime's own that multiply integers carry it in their names.
INTEGER_NAMES = ("QLinear", "Integer", "QGemm", "QAttention", "DynamicQuantize")
WORDS = {
    ir.DataType.FLOAT: "fp32",
    ir.DataType.DOUBLE: "fp64",
    ir.DataType.FLOAT16: "fp16",
    ir.DataType.BFLOAT16: "bf16",
    ir.DataType.INT8: "int8",
    ir.DataType.UINT8: "int8",
}
# What an operator makes: always the same, or the type of one input, else what it is without it.
FIXED = {
    **dict.fromkeys(("Shape", "Size", "ArgMax", "ArgMin", "NonZero"), ir.DataType.INT64),
    **dict.fromkeys(("MatMulInteger", "ConvInteger"), ir.DataType.INT32),
    **dict.fromkeys(
        ("MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QAttention"), ir.DataType.FLOAT
    ),
}
BY_INPUT = {
    "QGemm": (8, ir.DataType.FLOAT),
    "QLinearConcat": (1, ir.DataType.UINT8),
    "DequantizeLinear": (1, ir.DataType.FLOAT),
    "QuantizeLinear": (2, ir.DataType.UINT8),
}

Types = dict[str, ir.DataType]


def kernel_precisions(optimized: ir.Model) -> Mapping[str, int]:
    """Count the nodes of an optimized graph by the precision in which they compute.

    Steps between precisions count as `casts`, arithmetic on shapes and indices as `other`. The
    runtime does not write the types of tensors that its rewrites made, so they are followed here.
    """
    types = {
        str(value.name): value.dtype
        for value in (*optimized.graph.inputs, *optimized.graph.initializers.values())
        if value.dtype is not None
    }
    counts: Counter[str] = Counter()
    for node in optimized.graph:
        made = _output_dtype(node, types)
        for value in node.outputs:
            if value.name:
                types[value.name] = made
        counts[_kernel_precision(node, made)] += 1
    return dict(sorted(counts.items()))


def _kernel_precision(node: ir.Node, made: ir.DataType) -> str:
    if node.op_type in CASTING:
        return CASTS
    if any(name in node.op_type for name in INTEGER_NAMES):
        return "int8"
    return WORDS.get(made, OTHER)


def _output_dtype(node: ir.Node, types: Types) -> ir.DataType:
    """Return the type of what a node makes, as its operator says, else as its inputs have it."""
    op = node.op_type
    if op == "Cast":
        return ir.DataType(node.attributes.get_int("to", ir.DataType.FLOAT.value))
    if op in FIXED:
        return FIXED[op]
    if op in BY_INPUT:
        at, without = BY_INPUT[op]
        return _input_dtype(node, at, types) or without
    given = [_input_dtype(node, at, types) for at in range(len(node.inputs))]
    # The first input with a number in it: what selects or shapes comes later, or is no number.
    numbers = [each for each in given if each in WORDS]
    declared = node.outputs[0].dtype if node.outputs else None
    return next(iter(numbers), None) or declared or ir.DataType.UNDEFINED


def _input_dtype(node: ir.Node, at: int, types: Types) -> ir.DataType | None:
    value = node.inputs[at] if at < len(node.inputs) else None
    return None if value is None else types.get(str(value.name))


# Releases spell types differently: `Row major linear FP32`, `Half`, `Int8 NHWC32`.
SPELLED = (
    ("bf16", re.compile(r"bf16|bfloat", re.IGNORECASE)),
    ("fp16", re.compile(r"fp16|half", re.IGNORECASE)),
    ("fp8", re.compile(r"fp8", re.IGNORECASE)),
    ("int8", re.compile(r"int8", re.IGNORECASE)),
    ("fp32", re.compile(r"fp32|float", re.IGNORECASE)),
)


def layer_precisions(text: str) -> Mapping[str, int] | None:
    """Count an engine's layers by the type of what each reads first, None where it is not told.

    A layer that reads INT8 multiplies INT8, whatever it answers in. Changes of type or layout alone
    count as `casts`. Written from the format's description; no engine was inspected to test it.
    """
    try:
        layers = json.loads(text).get("Layers", [])
    except (ValueError, AttributeError):
        return None
    if not layers or not all(isinstance(layer, dict) for layer in layers):
        return None
    counts = Counter(_layer_precision(layer) for layer in layers)
    return dict(sorted(counts.items()))


def _layer_precision(layer: Mapping[str, Any]) -> str:
    if layer.get("LayerType") == "Reformat":
        return CASTS
    tensors = [*layer.get("Inputs", []), *layer.get("Outputs", [])]
    spelled = [str(each.get("Format/Datatype", each.get("Datatype", ""))) for each in tensors]
    for text in spelled:
        found = next((word for word, pattern in SPELLED if pattern.search(text)), None)
        if found:
            return found
    return OTHER
