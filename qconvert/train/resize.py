"""ONNX's Resize: each axis is multiplied by a matrix, which holds the weights of its input places.

So all modes and coordinates are one computation, and gradients come by themselves.
"""

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

Floats = NDArray[np.float32]
Places = NDArray[np.int64]


@dataclass(frozen=True)
class Sampling:
    """How places of the output become weights of the input."""

    mode: str
    coordinates: str
    rounding: str
    cubic: float
    excludes_outside: bool


def resize(
    attributes: Mapping[str, Any],
    x: Tensor,
    _: Tensor | None = None,
    scales: Tensor | None = None,
    sizes: Tensor | None = None,
) -> Tensor:
    """Return a tensor resized by scales, or to sizes."""
    chosen, sampling = attributes.get("axes") or range(x.dim()), _sampling(attributes)
    for index, axis in enumerate(chosen):
        before = x.shape[axis]
        if sizes is not None and sizes.numel():
            after = int(sizes[index])
            scale = after / before
        else:
            assert scales is not None, "ONNX requires one of them"
            scale = float(scales[index])
            after = math.floor(before * scale)
        if after != before or scale != 1.0:
            matrix = torch.from_numpy(sampling_matrix(before, after, scale, sampling)).to(x)
            x = functional.linear(x.movedim(axis, -1), matrix).movedim(-1, axis)
    return x


def check_resize(attributes: Mapping[str, Any]) -> str:
    """Return which setting is not covered, empty if all are."""
    sampling = _sampling(attributes)
    if sampling.mode not in ("nearest", "linear", "cubic"):
        return f"Resize in mode {sampling.mode}"
    if sampling.coordinates not in COORDINATES:
        return f"Resize with {sampling.coordinates}"
    if attributes.get("antialias", 0):
        return "Resize with antialias"
    policy = attributes.get("keep_aspect_ratio_policy", "stretch")
    return f"Resize with {policy}" if policy != "stretch" else ""


def _sampling(attributes: Mapping[str, Any]) -> Sampling:
    return Sampling(
        attributes.get("mode", "nearest"),
        attributes.get("coordinate_transformation_mode", "half_pixel"),
        attributes.get("nearest_mode", "round_prefer_floor"),
        attributes.get("cubic_coeff_a", -0.75),
        bool(attributes.get("exclude_outside", 0)),
    )


@functools.lru_cache(maxsize=64)
def sampling_matrix(before: int, after: int, scale: float, sampling: Sampling) -> Floats:
    """Return the weights of an axis of `before` values for `after` values."""
    targets = np.arange(after, dtype=np.float32)
    places = COORDINATES[sampling.coordinates](targets, before, np.float32(scale))
    places = places.astype(np.float32)
    if sampling.mode == "nearest":
        indices = ROUNDINGS[sampling.rounding](places).astype(np.int64)[None]
        weights = np.ones((1, after), np.float32)
    elif sampling.mode == "linear":
        indices, weights = _linear_weights(np.clip(places, 0, before - 1))
    else:
        indices, weights = _cubic_weights(places, sampling.cubic)
    if sampling.excludes_outside and sampling.mode == "cubic":
        weights = np.where((indices < 0) | (indices >= before), np.float32(0), weights)
        weights /= weights.sum(0)
    matrix = np.zeros((after, before), np.float32)
    # Places outside read the edge.
    np.add.at(matrix, (np.arange(after)[None], np.clip(indices, 0, before - 1)), weights)
    return matrix


def _linear_weights(places: Floats) -> tuple[Places, Floats]:
    first = np.floor(places)
    second = places - first
    return np.stack([first, first + 1]).astype(np.int64), np.stack([1 - second, second])


def _cubic_weights(places: Floats, a: float) -> tuple[Places, Floats]:
    """Return the weights of Keys' cubic convolution with the coefficient `a`."""
    first = np.floor(places)
    indices = first + np.array([[-1], [0], [1], [2]], np.float32)
    t = np.abs(places - indices)
    near = ((a + 2) * t - (a + 3)) * t * t + 1
    far = ((a * t - 5 * a) * t + 8 * a) * t - 4 * a
    return indices.astype(np.int64), np.where(t <= 1, near, far).astype(np.float32)


def _half_pixel(x: Floats, before: int, scale: np.float32) -> Floats:
    return (x + np.float32(0.5)) / scale - np.float32(0.5)


def _half_pixel_symmetric(x: Floats, before: int, scale: np.float32) -> Floats:
    # The part of a pixel that the last place leaves out is shared by both ends.
    adjustment = len(x) / (before * float(scale))
    return np.float32(before / 2 * (1 - adjustment)) + _half_pixel(x, before, scale)


def _pytorch_half_pixel(x: Floats, before: int, scale: np.float32) -> Floats:
    return _half_pixel(x, before, scale) if len(x) > 1 else np.zeros_like(x)


def _align_corners(x: Floats, before: int, scale: np.float32) -> Floats:
    return x * np.float32(before - 1) / np.float32(max(1, len(x) - 1))


def _asymmetric(x: Floats, before: int, scale: np.float32) -> Floats:
    return x / scale


COORDINATES: dict[str, Callable[[Floats, int, np.float32], Floats]] = {
    "half_pixel": _half_pixel,
    "half_pixel_symmetric": _half_pixel_symmetric,
    "pytorch_half_pixel": _pytorch_half_pixel,
    "align_corners": _align_corners,
    "asymmetric": _asymmetric,
}
ROUNDINGS: dict[str, Callable[[Floats], Floats]] = {
    "round_prefer_floor": lambda x: np.ceil(x - np.float32(0.5)),
    "round_prefer_ceil": lambda x: np.floor(x + np.float32(0.5)),
    "floor": np.floor,
    "ceil": np.ceil,
}
