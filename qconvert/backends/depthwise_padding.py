"""Depthwise convolutions of integers with as many channels as their kernel takes at a time.

The kernel that ONNX Runtime has for x86 (MLAS, `qdwconv_avx2.cpp`) computes 16 channels at a time and
the rest one by one: 72 channels take 2.6 times as long as 80 with AVX-512, 1.4 times with AVX2.
`pad_depthwise` adds channels whose weights are zero, from the convolution that writes them to the one
that reads them and multiplies them by zero. So no result changes.
"""

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from qconvert.graph import patterns

MULTIPLE = 16
# At most this share of channels is added: operators around the convolution compute them too.
MAX_SHARE = 0.25
CHANNEL_AXIS = 1
WEIGHT, SCALE, ZERO_POINT, BIAS = 3, 4, 5, 8  # the constants of a QLinearConv
# Operators that compute every channel alone, and which of their inputs are tensors; the other ones
# are scales and zero points.
CHANNELWISE = {
    "QLinearAdd": (0, 3),
    "QLinearMul": (0, 3),
    "QLinearSigmoid": (0,),
    "QLinearLeakyRelu": (0,),
    "QLinearGlobalAveragePool": (0,),
}


@dataclass(frozen=True)
class Region:
    """Tensors that have the same channels, and the convolutions that write, filter and read them."""

    channels: int
    tensors: set[ir.Value] = field(default_factory=set)
    writers: set[ir.Node] = field(default_factory=set)
    depthwise: set[ir.Node] = field(default_factory=set)
    readers: set[ir.Node] = field(default_factory=set)


def pad_depthwise(graph: ir.Graph) -> int:
    """Pad depthwise convolutions in a graph that ONNX Runtime optimized; return their number."""
    names, count = patterns.UniqueNames(patterns.tensor_names(graph)), 0
    for node in graph:
        channels = _depthwise_channels(node)
        padding = -channels % MULTIPLE
        # An even number keeps the pairs that products are added in (`quantize.pairs`).
        worthwhile = 0 < padding <= MAX_SHARE * channels and channels % 2 == 0
        if worthwhile and (region := _find_region(node, channels)):
            _pad(graph, region, channels + padding, names)
            count += len(region.depthwise)
    for value in list(graph.initializers.values()):
        if not value.uses() and not value.is_graph_output():
            graph.initializers.pop(str(value.name))
    return count


def _depthwise_channels(node: ir.Node) -> int:
    """Return the channels of a depthwise convolution with as many outputs as inputs, else 0."""
    if node.op_type != "QLinearConv":
        return 0
    shape, group = _weight_shape(node), node.attributes.get_int("group", 1)
    return group if group > 1 and shape[:2] == (group, 1) else 0


def _find_region(start: ir.Node, channels: int) -> Region | None:
    """Return what has the channels of a depthwise convolution; None if it cannot be padded."""
    region = Region(channels)
    pending = [start.inputs[0], start.outputs[0]]
    while pending:
        value = pending.pop()
        if value in region.tensors:
            continue
        producer = (
            value.producer() if value is not None and _has_channels(value, channels) else None
        )
        if value is None or producer is None or value.is_graph_output():
            return None
        region.tensors.add(value)
        neighbours = [_add_producer(region, producer)]
        neighbours += [_add_reader(region, use.node, use.idx) for use in value.uses()]
        for tensors in neighbours:
            if tensors is None:
                return None
            pending += tensors
    return region


def _add_producer(region: Region, node: ir.Node) -> list[ir.Value | None] | None:
    """Add the producer of a tensor; return the tensors that share its channels, None for any."""
    if node.op_type == "QLinearConv":
        return _add_convolution(region, node, region.writers)
    return _channelwise_tensors(node)


def _add_reader(region: Region, node: ir.Node, slot: int) -> list[ir.Value | None] | None:
    """Add a reader of a tensor; return the tensors that share its channels, None for any."""
    if node.op_type == "QLinearConv":
        return _add_convolution(region, node, region.readers) if slot == 0 else None
    return _channelwise_tensors(node)


def _add_convolution(
    region: Region, node: ir.Node, role: set[ir.Node]
) -> list[ir.Value | None] | None:
    if not _has_plain_constants(node):
        return None
    if _depthwise_channels(node) == region.channels:
        region.depthwise.add(node)
        return [node.inputs[0], node.outputs[0]]
    role.add(node)
    return [] if node.attributes.get_int("group", 1) == 1 else None


def _channelwise_tensors(node: ir.Node) -> list[ir.Value | None] | None:
    """Return the tensors of an operator that computes every channel alone; None for others."""
    tensors: list[ir.Value | None] = [node.outputs[0]]
    slots = CHANNELWISE.get(node.op_type)
    if slots is None or node.attributes.get_int("channels_last", False):
        return None
    for slot, value in enumerate(node.inputs):
        array = patterns.constant_array(value)
        if array is None and slot in slots:
            tensors.append(value)
        elif array is None or array.size != 1:
            return None
    return tensors


def _has_plain_constants(node: ir.Node) -> bool:
    """Whether a convolution has constant signed weights without zero points, and constant scales."""
    slots = (WEIGHT, SCALE, ZERO_POINT, *((BIAS,) if len(node.inputs) > BIAS else ()))
    arrays = [patterns.constant_array(node.inputs[slot]) for slot in slots]
    if any(array is None for array in arrays):
        return False
    weight, _, zero_point = arrays[:3]
    assert weight is not None, "checked above"
    assert zero_point is not None, "checked above"
    return weight.dtype == np.int8 and weight.ndim == 4 and not zero_point.any()


def _has_channels(value: ir.Value, channels: int) -> bool:
    shape = value.shape
    return shape is not None and len(shape) == 4 and shape[CHANNEL_AXIS] == channels


def _weight_shape(node: ir.Node) -> tuple[int, ...]:
    array = patterns.constant_array(node.inputs[WEIGHT])
    return () if array is None else array.shape


def _pad(graph: ir.Graph, region: Region, channels: int, names: patterns.UniqueNames) -> None:
    """Pad all tensors and weights of a region."""
    padding = channels - region.channels
    for node in graph:  # in its order, so that equal graphs stay equal
        if node in region.writers | region.depthwise:
            for slot in (WEIGHT, SCALE, ZERO_POINT, BIAS):
                _pad_constant(node, slot, 0, padding, names)
        if node in region.readers:
            _pad_constant(node, WEIGHT, CHANNEL_AXIS, padding, names)
        if node in region.depthwise:
            node.attributes.add(ir.AttrInt64("group", channels))
    for value in region.tensors:
        assert value.shape is not None, "the region has tensors with channels"
        sizes = list(value.shape)
        sizes[CHANNEL_AXIS] = channels
        value.shape = ir.Shape(sizes)


def _pad_constant(
    node: ir.Node, slot: int, axis: int, padding: int, names: patterns.UniqueNames
) -> None:
    """Pad a constant, if it has one value for each channel: scales with the last one, others with 0."""
    value = node.inputs[slot] if slot < len(node.inputs) else None
    array = patterns.constant_array(value)
    if value is None or array is None or array.size == 1:
        return
    widths = [(0, padding if number == axis else 0) for number in range(array.ndim)]
    padded = np.pad(array, widths, mode="edge" if slot == SCALE else "constant")
    patterns.set_constant_input(node, slot, names.reserve(f"{value.name}_padded"), padded)
