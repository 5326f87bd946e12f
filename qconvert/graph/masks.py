"""Tensors that hold infinity because the graph says so: what is masked out before a Softmax.

Some graphs take the least float32 in its place, which is as good: sums of it are infinite.
"""

import numpy as np
import onnx_ir as ir

from qconvert.graph.patterns import constant
from qconvert.scales import HUGE


def masked(graph: ir.Graph) -> frozenset[str]:
    """Return the names of all tensors that follow from a stored infinity, or what is like one.

    They may be infinite on any image, and nothing is wrong with it.
    """
    found: set[ir.Value] = set()
    for node in graph:
        if any(value in found or _holds_infinity(value) for value in node.inputs):
            found.update(node.outputs)
    return frozenset(value.name or "" for value in found)


def _holds_infinity(value: ir.Value | None) -> bool:
    array = constant(value)
    return array is not None and array.dtype.kind == "f" and bool((np.abs(array) > HUGE).any())
