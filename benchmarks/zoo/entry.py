"""A network of the zoo: its source and its inputs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.zoo.letters import lines

Arrays = dict[str, NDArray[Any]]
# The side of the patches of random images, and the smallest side that gets more than one.
PATCH, FEWEST = 8, 16


@dataclass(frozen=True)
class Input:
    """An input of one item, its first dimension the batch; integers are from `least` to `high`.

    A `whole` input, such as a state or a number, has no batch dimension. `text` draws printed
    lines. A `mask` has ones up to the length of a text.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    high: int = 1
    least: int = 0
    scale: float = 1.0
    middle: float = 0.0
    whole: bool = False
    text: bool = False
    mask: bool = False

    def option(self) -> str:
        """Return the value of `--input`; the shape of a single number is empty."""
        return f"{self.name}:{'x'.join(map(str, self.shape))}:{self.dtype}"

    def rows(self, count: int, seed: int) -> NDArray[Any]:
        """Return random rows: patches of colour with noise, text, a mask or integers."""
        generator = np.random.default_rng([seed, len(self.name), *self.shape])
        shape = (count, *(self.shape if self.whole else self.shape[1:]))
        if self.mask:
            lengths = generator.integers(shape[-1] // 4, shape[-1] + 1, (count, 1))
            return (np.arange(shape[-1]) < lengths).astype(self.dtype)
        if self.dtype != "float32":
            return generator.integers(self.least, self.high + 1, shape).astype(self.dtype)
        if self.text:
            return lines(generator, shape)
        drawn = _coarse(generator, shape) + 0.3 * generator.standard_normal(shape)
        return (self.middle + self.scale * drawn).astype(np.float32)


def _coarse(generator: np.random.Generator, shape: Sequence[int]) -> NDArray[Any]:
    """Return noise that is constant over patches of the last one or two axes, if they are large."""
    sizes = list(shape)
    axes = [axis for axis in (len(shape) - 2, len(shape) - 1) if axis > 0]
    axes = [axis for axis in axes if sizes[axis] >= FEWEST]
    for axis in axes:
        sizes[axis] = -(-sizes[axis] // PATCH)
    drawn = generator.standard_normal(sizes)
    for axis in axes:
        drawn = np.repeat(drawn, PATCH, axis).take(range(shape[axis]), axis)
    return drawn


@dataclass(frozen=True)
class Entry:
    """A network: `source` names a factory for qconvert, or is a function that writes ONNX."""

    family: str
    source: str | Callable[[Path], Path]
    inputs: tuple[Input, ...]
    options: tuple[str, ...] = ()

    def feeds(self, count: int, seed: int) -> Arrays:
        """Return rows of every input."""
        return {spec.name: spec.rows(count, seed) for spec in self.inputs}


Entries = Mapping[str, Entry]
