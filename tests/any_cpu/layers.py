"""Layers whose answers tell which two products a kernel adds in saturating 16 bits.

Every output channel holds 127 at two positions of the reduction and zeros elsewhere, one channel
for each two positions. With activations of 255 the sum is 64770, or 32767 if a kernel adds these
two products in 16 bits.
"""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from tests.any_cpu.environment import File

LARGEST, WEIGHT = 255, 127
EXACT = 2 * LARGEST * WEIGHT
Pair = tuple[int, int]


@dataclass(frozen=True)
class Layer:
    """One layer between Q/DQ nodes.

    `reduction` is the shape of what an output channel adds up: input channels of a group and the
    places of the filter for Conv, else one length. `image` is the shape of the activations.
    """

    name: str
    operator: str
    reduction: tuple[int, ...]
    image: tuple[int, ...]
    adds_pairs: bool = True
    group: int = 1
    attributes: dict[str, int] = field(default_factory=dict)
    signed: bool = False
    unsigned_weight: bool = False
    float_output: bool = False
    per_channel: bool = True

    @property
    def pairs(self) -> list[Pair]:
        """All two positions of the reduction, in ONNX's layout."""
        return list(itertools.combinations(range(prod(self.reduction)), 2))

    def neighbours(self) -> set[Pair]:
        """Return what an AVX2 kernel adds in 16 bits: 2i and 2i + 1, places before channels."""
        if not self.adds_pairs:
            return set()
        places = np.arange(prod(self.reduction)).reshape(self.reduction)
        order = np.moveaxis(places, 0, -1).ravel().tolist()
        return {(min(pair), max(pair)) for pair in zip(order[::2], order[1::2], strict=False)}

    def saturated(self, output: NDArray[np.float32]) -> set[Pair]:
        """Return the pairs whose channel is not exact, from the layer's output."""
        axis = 1 if self.operator == "Conv" else -1
        channels = np.moveaxis(output, axis, 0).reshape(output.shape[axis], -1)
        wrong = np.flatnonzero((np.abs(channels - EXACT) > EXACT / 100).any(axis=1))
        return {self.pairs[channel % len(self.pairs)] for channel in wrong}

    def activations(self) -> NDArray[np.float32]:
        """Return the input with which every sum is the largest."""
        return np.full(self.image, LARGEST, np.float32)


def conv(name: str, channels: int, filter_shape: Iterable[int], *image: int, **more: Any) -> Layer:
    """Return a convolution on `image`, the batch and the places of its activations."""
    batch, *places = image
    shape = (batch, channels * more.get("group", 1), *places)
    return Layer(name, "Conv", (channels, *filter_shape), shape, **more)


