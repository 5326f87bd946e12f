"""Fold what is constant: nodes that read constants only, and affine maps behind linear nodes."""

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from onnx_ir.passes import common

from qconvert.graph.names import UniqueNames, tensor_names
from qconvert.graph.patterns import (
    constant_array,
    has_subgraph,
    is_standard,
    is_transposed,
    make_initializer,
    only_reader,
    producer_of,
)
from qconvert.graph.simplify import infer_shapes

# Random numbers are drawn anew on every run, and quantized constants keep their scales.
NEVER_FOLDED = (
    *("Random", "Bernoulli", "Multinomial", "Dropout"),
    *("Constant", "Quantize", "Dequantize"),
)

AnyArray = NDArray[np.generic]
Affine = tuple[NDArray[np.float64], NDArray[np.float64]]


def fold_constants(model: ir.Model) -> tuple[ir.Model, str]:
    """Return a copy in which `op(constant, ...)` is a stored tensor."""
    folded, _ = infer_shapes(model)
    names = UniqueNames(tensor_names(folded.graph))
    count = 0
    for node in list(folded.graph):  # those before it are folded already
        output = node.outputs[0]
        never = not is_standard(node) or node.op_type.startswith(NEVER_FOLDED) or has_subgraph(node)
        if never or len(node.outputs) != 1 or output.is_graph_output():
            continue
        if (result := _evaluate(node)) is not None:
            stored = make_initializer(names.reserve(f"{output.name}_folded"), result)
            folded.graph.register_initializer(stored)
            ir.convenience.replace_all_uses_with(output, stored)
            folded.graph.remove(node, safe=True)
            count += 1
    if not count:
        return model, ""
    common.RemoveUnusedNodesPass()(folded)
    return folded, f"{count} folded"


def _evaluate(node: ir.Node) -> AnyArray | None:
    """Return what a node computes, if all its inputs are constant and the result is not large."""
    inputs: list[AnyArray] = []
    for index, value in enumerate(node.inputs):
        array = constant_array(value)
        if array is None and node.op_type == "CastLike" and index == 1:
            # CastLike needs the type of its second input, not its values.
            dtype = value.dtype if value is not None else None
            array = None if dtype is None else np.zeros(1, dtype.numpy())
        if array is None:
            return None
        inputs.append(array)
    try:
        proto = ir.to_proto(node)
        feeds = dict(zip(list(proto.input), inputs, strict=True))
        (result,) = ReferenceEvaluator(proto).run(None, feeds) if inputs else (None,)
    except Exception:  # an operator the evaluator does not know stays in the graph
        return None
    # A result above 1 MiB is stored only if it is not larger than the inputs it replaces.
    limit = max(1 << 20, sum(array.nbytes for array in inputs))
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
    names = UniqueNames(tensor_names(folded.graph))
    affine = ("BatchNormalization", "Mul", "Div", "Add", "Sub")
    nodes = [node for node in folded.graph if is_standard(node, *affine)]
    count = sum(_fold_affine(folded.graph, node, names) for node in nodes)
    if not count:
        return model, ""
    common.RemoveUnusedNodesPass()(folded)  # the statistics, and the weights that were replaced
    return folded, f"{count} folded"


def _fold_affine(graph: ir.Graph, norm: ir.Node, names: UniqueNames) -> bool:
    swapped = norm.op_type in ("Mul", "Add") and constant_array(norm.inputs[0]) is not None
    source = norm.inputs[int(swapped)]
    linear = producer_of(source)
    if source is None or linear is None or only_reader(source) is not norm:
        return False
    if not is_standard(linear, "Conv", "ConvTranspose", "Gemm"):
        return False
    weight = constant_array(linear.inputs[1])
    has_bias = len(linear.inputs) > 2 and linear.inputs[2] is not None
    bias = constant_array(linear.inputs[2]) if has_bias else np.zeros(1)
    if weight is None or bias is None or linear.attributes.get_float("beta", 1.0) != 1.0:
        return False
    # The scale varies along the output channels of the weight.
    axis = 0 if linear.op_type == "Conv" or is_transposed(linear) else 1
    split, along, groups = list(weight.shape), [1] * weight.ndim, 1
    along[axis] = -1
    if linear.op_type == "ConvTranspose":
        # (inputs, outputs of one group, ...), the inputs split over the groups.
        groups = linear.attributes.get_int("group", 1)
        split, along = [groups, -1, *split[1:]], [groups, *along]
    if norm.op_type == "BatchNormalization":
        affine = _batchnorm(norm)
    else:
        affine = _arithmetic(
            norm.op_type, norm.inputs[int(not swapped)], weight.ndim, groups * weight.shape[axis]
        )
    if affine is None:
        return False
    scale, shift = affine
    scaled = weight.astype(np.float64).reshape(split) * scale.reshape(along)
    _replace_constant(linear, 1, scaled.reshape(weight.shape).astype(weight.dtype), names)
    shifted = bias.astype(np.float64) * scale + shift
    _replace_constant(linear, 2, shifted.astype(weight.dtype), names)
    # The output of the linear node takes over the name.
    old, new = norm.outputs[0], linear.outputs[0]
    name = old.name
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    new.shape, new.type = old.shape, old.type
    graph.remove(norm, safe=True)
    new.name = name
    return True


def _batchnorm(norm: ir.Node) -> Affine | None:
    parameters = [constant_array(value) for value in norm.inputs[1:5]]
    training = norm.attributes.get_int("training_mode", 0) or any(norm.outputs[1:])
    if training or any(array is None for array in parameters):
        return None
    gamma, beta, mean, variance = (np.asarray(array, np.float64) for array in parameters)
    scale = gamma / np.sqrt(variance + norm.attributes.get_float("epsilon", 1e-5))
    return scale, beta - mean * scale


def _arithmetic(op: str, operand: ir.Value | None, rank: int, channels: int) -> Affine | None:
    """Return what an arithmetic operator with a constant does to channels along axis 1."""
    array = constant_array(operand)
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


def _replace_constant(linear: ir.Node, index: int, array: AnyArray, names: UniqueNames) -> None:
    """Give the node a constant of its own; the old one may have other readers."""
    old = linear.inputs[index] if index < len(linear.inputs) else None
    stem = old.name if old is not None else f"{linear.outputs[0].name}.bias"
    value = make_initializer(names.reserve(f"{stem}_folded"), array)
    assert isinstance(linear.graph, ir.Graph), "only nodes of the main graph are folded"
    linear.graph.register_initializer(value)
    if index == len(linear.inputs):
        linear.resize_inputs(index + 1)
    linear.replace_input_with(index, value)
