"""What a network of the zoo is: where it comes from, and what it is fed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.zoo.letters import lines

Arrays = dict[str, NDArray[Any]]
# Patches of a picture, the least side that shows more than one of them.
PATCH, FEWEST = 8, 16


@dataclass(frozen=True)
class Input:
    """An input of one item, its first dimension the batch; integers are from `least` to `high`.

    One that is `whole`, as a state or a number is, has no batch, and an item brings all of it;
    `text` is printed lines, and a `mask` has ones as far as a text goes.
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
        """Return what `--input` takes; a single number has no shape to tell."""
        return f"{self.name}:{'x'.join(map(str, self.shape))}:{self.dtype}"

    def rows(self, count: int, seed: int) -> NDArray[Any]:
        """Return random rows: patches of colour, a swinging line, noise or integers."""
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
    """Return noise that is the same over patches of the last one or two axes, if they are large."""
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
    """A network: `source` is a factory as qconvert takes it, or writes the ONNX file itself."""

    family: str
    source: str | Callable[[Path], Path]
    inputs: tuple[Input, ...]
    options: tuple[str, ...] = ()

    def feeds(self, count: int, seed: int) -> Arrays:
        """Return rows of every input."""
        return {each.name: each.rows(count, seed) for each in self.inputs}


Entries = Mapping[str, Entry]
