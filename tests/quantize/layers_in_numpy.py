"""Layers computed the slow way, straight from their definition, to hold ONNX Runtime against."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

Array = NDArray[Any]


def convolved(node: ir.Node, image: Array, weight: Array, bias: Array | None) -> Array:
    """Return a two-dimensional convolution, window by window."""
    group = node.attributes.get_int("group", 1)
    top, left, bottom, right = node.attributes.get_ints("pads", (0, 0, 0, 0))
    down, across = node.attributes.get_ints("strides", (1, 1))
    padded = np.pad(image.astype(np.float64), ((0, 0), (0, 0), (top, bottom), (left, right)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, weight.shape[2:], axis=(2, 3))
    windows = windows[:, :, ::down, ::across]
    reads, makes = image.shape[1] // group, weight.shape[0] // group
    parts = [
        np.einsum(
            "nchwij,ocij->nohw",
            windows[:, index * reads : (index + 1) * reads],
            weight[index * makes : (index + 1) * makes].astype(np.float64),
        )
        for index in range(group)
    ]
    output = np.concatenate(parts, axis=1)
    return output if bias is None else output + bias.reshape(1, -1, 1, 1)


def product(node: ir.Node, rows: Array, weight: Array, bias: Array | None) -> Array:
    """Return a matrix product with a bias."""
    transposed = weight.T if node.attributes.get_int("transB", 0) else weight
    output: Array = rows.astype(np.float64) @ transposed
    return output if bias is None else output + bias


def max_pooled(maps: Array) -> Array:
    """Return the largest of every two by two values."""
    blocks = maps.reshape(*maps.shape[:2], maps.shape[2] // 2, 2, -1, 2)
    largest: Array = blocks.max(axis=(3, 5))
    return largest


DEFINITIONS: dict[str, Callable[..., Array]] = {
    "Conv": convolved,
    "Gemm": product,
    "Add": lambda node, a, b: a.astype(np.float64) + b,
    "Mul": lambda node, a, b: a.astype(np.float64) * b,
    "Concat": lambda node, *parts: np.concatenate(parts, axis=1),
    "Relu": lambda node, a: np.maximum(a, 0.0),
    "Clip": lambda node, a, low, high: np.clip(a, low, high),
    "Sigmoid": lambda node, a: 1.0 / (1.0 + np.exp(-a.astype(np.float64))),
    "GlobalAveragePool": lambda node, a: a.mean(axis=(2, 3), keepdims=True, dtype=np.float64),
    "MaxPool": lambda node, a: max_pooled(a),
    "Flatten": lambda node, a: a.reshape(len(a), -1),
}


def computed(node: ir.Node, inputs: list[Array | None]) -> Array:
    """Return the result of a node in double precision."""
    if node.op_type in ("Conv", "Gemm"):
        inputs = [*inputs, None][:3]
    return DEFINITIONS[node.op_type](node, *inputs)
