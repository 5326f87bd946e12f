"""The passes of cleaning: each returns a rewritten copy, or the model itself, and what it changed."""

import logging
import re
import warnings
from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import onnxslim
from numpy.typing import NDArray
from onnx import version_converter
from onnx.reference import ReferenceEvaluator
from onnx_ir.passes import common

from qconvert.core import onnx_io
from qconvert.core.errors import first_line
from qconvert.graph import patterns

SEQUENCE_OPS = frozenset(
    {"SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert", "SplitToSequence"}
    | {"Optional"}
)
# Random numbers are drawn anew on every run, and quantized constants keep their scales.
NEVER_FOLDED = (
    *("Random", "Bernoulli", "Multinomial", "Dropout"),
    *("Constant", "Quantize", "Dequantize"),
)

AnyArray = NDArray[np.generic]
Affine = tuple[NDArray[np.float64], NDArray[np.float64]]


def inline_functions(model: ir.Model) -> tuple[ir.Model, str]:
    """Replace each call of a model-local function by the function's body."""
    if not model.functions:
        return model, ""
    inlined = model.clone()
    common.InlinePass()(inlined)
    common.RemoveUnusedOpsetsPass()(inlined)
    return inlined, f"{len(model.functions)} functions"


def run_onnxslim(model: ir.Model) -> tuple[ir.Model, str]:
    """Fuse and deduplicate nodes, and drop those that nothing reads."""
    logger = logging.getLogger("onnxslim")
    level = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.CRITICAL)
        try:
            proto = onnx.load_from_string(onnx_io.serialize(model))
            slimmed = ir.from_proto(onnxslim.slim(proto))
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
        proto = onnx.load_from_string(onnx_io.serialize(model))
        raised = ir.from_proto(version_converter.convert_version(proto, opset))
    except Exception as error:  # the converter raises its failed C++ assertions
        match = re.search(r"No Adapter From Version \$?(\d+) for (\w+)", str(error))
        if match:
            reason = f"the ONNX converter cannot upgrade `{match[2]}` beyond opset {match[1]}"
        else:  # the message starts with a place in the C++ source
            reason = first_line(ValueError(str(error).rpartition("` failed: ")[2]))
        raise ValueError(f"{reason}; the model stays at opset {before}") from None
    return raised, f"opset {before} to {opset}"


def fold_constants(model: ir.Model) -> tuple[ir.Model, str]:
    """Return a copy in which `op(constant, ...)` is a stored tensor."""
    folded, _ = infer_shapes(model)
    names = patterns.UniqueNames(patterns.tensor_names(folded.graph))
    count = 0
    for node in list(folded.graph):  # those before it are folded already
        output = node.outputs[0]
        never = (
            not patterns.is_standard(node)
            or node.op_type.startswith(NEVER_FOLDED)
            or patterns.has_subgraph(node)
        )
        if never or len(node.outputs) != 1 or output.is_graph_output():
            continue
        if (result := _evaluate(node)) is not None:
            name = names.reserve(f"{output.name}_folded")
            output.replace_all_uses_with(patterns.add_constant(folded.graph, name, result))
            folded.graph.remove(node, safe=True)
            count += 1
    return _without_unused(folded, count) if count else (model, "")


def _evaluate(node: ir.Node) -> AnyArray | None:
    """Return what a node computes, if all its inputs are constant and the result is not large."""
    inputs = [patterns.constant_array(value) for value in node.inputs]
    if node.op_type == "CastLike" and inputs[1] is None:
        # CastLike needs the type of its second input, not its values.
        dtype = node.inputs[1].dtype if node.inputs[1] is not None else None
        inputs[1] = None if dtype is None else np.zeros(1, dtype.numpy())
    if any(array is None for array in inputs):
        return None
    try:
        proto = ir.to_proto(node)
        feeds = dict(zip(list(proto.input), inputs, strict=True))
        (result,) = ReferenceEvaluator(proto).run(None, feeds) if inputs else (None,)
    except Exception:  # an operator the evaluator does not know stays in the graph
        return None
    # A result above 1 MiB is stored only if it is not larger than the inputs it replaces.
    limit = max(1 << 20, sum(array.nbytes for array in inputs if array is not None))
    if not isinstance(result, np.ndarray | np.generic) or result.nbytes > limit:
        return None
    return np.asarray(result)


def fold_batchnorm(model: ir.Model) -> tuple[ir.Model, str]:
    """Fold an affine map of the channels into the Conv, ConvTranspose or Gemm before it.

    BatchNormalization computes y * scale + shift on y = W x + b, with

        scale = gamma / sqrt(variance + epsilon)      shift = beta - mean * scale

    and so does one Mul, Div, Add or Sub with a constant for each channel, as which some exporters
    write a bias. The linear node alone then computes (W * scale) x + (b * scale + shift). It must
    have no other reader, and a constant weight and bias.
    """
    folded = model.clone()
    names = patterns.UniqueNames(patterns.tensor_names(folded.graph))
    affine = ("BatchNormalization", "Mul", "Div", "Add", "Sub")
    nodes = [node for node in folded.graph if patterns.is_standard(node, *affine)]
    factors = [fold_affine(folded.graph, node, names) for node in nodes]
    count = sum(factor is not None for factor in factors)
    return _without_unused(folded, count) if count else (model, "")


def _without_unused(folded: ir.Model, count: int) -> tuple[ir.Model, str]:
    common.RemoveUnusedNodesPass()(folded)  # and the constants that were replaced
    return folded, f"{count} folded"


