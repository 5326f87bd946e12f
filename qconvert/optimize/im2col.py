"""A layer as a product of matrices: its inputs as rows (im2col), its weight as columns.

A convolution is such a product at each position of its output, one for each group: rows are
[group, row, input], weights [group, output, input], with the inputs in the order in which integer
kernels add their products (`pairs.kernel_rows`). `positions` are flat indices into the output
map, one line for each image of a batch.
"""

import math

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qconvert.core.scales import FloatArray
from qconvert.graph.patterns import weight_shape
from qconvert.quantize.pairs import kernel_rows, restore_rows

Positions = NDArray[np.intp]
CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})


def weight_matrix(node: ir.Node, weight: NDArray[np.generic]) -> NDArray[np.generic]:
    """Return a weight as [group, output, input]."""
    groups = _groups(node)
    if node.op_type == "ConvTranspose":
        grouped = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
        return grouped.transpose(0, 2, 3, 1).reshape(groups, weight.shape[1], -1)
    rows = kernel_rows(node, weight)
    return rows.reshape(groups, len(rows) // groups, -1)


def restore_weight(
    node: ir.Node, matrix: NDArray[np.generic], shape: tuple[int, ...]
) -> NDArray[np.generic]:
    """Return [group, output, input] as a weight of this shape: the inverse of `weight_matrix`."""
    groups, outputs = matrix.shape[:2]
    if node.op_type == "ConvTranspose":
        grouped = matrix.reshape(groups, outputs, -1, shape[0] // groups)
        return grouped.transpose(0, 3, 1, 2).reshape(shape)
    return restore_rows(node, matrix.reshape(groups * outputs, -1), shape)


def per_output(node: ir.Node, values: FloatArray, outputs: int) -> FloatArray:
    """Return one number for each output as [group, output]; groups may share them."""
    return np.resize(values, (_groups(node), outputs))


def count_rows(node: ir.Node, output: NDArray[np.generic]) -> int:
    """Return how many rows an image has."""
    return math.prod(output.shape[2:] if node.op_type in CONVOLUTIONS else output.shape[1:-1])


def gather_outputs(node: ir.Node, output: FloatArray, positions: Positions) -> FloatArray:
    """Return the outputs of a layer at these positions as [group, output, row]."""
    if node.op_type in CONVOLUTIONS:
        flat, groups = output.reshape(*output.shape[:2], -1), _groups(node)
        taken = np.stack([image[:, line] for image, line in zip(flat, positions, strict=True)], 1)
        return taken.reshape(groups, len(taken) // groups, -1)
    flat = output.reshape(len(output), -1, output.shape[-1])
    taken = np.concatenate([image[line] for image, line in zip(flat, positions, strict=True)])
    return np.ascontiguousarray(taken.T)[np.newaxis]


def gather_inputs(
    node: ir.Node, inputs: FloatArray, output: FloatArray, positions: Positions
) -> FloatArray:
    """Return the inputs that make the outputs at these positions as [group, row, input]."""
    if node.op_type not in CONVOLUTIONS:
        flat = inputs.reshape(len(inputs), -1, inputs.shape[-1])
        lines = [image[line] for image, line in zip(flat, positions, strict=True)]
        return np.concatenate(lines)[np.newaxis]
    groups, (images, channels) = _groups(node), inputs.shape[:2]
    flat = inputs.reshape(images, channels, -1)
    kernel = math.prod(weight_shape(node)[2:])
    patches = np.empty((images, channels, positions.shape[1], kernel), dtype=np.float32)
    for image, line, patch in zip(flat, positions, patches, strict=True):
        sources, inside = _patch_sources(node, inputs.shape[2:], output.shape[2:], line)
        np.take(image, sources, axis=1, out=patch)
        np.multiply(patch, inside, out=patch)
    grouped = patches.reshape(images, groups, channels // groups, -1, kernel)
    rows = np.ascontiguousarray(grouped.transpose(1, 0, 3, 4, 2))
    return rows.reshape(groups, images * positions.shape[1], -1)


def _patch_sources(
    node: ir.Node, input_map: tuple[int, ...], output_map: tuple[int, ...], positions: Positions
) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Return where the kernel at each output position reads, and 0 where that is padding.

    A convolution reads `i = o * stride + k * dilation - pad`; a transposed one reads where
    `i * stride = o + pad - k * dilation` has a whole solution.
    """
    kernel = weight_shape(node)[2:]
    strides = node.attributes.get_ints("strides", [1] * len(kernel))
    dilations = node.attributes.get_ints("dilations", [1] * len(kernel))
    pads = node.attributes.get_ints("pads", [0] * 2 * len(kernel))
    transposed = node.op_type == "ConvTranspose"
    mode = node.attributes.get_string("auto_pad", "NOTSET")
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        small, large = (input_map, output_map) if transposed else (output_map, input_map)
        sizes = zip(small, large, strides, kernel, dilations, strict=True)
        totals = [
            max(0, (low - 1) * stride + (size - 1) * dilation + 1 - high)
            for low, high, stride, size, dilation in sizes
        ]
        pads = [total // 2 if mode == "SAME_UPPER" else total - total // 2 for total in totals]
    output_indices = np.unravel_index(positions, output_map)
    kernel_indices = np.indices(kernel).reshape(len(kernel), -1)
    sources = np.zeros((len(positions), kernel_indices.shape[1]), dtype=np.intp)
    inside = np.ones(sources.shape, dtype=bool)
    for axis, size in enumerate(input_map):
        offsets = (kernel_indices[axis] * dilations[axis])[np.newaxis]
        if transposed:
            scaled = output_indices[axis][:, np.newaxis] + pads[axis] - offsets
            index, remainder = np.divmod(scaled, strides[axis])
            inside &= remainder == 0
        else:
            index = (output_indices[axis] * strides[axis])[:, np.newaxis] + offsets - pads[axis]
        inside &= (index >= 0) & (index < size)
        sources = sources * size + np.clip(index, 0, size - 1)
    return sources, inside.astype(np.float32)


def _groups(node: ir.Node) -> int:
    return node.attributes.get_int("group", 1) if node.op_type in CONVOLUTIONS else 1
