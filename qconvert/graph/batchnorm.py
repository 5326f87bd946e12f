"""Fold BatchNormalization, and constant arithmetic on channels, into the linear node before it."""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common

from qconvert.graph.names import UniqueNames, tensor_names
from qconvert.graph.patterns import (
    constant_array,
    is_standard,
    is_transposed,
    make_initializer,
    only_reader,
)

Float64Array = NDArray[np.float64]
LINEAR = ("Conv", "ConvTranspose", "Gemm")
NORM, SCALING, SHIFTING = "BatchNormalization", ("Mul", "Div"), ("Add", "Sub")


@dataclass(frozen=True)
class ChannelAffine:
    """An affine map of each channel: `x * scale + shift`."""

    scale: Float64Array
    shift: Float64Array


def fold_batchnorm(model: ir.Model) -> tuple[ir.Model, str]:
    """Fold an affine map of the channels into the Conv, ConvTranspose or Gemm before it.

    BatchNormalization computes y * scale + shift on y = W x + b, with

        scale = gamma / sqrt(variance + epsilon)      shift = beta - mean * scale

    and so does one Mul, Div, Add or Sub with a constant for each channel, as which some exporters
    write a bias. The linear node alone then computes (W * scale) x + (b * scale + shift). It must
    have no other reader, and a constant weight and bias.
    """
    folded = model.clone()
    nodes = [node for node in folded.graph if is_standard(node, NORM, *SCALING, *SHIFTING)]
    names = UniqueNames(tensor_names(folded.graph))
    count = sum(_fold(folded.graph, node, names) for node in nodes)
    if not count:
        return model, ""
    common.RemoveUnusedNodesPass()(folded)  # the statistics, and the weights that were replaced
    return folded, f"{count} folded"


def _fold(graph: ir.Graph, norm: ir.Node, names: UniqueNames) -> bool:
    source = _activation_input(norm)
    linear = source.producer() if source is not None else None
    if source is None or linear is None or not is_standard(linear, *LINEAR):
        return False
    weight = constant_array(linear.inputs[1])
    has_bias = len(linear.inputs) > 2 and linear.inputs[2] is not None
    bias = constant_array(linear.inputs[2]) if has_bias else np.zeros(1)
    if weight is None or bias is None or only_reader(source) is not norm:
        return False
    channels = _output_channels(linear, weight)
    affine = _batchnorm(norm) if norm.op_type == NORM else _arithmetic(norm, weight.ndim, channels)
    training: int = norm.attributes.get_int("training_mode", 0)
    if affine is None or training or any(norm.outputs[1:]):
        return False
    if linear.op_type == "Gemm" and linear.attributes.get_float("beta", 1.0) != 1.0:
        return False
    new_weight = _scale_weight(linear, weight.astype(np.float64), affine.scale)
    new_bias = bias.astype(np.float64) * affine.scale + affine.shift
    _replace_constant(linear, 1, new_weight.astype(weight.dtype), names)
    _replace_constant(linear, 2, new_bias.astype(weight.dtype), names)
    _remove_norm(graph, linear, norm)
    return True


def _activation_input(node: ir.Node) -> ir.Value | None:
    """Return the input that is normalized, or scaled or shifted by a constant."""
    if node.op_type in ("Mul", "Add") and constant_array(node.inputs[0]) is not None:
        return node.inputs[1]
    return node.inputs[0]


def _batchnorm(norm: ir.Node) -> ChannelAffine | None:
    parameters = [constant_array(value) for value in norm.inputs[1:5]]
    if any(array is None for array in parameters):
        return None
    gamma, beta, mean, variance = (np.asarray(array, np.float64) for array in parameters)
    scale = gamma / np.sqrt(variance + norm.attributes.get_float("epsilon", 1e-5))
    return ChannelAffine(scale, beta - mean * scale)


def _arithmetic(node: ir.Node, rank: int, channels: int) -> ChannelAffine | None:
    """Return what an arithmetic operator with a constant does to channels along axis 1."""
    activation = _activation_input(node)
    operand = constant_array(
        next((value for value in node.inputs if value is not activation), None)
    )
    if operand is None or operand.dtype.kind != "f" or not channels:
        return None
    shape = (1,) * (rank - operand.ndim) + operand.shape
    if len(shape) != rank or shape[1] not in (1, channels) or operand.size != shape[1]:
        return None
    factor = np.broadcast_to(operand.astype(np.float64).ravel(), (channels,))
    if node.op_type == "Div" and not factor.all():
        return None
    if node.op_type in SCALING:
        return ChannelAffine(1 / factor if node.op_type == "Div" else factor, np.zeros(channels))
    return ChannelAffine(np.ones(channels), -factor if node.op_type == "Sub" else factor)


def _output_channels(linear: ir.Node, weight: NDArray[np.generic]) -> int:
    if linear.op_type == "ConvTranspose":
        return int(weight.shape[1]) * linear.attributes.get_int("group", 1)
    return int(weight.shape[0 if linear.op_type == "Conv" or is_transposed(linear) else 1])


def _scale_weight(linear: ir.Node, weight: Float64Array, scale: Float64Array) -> Float64Array:
    """Multiply each output channel of a weight, whichever axis it lies along."""
    if linear.op_type == "Conv":
        return weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
    if linear.op_type == "Gemm":
        return weight * (scale[:, None] if is_transposed(linear) else scale[None, :])
    # ConvTranspose: (inputs, outputs of one group, ...), the inputs split over the groups.
    groups = linear.attributes.get_int("group", 1)
    split = weight.reshape(groups, -1, *weight.shape[1:])
    per_group = scale.reshape(groups, 1, -1, *[1] * (weight.ndim - 2))
    return (split * per_group).reshape(weight.shape)


def _replace_constant(
    linear: ir.Node, index: int, array: NDArray[np.generic], names: UniqueNames
) -> None:
    """Give the node a constant of its own; the old one may have other readers."""
    old = linear.inputs[index] if index < len(linear.inputs) else None
    stem = old.name if old is not None else f"{linear.outputs[0].name}.bias"
    value = make_initializer(names.reserve(f"{stem}_folded"), array)
    assert isinstance(linear.graph, ir.Graph), "only nodes of the main graph are folded"
    linear.graph.register_initializer(value)
    if index == len(linear.inputs):
        linear.resize_inputs(index + 1)
    linear.replace_input_with(index, value)


def _remove_norm(graph: ir.Graph, linear: ir.Node, norm: ir.Node) -> None:
    """Remove the normalization; the output of the linear node takes over its name."""
    old, new = norm.outputs[0], linear.outputs[0]
    name = old.name
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    new.shape, new.type = old.shape, old.type
    graph.remove(norm, safe=True)
    new.name = name
