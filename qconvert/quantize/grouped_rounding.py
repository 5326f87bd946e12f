"""Rounding a weight with grouped scales so that the outputs of its layer change least.

For each output the squared error over the rows X of a layer's inputs is a quadratic form of its
weights (Hassibi & Stork 1993), so the sums H = X X' are all that rounding needs:

    |w X - v X|^2 = (w - v) H (w - v)',    v = (integer - zero_point) * scale

GPTQ (Frantar et al. 2022) rounds one input after the other, in the order of the diagonal of H, and
lets the inputs that are not yet rounded make up for the error through the inverse of H. Afterwards
every weight takes the best integer for all others as they are (coordinate descent), and every scale
its best value for the integers (least squares), in turns: neither makes the error larger.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from qconvert.core.scales import FloatArray, round_scale_up
from qconvert.quantize.grouped_weights import (
    GroupedWeight,
    WeightFormat,
    choose_scales,
    join_outputs,
)

# Added to the diagonal of H, relative to its mean: weights of inputs that are hardly ever active
# stay where they are, and H has an inverse.
DAMPING = 0.01
# So many inputs change before all others follow.
BLOCK_SIZE = 64
# Turns of coordinate descent and scales.
TURNS = 3

Matrix = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class RoundingProblem:
    """A weight [output, input], the sums H of its inputs, and what its outputs should add to it.

    The best float weight is `weight + correction H^-1`: `correction` is Y X' - w H, where Y are the
    outputs to reach on inputs X that have errors of earlier layers; zero where X is exact.
    """

    weight: FloatArray
    gram: Matrix
    correction: Matrix | None = None

    def damped(self) -> Matrix:
        """Return H with a larger diagonal; inputs that are always zero keep their weights."""
        gram: Matrix = self.gram.astype(np.float64)
        diagonal = np.einsum("ii->i", gram)
        diagonal += DAMPING * (float(diagonal.mean()) or 1.0)
        return gram

    def error(self, values: FloatArray) -> float:
        """Return the squared error of the outputs with these weights, without a constant."""
        change = values.astype(np.float64) - self.weight
        error = ((change @ self.gram) * change).sum()
        if self.correction is not None:
            error -= 2 * (change * self.correction).sum()
        return float(error)


def round_gptq(problem: RoundingProblem, kind: WeightFormat, method: str) -> GroupedWeight:
    """Return the weight with grouped scales, rounded by GPTQ and improved in turns."""
    # Every thread solves outputs of its own; products this small are slower on several threads.
    threads = os.cpu_count() or 1
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(threads) as pool:
        gram = problem.damped()
        # The largest diagonal first: those left make up best for it. With U'U = H^-1 in this order,
        # the best correction of input j for the error e of input i is -e U[i,j] / U[i,i].
        order = np.argsort(-np.diagonal(gram), kind="stable")
        inverse = np.linalg.inv(gram[np.ix_(order, order)])
        factor = np.linalg.cholesky((inverse + inverse.T) / 2).T.astype(np.float32)
        target = problem.weight.astype(np.float64)
        if problem.correction is not None:
            target = target + np.linalg.solve(gram, problem.correction.T).T
        exact, sums = target.astype(np.float32), gram.astype(np.float32)
        # Scales are fixed first, so that inputs can be rounded in any order.
        scaled = choose_scales(exact, kind, method, np.diagonal(gram))

        def solve(part: slice) -> GroupedWeight:
            rounded = _round_in_order(exact[part], factor, order, scaled.outputs(part))
            for _ in range(TURNS):
                rounded = _descend(exact[part], sums, rounded)
                rounded = _fit_scales(exact[part], sums, rounded, kind.scale_dtype)
            return _descend(exact[part], sums, rounded)

        size = -(-len(exact) // threads)
        parts = [slice(start, start + size) for start in range(0, len(exact), size)]
        return join_outputs(list(pool.map(solve, parts)))


def _round_in_order(
    target: FloatArray, factor: FloatArray, order: NDArray[np.intp], scaled: GroupedWeight
) -> GroupedWeight:
    """Round one input after the other, and let those left make up for its error."""
    grid, size = scaled.grid, target.shape[1]
    # Inputs come first here: one input of all outputs lies together in memory.
    scales = np.ascontiguousarray(scaled.input_scales()[:, order].T)
    zero_points = scaled.input_zero_points()[:, order].T.astype(np.float32)
    left = target[:, order].T.copy()
    integers = np.empty_like(left)
    for start in range(0, size, BLOCK_SIZE):
        stop = min(start + BLOCK_SIZE, size)
        errors = np.empty((stop - start, left.shape[1]), np.float32)
        for index in range(start, stop):
            number = np.rint(left[index] / scales[index]) + zero_points[index]
            np.clip(number, grid.quant_min, grid.quant_max, out=number)
            integers[index] = number
            value = (number - zero_points[index]) * scales[index]
            error = errors[index - start]
            np.divide(left[index] - value, factor[index, index], out=error)
            left[index + 1 : stop] -= factor[index, index + 1 : stop, np.newaxis] * error
        left[stop:] -= factor[start:stop, stop:].T @ errors
    restored = np.empty_like(integers)
    restored[order] = integers
    return replace(scaled, integers=restored.T.astype(np.int32))


def _descend(target: FloatArray, gram: FloatArray, rounded: GroupedWeight) -> GroupedWeight:
    """Give every weight in turn the integer with the least error for all others as they are."""
    grid, size = rounded.grid, target.shape[1]
    scales = np.ascontiguousarray(rounded.input_scales().T)
    integers = rounded.integers.T.astype(np.float32)
    gradient = gram @ (rounded.dequantize() - target).T
    for start in range(0, size, BLOCK_SIZE):
        block = slice(start, min(start + BLOCK_SIZE, size))
        slopes, own = gradient[block].copy(), gram[block, block]
        changes = np.empty_like(slopes)
        for index in range(len(slopes)):
            place = start + index
            number = np.rint(integers[place] - slopes[index] / (own[index, index] * scales[place]))
            np.clip(number, grid.quant_min, grid.quant_max, out=number)
            np.multiply(number - integers[place], scales[place], out=changes[index])
            integers[place] = number
            slopes[index + 1 :] += own[index + 1 :, index, np.newaxis] * changes[index]
        gradient += gram[:, block] @ changes
    return replace(rounded, integers=integers.T.astype(np.int32))


def _fit_scales(
    target: FloatArray, gram: FloatArray, rounded: GroupedWeight, scale_dtype: str
) -> GroupedWeight:
    """Give all groups of an output the scales with the least error for their integers.

    With u_g the shifted integers of group g, zero elsewhere: sum_h (u_g H u_h') s_h = u_g H w'.
    A scale that would not be positive, or more than a quarter off, stays.
    """
    outputs, count = rounded.scales.shape
    shifted = rounded.shifted()
    starts = np.arange(count) * rounded.group
    products = np.empty((outputs, count, count))
    for number, start in enumerate(starts):
        part = slice(start, start + rounded.group)
        sums = (shifted[:, part] @ gram[part]) * shifted
        products[:, number] = np.add.reduceat(sums, starts, axis=1)
    sides = np.add.reduceat(shifted * (target @ gram), starts, axis=1).astype(np.float64)
    # A group of zeros says nothing about its scale.
    diagonal = np.einsum("ogg->og", products)
    diagonal += 1e-9 * diagonal.mean(axis=1, keepdims=True) + 1e-30
    fitted = np.linalg.solve(products, sides[..., np.newaxis])[..., 0]
    plausible = np.abs(fitted / rounded.scales - 1) < 0.25
    scales = np.where(plausible, fitted, rounded.scales)
    return replace(rounded, scales=round_scale_up(scales, scale_dtype))
