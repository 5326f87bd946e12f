"""A layer with a weight as a product of matrices: what it reads as rows, its weight as columns.

A convolution is such a product at each place of its output. With groups there is one product for
each: arrays of rows are [group, row, input], those of weights [group, output, input].
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qconvert.core.scales import FloatArray
from qconvert.graph.patterns import weight_shape

Positions = NDArray[np.intp]
CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})


def weight_matrix(node: ir.Node, weight: NDArray[np.generic]) -> NDArray[np.generic]:
    """Return a weight as [group, output, input]."""
    groups = _groups(node)
    if node.op_type == "Conv":
        return weight.reshape(groups, weight.shape[0] // groups, -1)
    if node.op_type == "ConvTranspose":
        apart = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
        return apart.transpose(0, 2, 1, 3).reshape(groups, weight.shape[1], -1)
    return (weight if _is_transposed(node) else weight.T)[np.newaxis]


def restore_weight(
    node: ir.Node, found: NDArray[np.generic], shape: tuple[int, ...]
) -> NDArray[np.generic]:
    """Return [group, output, input] as a weight of this shape: what `columns` does, undone."""
    if node.op_type == "Conv":
        return found.reshape(shape)
    if node.op_type == "ConvTranspose":
        groups, outputs = found.shape[:2]
        apart = found.reshape(groups, outputs, shape[0] // groups, -1)
        return apart.transpose(0, 2, 1, 3).reshape(shape)
    return np.ascontiguousarray(found[0] if _is_transposed(node) else found[0].T)


def per_output(node: ir.Node, values: FloatArray, outputs: int) -> FloatArray:
    """Return one number for each output as [group, output]; groups may have them in common."""
    groups = _groups(node)
    return np.resize(values, groups * outputs).reshape(groups, outputs)


def count_rows(node: ir.Node, answer: NDArray[np.generic]) -> int:
    """Return how many rows an image has."""
    spatial = answer.shape[2:] if node.op_type in CONVOLUTIONS else answer.shape[1:-1]
    return math.prod(spatial)


def gather_outputs(node: ir.Node, answer: FloatArray, places: Positions) -> FloatArray:
    """Return what a layer answered as [group, output, row]; `places` has a line for each image."""
    if node.op_type in CONVOLUTIONS:
        flat = answer.reshape(*answer.shape[:2], -1)
        taken = np.stack([flat[at][:, where] for at, where in enumerate(places)], axis=1)
        return taken.reshape(_groups(node), answer.shape[1] // _groups(node), -1)
    flat = answer.reshape(len(answer), -1, answer.shape[-1])
    taken = np.concatenate([flat[at][where] for at, where in enumerate(places)])
    return np.ascontiguousarray(taken.T)[np.newaxis]


def gather_inputs(
    node: ir.Node, read: FloatArray, answer: FloatArray, places: Positions
) -> FloatArray:
    """Return what a layer reads for those answers as [group, row, input]."""
    if node.op_type not in CONVOLUTIONS:
        flat = read.reshape(len(read), -1, read.shape[-1])
        return np.concatenate([flat[at][where] for at, where in enumerate(places)])[np.newaxis]
    window = _Window.of(node, read.shape[2:], answer.shape[2:])
    groups, size = _groups(node), math.prod(window.kernel)
    images, channels_read, rows = len(read), read.shape[1], places.shape[1]
    flat = read.reshape(images, channels_read, -1)
    found = np.empty((images, channels_read, rows * size), dtype=np.float32)
    for at, where in enumerate(places):
        source, inside = window.sources(where)
        np.take(flat[at], source.ravel(), axis=1, out=found[at])
        found[at] *= inside.ravel()
    apart = found.reshape(images, groups, channels_read // groups, rows, size)
    return np.ascontiguousarray(apart.transpose(1, 0, 3, 2, 4)).reshape(groups, images * rows, -1)


@dataclass(frozen=True)
class _Window:
    """The kernel of a convolution over maps of known sizes."""

    kernel: tuple[int, ...]
    strides: Sequence[int]
    dilations: Sequence[int]
    begins: Sequence[int]
    read: tuple[int, ...]
    made: tuple[int, ...]
    turned: bool

    @classmethod
    def of(cls, node: ir.Node, read: tuple[int, ...], made: tuple[int, ...]) -> "_Window":
        kernel = weight_shape(node)[2:]
        ones = [1] * len(kernel)
        strides = node.attributes.get_ints("strides", ones)
        dilations = node.attributes.get_ints("dilations", ones)
        turned = node.op_type == "ConvTranspose"
        small, large = (read, made) if turned else (made, read)
        spans = [
            max(0, (least - 1) * stride + (size - 1) * dilation + 1 - most)
            for least, most, stride, size, dilation in zip(
                small, large, strides, kernel, dilations, strict=True
            )
        ]
        return cls(kernel, strides, dilations, _begins(node, spans), read, made, turned)

    def sources(self, places: Positions) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
        """Return where each place of the output reads its kernel's inputs, and 0 where nowhere."""
        at = np.unravel_index(places, self.made)
        steps = np.indices(self.kernel).reshape(len(self.kernel), -1)
        source = np.zeros((len(places), steps.shape[1]), dtype=np.intp)
        inside = np.ones(source.shape, dtype=bool)
        for axis, size in enumerate(self.read):
            reach = (steps[axis] * self.dilations[axis])[np.newaxis]
            if self.turned:
                far = at[axis][:, np.newaxis] + self.begins[axis] - reach
                place, off = np.divmod(far, self.strides[axis])
                inside &= off == 0
            else:
                place = (at[axis] * self.strides[axis])[:, np.newaxis] + reach - self.begins[axis]
            inside &= (place >= 0) & (place < size)
            source = source * size + np.clip(place, 0, size - 1)
        return source, inside.astype(np.float32)


def _begins(node: ir.Node, spans: Sequence[int]) -> Sequence[int]:
    """Return how far the kernel reaches out at the low end of each axis."""
    automatic = node.attributes.get_string("auto_pad", "NOTSET")
    if automatic == "VALID":
        return [0] * len(spans)
    if automatic in ("SAME_UPPER", "SAME_LOWER"):
        return [span // 2 if automatic == "SAME_UPPER" else span - span // 2 for span in spans]
    return node.attributes.get_ints("pads", [0] * 2 * len(spans))[: len(spans)]


def _groups(node: ir.Node) -> int:
    return node.attributes.get_int("group", 1) if node.op_type in CONVOLUTIONS else 1


def _is_transposed(node: ir.Node) -> bool:
    return node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1