def fold_affine(
    graph: ir.Graph, norm: ir.Node, names: patterns.UniqueNames
) -> NDArray[np.float64] | None:
    """Fold one affine map; return the factor of each weight, None if it cannot be folded."""
    swapped = norm.op_type in ("Mul", "Add") and patterns.constant_array(norm.inputs[0]) is not None
    source = norm.inputs[int(swapped)]
    linear = patterns.producer_of(source)
    if source is None or linear is None or patterns.only_reader(source) is not norm:
        return None
    if not patterns.is_standard(linear, "Conv", "ConvTranspose", "Gemm"):
        return None
    weight = patterns.constant_array(linear.inputs[1])
    has_bias = len(linear.inputs) > 2 and linear.inputs[2] is not None
    bias = patterns.constant_array(linear.inputs[2]) if has_bias else np.zeros(1)
    if weight is None or bias is None or linear.attributes.get_float("beta", 1.0) != 1.0:
        return None
    # The scale varies along the output channels of the weight.
    axis = patterns.output_axis(linear)
    split, along, groups = list(weight.shape), [1] * weight.ndim, 1
    along[axis] = -1
    if linear.op_type == "ConvTranspose":
        # (inputs, outputs of one group, ...), the inputs split over the groups.
        groups = linear.attributes.get_int("group", 1)
        split, along = [groups, -1, *split[1:]], [groups, *along]
    operand = norm.inputs[int(not swapped)]
    affine = _affine(norm, operand, weight.ndim, groups * weight.shape[axis])
    if affine is None:
        return None
    scale, shift = affine
    grouped = weight.astype(np.float64).reshape(split)
    factors = np.broadcast_to(scale.reshape(along), grouped.shape)
    scaled = grouped * factors
    shifted = bias.astype(np.float64) * scale + shift
    for slot, array in ((1, scaled.reshape(weight.shape)), (2, shifted)):
        constant = linear.inputs[slot] if slot < len(linear.inputs) else None
        stem = constant.name if constant is not None else f"{linear.outputs[0].name}.bias"
        name = names.reserve(f"{stem}_folded")
        patterns.set_constant_input(linear, slot, name, array.astype(weight.dtype))
    # The output of the linear node takes over the name.
    old, new = norm.outputs[0], linear.outputs[0]
    output_name = old.name
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    new.shape, new.type = old.shape, old.type
    graph.remove(norm, safe=True)
    new.name = output_name
    return factors.reshape(weight.shape)


def _affine(norm: ir.Node, operand: ir.Value | None, rank: int, channels: int) -> Affine | None:
    """Return the scale and shift of a BatchNormalization, or of arithmetic along axis 1."""
    op = norm.op_type
    if op == "BatchNormalization":
        parameters = [patterns.constant_array(value) for value in norm.inputs[1:5]]
        training = norm.attributes.get_int("training_mode", 0) or any(norm.outputs[1:])
        if training or any(array is None for array in parameters):
            return None
        gamma, beta, mean, variance = (np.asarray(array, np.float64) for array in parameters)
        scale = gamma / np.sqrt(variance + norm.attributes.get_float("epsilon", 1e-5))
        return scale, beta - mean * scale
    array = patterns.constant_array(operand)
    if array is None or array.dtype.kind != "f" or not channels:
        return None
    shape = (1,) * (rank - array.ndim) + array.shape
    if len(shape) != rank or shape[1] not in (1, channels) or array.size != shape[1]:
        return None
    factor = np.broadcast_to(array.astype(np.float64).ravel(), (channels,))
    if op in ("Add", "Sub"):
        return np.ones(channels), -factor if op == "Sub" else factor
    if op == "Div" and not factor.all():
        return None
    return 1 / factor if op == "Div" else factor, np.zeros(channels)


def infer_shapes(model: ir.Model) -> tuple[ir.Model, str]:
    """Record the shape and type of every tensor for which they can be inferred."""
    inferred = model.clone()
    values = list(patterns.computed_values(inferred.graph))
    before = sum(value.shape is not None and value.dtype is not None for value in values)
    common.ShapeInferencePass(check_type=False, strict_mode=False)(inferred)
    # Inference wrongly gives tensor types to sequences and optionals.
    for node in inferred.graph:
        for value in node.outputs if patterns.is_standard(node, *SEQUENCE_OPS) else ():
            if isinstance(value.type, ir.TensorType):
                value.type = value.shape = None
    gained = sum(value.shape is not None and value.dtype is not None for value in values) - before
    return inferred, f"{gained} more tensors" if gained else ""


def name_nodes(model: ir.Model) -> tuple[ir.Model, str]:
    """Give every node a unique name; drop the metadata that exporters left for debugging."""
    model, renamed = rename_duplicate_nodes(model, unnamed_too=True)
    common.ClearMetadataAndDocStringPass()(model)
    return model, f"{renamed} nodes" if renamed else ""


def rename_duplicate_nodes(model: ir.Model, *, unnamed_too: bool = False) -> tuple[ir.Model, int]:
    """Return a copy in which no two nodes share a name, and how many were renamed."""
    model = model.clone()
    taken: set[str] = set()
    counters: Counter[str] = Counter()
    renamed = 0
    for node in model.graph.all_nodes():
        if node.name in taken or (unnamed_too and not node.name):
            stem = node.name or node.op_type
            while (name := f"{stem}_{counters[stem]}") in taken:
                counters[stem] += 1
            counters[stem] += 1
            node.name = name
            renamed += 1
        if node.name:
            taken.add(node.name)
    return model, renamed
