"""The passes that libraries do well: inlining, fusions, opset conversion and shape inference."""

import contextlib
import logging
import re
import warnings
from collections.abc import Iterator

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
# "No Adapter From Version $6 for GRU"
_NO_ADAPTER = re.compile(r"No Adapter From Version \$?(?P<opset>\d+) for (?P<op>\w+)")


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
    with _silence_onnxslim():
        slimmed = ir.from_proto(onnxslim.slim(_proto(model)))
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
        reason = _converter_failure(error)
        raise ValueError(f"{reason}; the model stays at opset {before}") from None
    return raised, f"opset {before} to {opset}"


def infer_shapes(model: ir.Model) -> tuple[ir.Model, str]:
    """Record the shape and type of every tensor for which they can be inferred."""
    inferred = model.clone()
    before = _count_shaped(inferred)
    common.ShapeInferencePass(check_type=False, strict_mode=False)(inferred)
    _clear_sequence_types(inferred)
    gained = _count_shaped(inferred) - before
    return inferred, f"{gained} more tensors" if gained else ""


def _clear_sequence_types(model: ir.Model) -> None:
    """Remove the tensor types that inference wrongly gives to sequences and optionals."""
    for node in model.graph:
        for value in node.outputs if is_standard(node, *SEQUENCE_OPS) else ():
            if isinstance(value.type, ir.TensorType):
                value.type = value.shape = None


def _converter_failure(error: Exception) -> str:
    """Name the operator that the converter cannot upgrade, if its message says so."""
    match = _NO_ADAPTER.search(str(error))
    if not match:
        # The message starts with a place in the C++ source.
        return first_line(ValueError(str(error).rpartition("` failed: ")[2]))
    return f"the ONNX converter cannot upgrade `{match['op']}` beyond opset {match['opset']}"


def _proto(model: ir.Model) -> onnx.ModelProto:
    return onnx.load_from_string(onnx_io.serialize(model))


def _count_shaped(model: ir.Model) -> int:
    values = computed_values(model.graph)
    return sum(value.shape is not None and value.dtype is not None for value in values)


@contextlib.contextmanager
def _silence_onnxslim() -> Iterator[None]:
    logger = logging.getLogger("onnxslim")
    level = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            logger.setLevel(level)
