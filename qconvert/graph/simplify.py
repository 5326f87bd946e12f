"""The passes that libraries do well: inlining, fusions, opset conversion and shape inference."""

import logging
import re
import warnings

import onnx
import onnx_ir as ir
import onnxslim
from onnx import version_converter
from onnx_ir.passes import common

from qconvert.core import onnx_io
from qconvert.core.errors import first_line
from qconvert.graph.patterns import computed_values, is_standard

SEQUENCE_OPS = frozenset(
    {"SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert", "SplitToSequence"}
    | {"Optional"}
)


def inline_functions(model: ir.Model) -> tuple[ir.Model, str]:
    """Replace each call of a model-local function by the function's body."""
    count = len(model.functions)
    if not count:
        return model, ""
    inlined = model.clone()
    common.InlinePass()(inlined)
    common.RemoveUnusedOpsetsPass()(inlined)
    return inlined, f"{count} functions"


def run_onnxslim(model: ir.Model) -> tuple[ir.Model, str]:
    """Fuse and deduplicate nodes, and drop those that nothing reads."""
    logger = logging.getLogger("onnxslim")
    level = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.CRITICAL)
        try:
            slimmed = ir.from_proto(onnxslim.slim(_proto(model)))
        finally:
            logger.setLevel(level)
    before, after = len(model.graph), len(slimmed.graph)
    return slimmed, f"{before} to {after} nodes" if before != after else ""


def upgrade_opset(model: ir.Model, opset: int) -> tuple[ir.Model, str]:
    """Raise the opset to at least `opset`."""
    before = model.opset_imports.get("", 0)
    if before >= opset:
        return model, ""
    if onnx_io.weight_bytes(model) >= onnx_io.SINGLE_FILE_BYTES:
        raise ValueError(f"a model above 2 GB stays at opset {before}")
    try:
        raised = ir.from_proto(version_converter.convert_version(_proto(model), opset))
    except Exception as error:  # the converter raises its failed C++ assertions
        match = re.search(r"No Adapter From Version \$?(\d+) for (\w+)", str(error))
        if match:
            reason = f"the ONNX converter cannot upgrade `{match[2]}` beyond opset {match[1]}"
        else:  # the message starts with a place in the C++ source
            reason = first_line(ValueError(str(error).rpartition("` failed: ")[2]))
        raise ValueError(f"{reason}; the model stays at opset {before}") from None
    return raised, f"opset {before} to {opset}"


def infer_shapes(model: ir.Model) -> tuple[ir.Model, str]:
    """Record the shape and type of every tensor for which they can be inferred."""
    inferred = model.clone()
    before = _count_shaped(inferred)
    common.ShapeInferencePass(check_type=False, strict_mode=False)(inferred)
    # Inference wrongly gives tensor types to sequences and optionals.
    for node in inferred.graph:
        for value in node.outputs if is_standard(node, *SEQUENCE_OPS) else ():
            if isinstance(value.type, ir.TensorType):
                value.type = value.shape = None
    gained = _count_shaped(inferred) - before
    return inferred, f"{gained} more tensors" if gained else ""


def _proto(model: ir.Model) -> onnx.ModelProto:
    return onnx.load_from_string(onnx_io.serialize(model))


def _count_shaped(model: ir.Model) -> int:
    values = computed_values(model.graph)
    return sum(value.shape is not None and value.dtype is not None for value in values)
