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

Index = slice | NDArray[np.intp]


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


def input_channels(node: ir.Node, shape: Sequence[int]) -> int:
    """Return how many neighbours in a row belong to one place of a filter; 0 for products."""
    return shape[1] if node.op_type in CONVOLUTIONS else 0


def find_pairs(size: int, channels: int = 0) -> list[tuple[Index, Index]]:
    """Return the first and second places of pairs in rows of this size.

    ONNX Runtime takes two after the other. With an odd number of channels, pairs of OpenVINO's
    kernels begin anew at each place of the filter, so both kinds are limited.
    """
    even = size // 2 * 2
    one_after_the_other = slice(0, even, 2), slice(1, even, 2)
    if channels < 3 or channels % 2 == 0:
        return [one_after_the_other]
    places, within = np.arange(0, size, channels), np.arange(0, channels - 1, 2)
    firsts = (places[:, np.newaxis] + within).ravel()
    return [one_after_the_other, (firsts, firsts + 1)]


def find_neighbours(size: int, channels: int = 0) -> list[list[int]]:
    """Return with which places each place of a row is a pair."""
    neighbours: list[list[int]] = [[] for _ in range(size)]
    for firsts, seconds in find_pairs(size, channels):
        places = np.arange(size)
        for first, second in zip(places[firsts].tolist(), places[seconds].tolist(), strict=True):
            neighbours[first].append(second)
            neighbours[second].append(first)
    return neighbours


def limit_pairs(integers: IntArray, exact: FloatArray, channels: int = 0) -> IntArray:
    """Return integers near the `exact` ones, in rows, with every pair within the limit.

    Both weights of a pair become smaller by half of what is too much: this adds the least squared
    error.
    """
    limited = integers.copy()
    # Weights only become smaller, so a later pair never breaks the limit of an earlier one.
    for firsts, seconds in find_pairs(integers.shape[-1], channels):
        first, second = limited[..., firsts], limited[..., seconds]
        excess = np.abs(first + second) - PAIR_LIMIT
        if not (excess > 0).any():
            continue
        sign, excess = np.sign(first + second), np.maximum(excess, 0)
        # The odd one is taken from the weight that was rounded up more.
        residual = (first - exact[..., firsts]) - (second - exact[..., seconds])
        half, odd, from_first = excess // 2, excess % 2, sign * residual >= 0
        limited[..., firsts] = first - sign * (half + odd * from_first)
        limited[..., seconds] = second - sign * (half + odd * ~from_first)
    return limited


def largest_sums(rows: FloatArray, channels: int = 0) -> NDArray[np.float64]:
    """Return the largest magnitude of a sum of two neighbours in each row."""
    sums = [
        np.abs(rows[..., firsts] + rows[..., seconds]).max(axis=-1, initial=0.0)
        for firsts, seconds in find_pairs(rows.shape[-1], channels)
    ]
    largest: NDArray[np.float64] = np.max(sums, axis=0).astype(np.float64)
    return largest
