"""Weights that x86 without VNNI multiplies without overflow.

Its kernels multiply unsigned activations by signed weights with VPMADDUBSW, which adds the products
of two neighbours along the reduction in 16 bits, and saturates. Activations are at most 255, so

    |a0 w0 + a1 w1| <= 255 |w0 + w1| <= 32640        if |w0 + w1| <= 128 and both have one sign

and with different signs the sum is no larger than one product. Under this limit every sum is exact,
so one file gives the same answers on every x86.
"""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qconvert.core.scales import FloatArray, IntArray
from qconvert.graph.patterns import is_transposed

# The largest sum of two neighbouring weights: 255 * 129 needs more than 16 bits.
PAIR_LIMIT = 128
CONVOLUTIONS = frozenset({"Conv", "QLinearConv"})


def adds_pairs(node: ir.Node, shape: Sequence[int]) -> bool:
    """Whether the integer kernel of a node with a weight of this shape adds products in pairs.

    Kernels for one filter per channel add none, and transposed convolutions have no kernel.
    """
    if node.op_type not in CONVOLUTIONS:
        return node.op_type != "ConvTranspose"
    return shape[1] > 1 or node.attributes.get_int("group", 1) != shape[0]


def kernel_rows(node: ir.Node, weight: NDArray[np.generic]) -> NDArray[np.generic]:
    """Return a weight as [output, input], inputs in the order in which kernels add their products.

    A convolution adds all input channels at one place of its filter, then those at the next.
    """
    if node.op_type in CONVOLUTIONS:
        return np.moveaxis(weight, 1, -1).reshape(len(weight), -1)
    if is_transposed(node):
        return weight
    return np.moveaxis(weight, -2, -1).reshape(-1, weight.shape[-2])


def restore_rows(
    node: ir.Node, rows: NDArray[np.generic], shape: tuple[int, ...]
) -> NDArray[np.generic]:
    """Return [output, input] as a weight of this shape: the inverse of `kernel_rows`."""
    if node.op_type in CONVOLUTIONS:
        return np.moveaxis(rows.reshape(shape[0], *shape[2:], shape[1]), -1, 1)
    return np.ascontiguousarray(rows if is_transposed(node) else rows.T)


def limit_pairs(integers: IntArray, exact: FloatArray) -> IntArray:
    """Return integers near the `exact` ones, in rows, with every pair within the limit.

    Both weights of a pair become smaller by half of what is too much: this adds the least squared
    error.
    """
    even = integers.shape[-1] // 2 * 2
    limited = integers.copy()
    pairs = limited[..., :even].reshape(*integers.shape[:-1], -1, 2)
    sums = pairs.sum(axis=-1)
    places = np.nonzero(np.abs(sums) > PAIR_LIMIT)
    if places[0].size:
        excess, sign = np.abs(sums[places]) - PAIR_LIMIT, np.sign(sums[places])
        # The odd one is taken from the weight that was rounded up more.
        residuals = pairs[places] - exact[..., :even].reshape(pairs.shape)[places]
        first = sign * (residuals[:, 0] - residuals[:, 1]) >= 0
        half, odd = excess // 2, excess % 2
        cuts = np.stack([half + odd * first, half + odd * ~first], axis=-1)
        pairs[places] -= sign[:, np.newaxis] * cuts
        limited[..., :even] = pairs.reshape(*integers.shape[:-1], even)
    return limited


def largest_sums(rows: FloatArray) -> NDArray[np.float64]:
    """Return the largest magnitude of a sum of two neighbours in each row."""
    even = rows.shape[-1] // 2 * 2
    sums = rows[..., :even].reshape(*rows.shape[:-1], -1, 2).sum(axis=-1)
    largest: NDArray[np.float64] = np.abs(sums).max(axis=-1, initial=0.0).astype(np.float64)
    return largest