LAYERS = (
    conv("Conv 1x1", 8, (1, 1), 1, 5, 5),
    conv("Conv 1x1, 7 channels", 7, (1, 1), 1, 5, 5),
    conv("Conv 1x1, one pixel", 34, (1, 1), 1, 1, 1),
    conv("Conv 1x1, batch 2, one scale", 8, (1, 1), 2, 5, 5, per_channel=False),
    conv("Conv 3x3, 4 channels", 4, (3, 3), 1, 5, 5),
    conv("Conv 3x3, 5 channels", 5, (3, 3), 1, 5, 5),
    conv("Conv 3x3, 3 channels", 3, (3, 3), 1, 8, 8),
    conv("Conv 5x3, 3 channels", 3, (5, 3), 1, 8, 8),
    conv("Conv 3x3, 1 channel", 1, (3, 3), 1, 8, 8),
    conv("Conv 3x3, 2 groups of 4", 4, (3, 3), 1, 5, 5, group=2),
    conv("Conv 3x3, 2 groups of 3", 3, (3, 3), 1, 5, 5, group=2),
    conv("Conv 1x1, 4 groups of 6", 6, (1, 1), 1, 5, 5, group=4),
    conv("Conv 3x3, 4 groups of 1, multiplier", 1, (3, 3), 1, 5, 5, group=4),
    conv("Conv 3x3, depthwise, 36 channels", 1, (3, 3), 1, 5, 5, group=36, adds_pairs=False),
    conv("Conv 3x2, depthwise, 15 channels", 1, (3, 2), 1, 5, 5, group=15, adds_pairs=False),
    conv("Conv 3, depthwise, 3 channels", 1, (3,), 1, 9, group=3, adds_pairs=False),
    conv(
        "Conv 2x2x2, depthwise, 28 channels", 1, (2, 2, 2), 1, 3, 3, 3, group=28, adds_pairs=False
    ),
    conv("Conv 3, 5 channels", 5, (3,), 1, 16),
    conv("Conv 2x2x2, 3 channels", 3, (2, 2, 2), 1, 4, 4, 4),
    conv("Conv 3x3, signed activations", 4, (3, 3), 1, 5, 5, signed=True),
    conv("Conv 1x1, unsigned weights", 8, (1, 1), 1, 5, 5, unsigned_weight=True, adds_pairs=False),
    conv("Conv 1x1, float output", 8, (1, 1), 1, 5, 5, float_output=True, adds_pairs=False),
    Layer("Gemm, one row", "Gemm", (34,), (1, 34), attributes={"transB": 1}),
    Layer("Gemm, transB = 0", "Gemm", (33,), (3, 33), attributes={"transB": 0}),
    Layer("Gemm, float output", "Gemm", (33,), (2, 33), float_output=True),
    Layer("Gemm, signed activations", "Gemm", (33,), (2, 33), signed=True),
    Layer("Gemm, unsigned weights", "Gemm", (34,), (2, 34), unsigned_weight=True, adds_pairs=False),
    Layer("MatMul, one row", "MatMul", (34,), (1, 34)),
    Layer("MatMul, batches", "MatMul", (35,), (2, 7, 35)),
    Layer("MatMul, float output", "MatMul", (35,), (2, 7, 35), float_output=True),
    Layer("MatMul, signed activations", "MatMul", (34,), (2, 5, 34), signed=True),
)


def files() -> dict[str, File]:
    """Return the file of every layer with its inputs."""
    return {layer.name: File(model(layer), {"image": layer.activations()}) for layer in LAYERS}


def model(layer: Layer) -> onnx.ModelProto:
    """Return the layer between Q/DQ nodes, with float inputs and outputs."""
    kind = np.int8 if layer.signed else np.uint8
    zero, weight = kind(np.iinfo(kind).min), _weight(layer)
    channels = weight.shape[_axis(layer)]
    scale: Any = np.ones(channels, np.float32) if layer.per_channel else np.float32(1)
    arrays = {
        "one": np.float32(1),
        "zero": zero,
        "weight": weight,
        "weight_scale": scale,
        "weight_zero": np.zeros_like(scale, weight.dtype),
        "output_scale": np.float32(EXACT / 250),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["image", "one", "zero"], ["bytes"]),
        helper.make_node("DequantizeLinear", ["bytes", "one", "zero"], ["x"]),
        helper.make_node(
            "DequantizeLinear", ["weight", "weight_scale", "weight_zero"], ["w"], axis=_axis(layer)
        ),
        helper.make_node(layer.operator, ["x", "w"], ["y"], **_attributes(layer)),
    ]
    if not layer.float_output:
        ends = ["output_scale", "zero"]
        nodes.append(helper.make_node("QuantizeLinear", ["y", *ends], ["result"]))
        nodes.append(helper.make_node("DequantizeLinear", ["result", *ends], ["z"]))
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, layer.image)],
        [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def _axis(layer: Layer) -> int:
    return 0 if layer.operator == "Conv" or layer.attributes.get("transB") else 1


def _attributes(layer: Layer) -> dict[str, Any]:
    return {"group": layer.group} if layer.operator == "Conv" else layer.attributes


def _weight(layer: Layer) -> NDArray[np.generic]:
    """Return a channel for each two positions; groups hold the same, if they have many channels."""
    pairs = layer.pairs
    rows = np.zeros((len(pairs), prod(layer.reduction)), np.int8)
    for row, places in zip(rows, pairs, strict=True):
        row[list(places)] = WEIGHT
    if layer.operator == "Conv":
        copies = 1 if len(rows) == layer.group else layer.group
        weight = np.tile(rows, (copies, 1)).reshape(-1, *layer.reduction)
    else:
        weight = rows if _axis(layer) == 0 else np.ascontiguousarray(rows.T)
    return weight.astype(np.uint8) if layer.unsigned_weight else weight
