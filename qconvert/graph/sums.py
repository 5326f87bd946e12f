"""Operators that add up so much that float16 may overflow or stand still on the way."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from qconvert.graph.half_types import opset
from qconvert.graph.overflow import LIMIT, Ranges
from qconvert.graph.patterns import constant, is_standard

# Above this float16 does not hold every whole number, so that a sum of ones stands still.
COUNTS_TO = 2048
UNMEASURED = "it adds up values whose range was not measured"
# Their attribute `stash_type` says in which type they add up; for GroupNormalization since 21.
STASHING = {"LayerNormalization": 17, "RMSNormalization": 23, "GroupNormalization": 21}


@dataclass(frozen=True)
class Sum:
    """How many terms an operator adds up, what a term is at most, and how to speak of it.

    One that is `heavy` stays in float32 where nothing at all was measured.
    """

    count: Callable[[ir.Node], int | None]
    term: Callable[[float], float] = float
    of: str = "values"
    heavy: bool = True


def sums_too_much(node: ir.Node, ranges: Ranges) -> str:
    """Say why float16 may be too small for what a node adds up; empty where it is not."""
    if is_standard(node) and node.op_type in OTHERS:
        return OTHERS[node.op_type](node, ranges)
    sum_ = ACCUMULATING.get(node.op_type) if is_standard(node) else None
    if sum_ is None or _sums_in_float32(node):
        return ""
    top = ranges.of(node.inputs[0])
    if top is None:
        return UNMEASURED if ranges.seen or sum_.heavy else ""
    count = sum_.count(node)
    if count is None:
        return "how many values it adds up is not known"
    fits = count * sum_.term(top) <= LIMIT
    return "" if fits else f"it adds up {count} {sum_.of} of up to {top:.4g}"


def _long_row(node: ir.Node, ranges: Ranges) -> str:
    row = _size(node, [node.attributes.get_int("axis", -1)]) or 0
    return f"its rows of {row} are longer than float16 can count" if row > COUNTS_TO else ""


def _steep(node: ir.Node, ranges: Ranges) -> str:
    top = ranges.of(node.inputs[0])
    if top is None:
        return "it grows fast, and its range was not measured" if ranges.seen else ""
    return f"e to the power of {top:.4g} leaves float16" if _power_of_e(top) > LIMIT else ""


def _sums_in_float32(node: ir.Node) -> bool:
    """Whether the operator itself is defined to add up in float32 whatever it reads."""
    since = STASHING.get(node.op_type)
    if since is None or node.graph is None or opset(node.graph.opset_imports) < since:
        return False
    return node.attributes.get_int("stash_type", ir.DataType.FLOAT) == ir.DataType.FLOAT


def _size(node: ir.Node, axes: list[int]) -> int | None:
    """Return how many values of the first input lie along some axes, None if a size is open."""
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    if shape is None or any(not -len(shape) <= axis < len(shape) for axis in axes):
        return None
    sizes = [shape[axis] for axis in axes]
    known = [size for size in sizes if isinstance(size, int)]
    return math.prod(known) if len(known) == len(sizes) else None


def _rank(node: ir.Node) -> int:
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    return len(shape) if shape is not None else 0


def _spatial(node: ir.Node) -> int | None:
    return _size(node, list(range(2, _rank(node)))) if _rank(node) else None


def _from_axis(node: ir.Node) -> int | None:
    axis, rank = node.attributes.get_int("axis", -1), _rank(node)
    return _size(node, list(range(axis % rank, rank))) if rank else None


def _of_a_group(node: ir.Node) -> int | None:
    values = _size(node, list(range(1, _rank(node)))) if _rank(node) else None
    return None if values is None else values // node.attributes.get_int("num_groups", 1)


def _kernel(node: ir.Node) -> int | None:
    return math.prod(node.attributes["kernel_shape"].as_ints())


def _reduced(node: ir.Node) -> int | None:
    """Count along the axes of a Reduce operator: an input, or an attribute in older opsets."""
    given = node.attributes.get("axes")
    axes = list(given.as_ints()) if given is not None else []
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        stored = constant(node.inputs[1])
        if stored is None:
            return None
        axes = [int(axis) for axis in stored.ravel()]
    noop: int = node.attributes.get_int("noop_with_empty_axes", 0)
    if noop and not axes:
        return 1
    return _size(node, axes or list(range(_rank(node)))) if _rank(node) else None


def _square(top: float) -> float:
    return top * top


def _power_of_e(top: float) -> float:
    return math.exp(min(top, 700.0))


SQUARES = "squares of values"
POWERS = "powers of e with exponents"

# Products (`Conv`, `MatMul`, ...) are not among them: every engine adds those up in float32.
ACCUMULATING: dict[str, Sum] = {
    "ReduceSum": Sum(_reduced),
    "ReduceMean": Sum(_reduced),
    "ReduceL1": Sum(_reduced),
    "ReduceLogSum": Sum(_reduced),
    "ReduceSumSquare": Sum(_reduced, _square, SQUARES),
    "ReduceL2": Sum(_reduced, _square, SQUARES),
    "ReduceLogSumExp": Sum(_reduced, _power_of_e, POWERS),
    "LayerNormalization": Sum(_from_axis, _square, SQUARES),
    "RMSNormalization": Sum(_from_axis, _square, SQUARES),
    "GroupNormalization": Sum(_of_a_group, _square, SQUARES),
    "InstanceNormalization": Sum(_spatial, _square, SQUARES),
    "MeanVarianceNormalization": Sum(
        lambda node: _size(node, list(node.attributes.get_ints("axes", (0, 2, 3)))),
        _square,
        SQUARES,
    ),
    "LpNormalization": Sum(
        lambda node: _size(node, [node.attributes.get_int("axis", -1)]), _square, SQUARES
    ),
    "LRN": Sum(lambda node: node.attributes["size"].as_int(), _square, SQUARES),
    "GlobalAveragePool": Sum(_spatial, heavy=False),
    "AveragePool": Sum(_kernel, heavy=False),
    "GlobalLpPool": Sum(_spatial, _square, SQUARES, heavy=False),
    "LpPool": Sum(_kernel, _square, SQUARES, heavy=False),
}

# Those that overflow in another way.
OTHERS: dict[str, Callable[[ir.Node, Ranges], str]] = {
    "Softmax": _long_row,
    "LogSoftmax": _long_row,
    "Exp": _steep,
}
