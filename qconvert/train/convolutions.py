"""Convolutions and pools of ONNX as torch functions: pads that differ, `auto_pad`, rounding up."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Attributes = Mapping[str, Any]


def conv(attributes: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    rank = weight.dim() - 2
    x, pads = _pad_unevenly(attributes, x, weight.shape[2:], 0.0)
    convolve = (functional.conv1d, functional.conv2d, functional.conv3d)[rank - 1]
    strides, dilations = (
        _per_axis(attributes, "strides", rank),
        _per_axis(attributes, "dilations", rank),
    )
    return convolve(x, weight, bias, strides, pads, dilations, attributes.get("group", 1))


def conv_transpose(
    attributes: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    rank = weight.dim() - 2
    convolve = (
        functional.conv_transpose1d,
        functional.conv_transpose2d,
        functional.conv_transpose3d,
    )[rank - 1]
    strides, dilations = (
        _per_axis(attributes, "strides", rank),
        _per_axis(attributes, "dilations", rank),
    )
    y = convolve(x, weight, None, strides, 0, 0, attributes.get("group", 1), dilations)
    begins, ends = _transposed_pads(attributes, x.shape[2:], y.shape[2:], strides)
    # Padding crops the output; torch crops both sides alike.
    sides = [side for axis in reversed(range(rank)) for side in (-begins[axis], -ends[axis])]
    y = functional.pad(y, sides) if any(sides) else y
    return y if bias is None else y + bias.reshape(-1, *[1] * rank)


def _transposed_pads(
    attributes: Attributes, inputs: Sequence[int], outputs: Sequence[int], strides: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Return how much of the full output is cropped at the begin and at the end of each axis."""
    rank, kind = len(inputs), attributes.get("auto_pad", "NOTSET")
    extra = attributes.get("output_padding") or [0] * rank
    sizes = attributes.get("output_shape")
    if sizes is None and kind.startswith("SAME"):
        sizes = [size * stride for size, stride in zip(inputs, strides, strict=True)]
    if sizes is None:
        pads = attributes.get("pads") or [0] * (2 * rank)
        return pads[:rank], [pad - more for pad, more in zip(pads[rank:], extra, strict=True)]
    # The size of the output decides; output padding adds to what is cropped.
    totals = [
        max(0, full + more - size) for full, more, size in zip(outputs, extra, sizes, strict=True)
    ]
    halves = [total // 2 if kind == "SAME_UPPER" else total - total // 2 for total in totals]
    ends = [full - begin - size for full, begin, size in zip(outputs, halves, sizes, strict=True)]
    return halves, ends


def max_pool(attributes: Attributes, x: Tensor) -> Tensor:
    kernel = attributes["kernel_shape"]
    rank = len(kernel)
    x, pads = _pad_unevenly(attributes, x, kernel, -math.inf)
    pool = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)[rank - 1]
    strides, dilations = (
        _per_axis(attributes, "strides", rank),
        _per_axis(attributes, "dilations", rank),
    )
    return pool(x, kernel, strides, pads, dilations, bool(attributes.get("ceil_mode", 0)))


def average_pool(attributes: Attributes, x: Tensor) -> Any:
    kernel = attributes["kernel_shape"]
    rank = len(kernel)
    pool: Any = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)[rank - 1]
    strides, ceil = _per_axis(attributes, "strides", rank), bool(attributes.get("ceil_mode", 0))
    padded, pads = _pad_unevenly(attributes, x, kernel, 0.0)
    if padded is x:
        return pool(x, kernel, strides, pads, ceil, bool(attributes.get("count_include_pad", 0)))
    means = pool(padded, kernel, strides, pads, ceil)
    if attributes.get("count_include_pad", 0):
        return means
    ones, _ = _pad_unevenly(attributes, torch.ones_like(x[:1, :1]), kernel, 0.0)
    return means / pool(ones, kernel, strides, pads, ceil)


def _per_axis(attributes: Attributes, name: str, rank: int) -> list[int]:
    return list(attributes.get(name) or [1] * rank)


def _pad_unevenly(
    attributes: Attributes, x: Tensor, kernel: Sequence[int], value: float
) -> tuple[Tensor, list[int]]:
    """Return the input, padded if its ends differ, and the even padding that is left to do."""
    rank = len(kernel)
    pads = list(attributes.get("pads") or [0] * (2 * rank))
    kind = attributes.get("auto_pad", "NOTSET")
    if kind.startswith("SAME"):
        pads = _same_pads(attributes, kind, x.shape[2:], kernel)
    begins, ends = pads[:rank], pads[rank:]
    if begins == ends:
        return x, begins
    sides = [side for axis in reversed(range(rank)) for side in (begins[axis], ends[axis])]
    return functional.pad(x, sides, value=value), [0] * rank


def _same_pads(
    attributes: Attributes, kind: str, sizes: Sequence[int], kernel: Sequence[int]
) -> list[int]:
    """Return the padding with which the output has a value for every stride of the input."""
    rank = len(kernel)
    strides, dilations = (
        _per_axis(attributes, "strides", rank),
        _per_axis(attributes, "dilations", rank),
    )
    totals = [
        max((-(-size // stride) - 1) * stride + (side - 1) * dilation + 1 - size, 0)
        for size, side, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True)
    ]
    begins = [total // 2 if kind == "SAME_UPPER" else total - total // 2 for total in totals]
    return begins + [total - begin for total, begin in zip(totals, begins, strict=True)]


def check_average_pool(attributes: Attributes) -> str:
    dilations = attributes.get("dilations") or [1]
    return "AveragePool with dilations" if max(dilations) > 1 else ""
