"""The input of a network that takes pictures, found from its shape."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from qconvert.errors import UsageError
from qconvert.feeds import TensorSpec

_DTYPES = ("float32", "float16", "uint8")
_ARRAYS = "give arrays instead: an .npz file with one array an input, first axis = images"


@dataclass(frozen=True)
class Target:
    """A picture as the network takes it; a size that the model leaves open is None."""

    name: str
    dtype: np.dtype[Any]
    layout: Literal["nchw", "nhwc"]
    channels: int
    height: int | None
    width: int | None


def picture_input(specs: Sequence[TensorSpec]) -> Target:
    """Return the one input as a place for pictures, or say why it takes none."""
    if len(specs) != 1:
        names = ", ".join(f"`{spec.name}`" for spec in specs)
        raise UsageError(
            f"pictures feed one input; the model has {len(specs)}: {names}", hint=_ARRAYS
        )
    spec = specs[0]
    if spec.dtype.name not in _DTYPES:
        raise UsageError(
            f"pictures feed float32, float16 or uint8; the model's input is `{spec}`", hint=_ARRAYS
        )
    if len(spec.shape) == 4:
        _, first, middle, last = spec.shape
        if first in (1, 3):
            return Target(spec.name, spec.dtype, "nchw", int(first), _size(middle), _size(last))
        if last in (1, 3):
            return Target(spec.name, spec.dtype, "nhwc", int(last), _size(first), _size(middle))
    raise UsageError(
        f"pictures feed an input of 1 or 3 channels, NCHW or NHWC; the model's input is `{spec}`",
        hint=_ARRAYS,
    )


def _size(dimension: int | str) -> int | None:
    return dimension if isinstance(dimension, int) else None
