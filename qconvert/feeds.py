"""What goes into a network and comes out of it: named arrays, and what they must look like."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Feeds = dict[str, NDArray[Any]]
Run = Callable[[Feeds], Feeds]


@dataclass(frozen=True)
class TensorSpec:
    """Name, element type and shape of an input or output; a dimension is a number or a name.

    An empty string stands for a dimension that is not known and has no name.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        dimensions = ", ".join(str(size) if size != "" else "?" for size in self.shape)
        return f"{self.name}: {self.dtype}[{dimensions}]"
