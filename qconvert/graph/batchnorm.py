"""Fold BatchNormalization into the Conv, ConvTranspose or Gemm before it, and what is like it.

A constant that each channel is multiplied by, or that is added to it, is as good as one: some
exporters write the bias of a convolution so.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common

from qconvert.graph.names import UniqueNames, tensor_names
from qconvert.graph.patterns import constant_array, is_standard, only_reader

Float64Array = NDArray[np.float64]
LINEAR = ("Conv", "ConvTranspose", "Gemm")
NORM, SCALING, SHIFTING = "BatchNormalization", ("Mul", "Div"), ("Add", "Sub")


@dataclass(frozen=True)
class ChannelAffine:
    """What is done to each channel: `x * scale + shift`."""

    scale: Float64Array
    shift: Float64Array


def fold_batchnorm(model: ir.Model) -> tuple[ir.Model, str]:
    """Return a copy without the normalizations that fold, and how many did."""
    rewritten = model.clone()
    norms = [node for node in rewritten.graph if is_standard(node, NORM, *SCALING, *SHIFTING)]
    names = UniqueNames(tensor_names(rewritten.graph))
    folded = sum(_fold(rewritten.graph, norm, names) for norm in norms)
    if not folded:
        return model, ""
    common.RemoveUnusedNodesPass()(rewritten)  # the statistics, and weights that were scaled
    return rewritten, f"{folded} folded"


def _fold(graph: ir.Graph, norm: ir.Node, names: UniqueNames) -> bool:
    source = _activation_input(norm)
    linear = source.producer() if source is not None else None
    if source is None or linear is None or not is_standard(linear, *LINEAR):
        return False
    weight = constant_array(linear.inputs[1])
    affine = _batchnorm_affine(norm) if norm.op_type == NORM else _constant_affine(norm, linear)
    bias = constant_array(linear.inputs[2]) if _has_bias(linear) else np.zeros(1)
    if affine is None or weight is None or bias is None or only_reader(source) is not norm:
        return False
    if norm.attributes.get_int("training_mode", 0) or any(norm.outputs[1:]):
        return False
    if linear.op_type == "Gemm" and linear.attributes.get_float("beta", 1.0) != 1.0:
        return False
    new_weight = _scale_weight(linear, weight.astype(np.float64), affine.scale)
    new_bias = bias.astype(np.float64) * affine.scale + affine.shift
    _replace_constant(linear, 1, new_weight.astype(weight.dtype), names)
    _replace_constant(linear, 2, new_bias.astype(weight.dtype), names)
    _remove_norm(graph, linear, norm)
    return True


def _batchnorm_affine(norm: ir.Node) -> ChannelAffine | None:
    found = [constant_array(value) for value in norm.inputs[1:5]]
    if any(array is None for array in found):
        return None
    gamma, beta, mean, variance = (np.asarray(array, np.float64) for array in found)
    scale = gamma / np.sqrt(variance + norm.attributes.get_float("epsilon", 1e-5))
    return ChannelAffine(scale, beta - mean * scale)


def _activation_input(node: ir.Node) -> ir.Value | None:
    """Return what is normalized, or scaled or shifted by a constant."""
    if node.op_type in ("Mul", "Add") and constant_array(node.inputs[0]) is not None:
        return node.inputs[1]
    return node.inputs[0]


def _constant_affine(node: ir.Node, linear: ir.Node) -> ChannelAffine | None:
    """Return what an arithmetic operator does to the channels of what is before it."""
    other = next((each for each in node.inputs if each is not _activation_input(node)), None)
    array, channels = constant_array(other), _output_channels(linear)
    if array is None or array.dtype.kind != "f" or not channels:
        return None
    weight = constant_array(linear.inputs[1])
    rank = 0 if weight is None else weight.ndim
    sizes = (1,) * (rank - array.ndim) + array.shape
    if len(sizes) != rank or sizes[1] not in (1, channels) or array.size != sizes[1]:
        return None
    each = np.broadcast_to(array.astype(np.float64).ravel(), (channels,))
    if node.op_type == "Div" and not each.all():
        return None
    if node.op_type in SCALING:
        return ChannelAffine(1 / each if node.op_type == "Div" else each, np.zeros(channels))
    return ChannelAffine(np.ones(channels), -each if node.op_type == "Sub" else each)


def _output_channels(linear: ir.Node) -> int:
    """Return how many channels come out."""
    weight = constant_array(linear.inputs[1])
    if weight is None:
        return 0
    if linear.op_type == "ConvTranspose":
        return int(weight.shape[1]) * linear.attributes.get_int("group", 1)
    by_row = linear.op_type == "Conv" or linear.attributes.get_int("transB", 0) == 1
    return int(weight.shape[0 if by_row else 1])


def _has_bias(linear: ir.Node) -> bool:
    return len(linear.inputs) > 2 and linear.inputs[2] is not None


def _scale_weight(linear: ir.Node, weight: Float64Array, scale: Float64Array) -> Float64Array:
    """Multiply each output channel of the weight, wherever the operator keeps it."""
    if linear.op_type == "Conv":
        return weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
    if linear.op_type == "Gemm":
        by_row = linear.attributes.get_int("transB", 0) == 1
        return weight * (scale[:, None] if by_row else scale[None, :])
    # ConvTranspose: (inputs, outputs of one group, ...), the inputs split over the groups.
    groups = linear.attributes.get_int("group", 1)
    split = weight.reshape(groups, -1, *weight.shape[1:])
    per_group = scale.reshape(groups, 1, -1, *[1] * (weight.ndim - 2))
    return (split * per_group).reshape(weight.shape)


def _replace_constant(
    linear: ir.Node, index: int, array: NDArray[np.generic], names: UniqueNames
) -> None:
    """Give the node a tensor of its own; the old one may have other readers."""
    old = linear.inputs[index] if index < len(linear.inputs) else None
    stem = old.name if old is not None else f"{linear.outputs[0].name}.bias"
    name = names.reserve(f"{stem}_folded")
    value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
    value.shape, value.dtype = ir.Shape(array.shape), ir.DataType.from_numpy(array.dtype)
    assert isinstance(linear.graph, ir.Graph), "only nodes of the main graph are folded"
    linear.graph.register_initializer(value)
    if index == len(linear.inputs):
        linear.resize_inputs(index + 1)
    linear.replace_input_with(index, value)


def _remove_norm(graph: ir.Graph, linear: ir.Node, norm: ir.Node) -> None:
    """Let the linear node answer under the name the normalization had."""
    old, new = norm.outputs[0], linear.outputs[0]
    name = old.name
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    new.shape, new.type = old.shape, old.type
    graph.remove(norm, safe=True)
    new.name = name
