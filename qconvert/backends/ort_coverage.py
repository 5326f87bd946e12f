"""Which nodes run in which precision, read from the graph that ONNX Runtime makes of a file."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx
import onnx_ir as ir

from qconvert.backends.base import Coverage, LoadSpec
from qconvert.backends.ort import create_session, runtime, session_options
from qconvert.core import atomic
from qconvert.graph.patterns import WEIGHT_ONLY_OPS

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
# Operators whose output has the type of one input, or the type given if there is no such input.
OUTPUT_DTYPES = {
    **dict.fromkeys(("Shape", "Size", "ArgMax", "ArgMin", "NonZero"), (None, ir.DataType.INT64)),
    **dict.fromkeys(("MatMulInteger", "ConvInteger"), (None, ir.DataType.INT32)),
    "MatMulIntegerToFloat": (None, ir.DataType.FLOAT),
    "DynamicQuantizeMatMul": (None, ir.DataType.FLOAT),
    "QAttention": (None, ir.DataType.FLOAT),
    "QGemm": (8, ir.DataType.FLOAT),
    "QLinearConcat": (1, ir.DataType.UINT8),
    "DequantizeLinear": (1, ir.DataType.FLOAT),
    "QuantizeLinear": (2, ir.DataType.UINT8),
}


def optimized_graph(path: Path, spec: LoadSpec, level: str = "") -> ir.Graph:
    """Return the graph that ONNX Runtime runs, or that a lower optimization level gives."""
    options = session_options(spec)
    if level:
        options.graph_optimization_level = getattr(runtime.GraphOptimizationLevel, level)
    with atomic.temporary_folder() as folder:
        options.optimized_model_filepath = str(folder / "optimized.onnx")
        # Weights go to another file: they are not read, and above 2 GB ONNX cannot hold them.
        external = "session.optimized_model_external_initializers_"
        options.add_session_config_entry(external + "file_name", "weights")
        options.add_session_config_entry(external + "min_size_in_bytes", "1024")
        create_session(path, spec, options)
        optimized = onnx.load(options.optimized_model_filepath, load_external_data=False)
    return ir.from_proto(optimized).graph


def kernel_coverage(path: Path, spec: LoadSpec, nodes: Mapping[str, Sequence[str]]) -> Coverage:
    """Count the kernels of a file, whose `nodes` each provider runs, by the precision of each.

    Conversions between precisions count as `casts`, arithmetic on shapes and indices as `other`.
    ONNX Runtime does not write the types of tensors that it introduced; they are inferred here.
    """
    graph = optimized_graph(path, spec)
    values = (*graph.inputs, *graph.initializers.values())
    dtypes = {str(value.name): value.dtype for value in values if value.dtype is not None}
    counts: Counter[str] = Counter()
    for node in graph:
        dtype = _output_dtype(node, dtypes)
        dtypes |= {value.name: dtype for value in node.outputs if value.name}
        if node.op_type in CASTING:
            counts["casts"] += 1
        elif node.op_type in WEIGHT_ONLY_OPS:
            counts[f"int{node.attributes.get_int('bits', 4)} weights"] += 1
        elif any(name in node.op_type for name in INTEGER_NAMES):
            counts["int8"] += 1
        else:
            counts[PRECISIONS.get(dtype, "other")] += 1
    others = {name: len(names) for name, names in nodes.items() if name != spec.providers[0][0]}
    first = counts.total() - sum(others.values())
    return Coverage({spec.providers[0][0]: first, **others}, dict(sorted(counts.items())))


def _output_dtype(node: ir.Node, dtypes: Mapping[str, ir.DataType]) -> ir.DataType:
    """Infer the type of a node's output from its operator, else from its inputs."""
    if node.op_type == "Cast":
        return ir.DataType(node.attributes.get_int("to", ir.DataType.FLOAT.value))
    inputs = [None if value is None else dtypes.get(str(value.name)) for value in node.inputs]
    if node.op_type in OUTPUT_DTYPES:
        index, default = OUTPUT_DTYPES[node.op_type]
        return default if index is None or index >= len(inputs) else inputs[index] or default
    # The first numeric input: indices and shapes come later, or are of no type listed here.
    numeric = (dtype for dtype in inputs if dtype in PRECISIONS)
    declared = node.outputs[0].dtype if node.outputs else None
    return next(numeric, None) or declared or ir.DataType.UNDEFINED
