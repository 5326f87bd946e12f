"""Arrays as inputs of a network: an .npz or .npy file, for inputs that are no pictures."""

import hashlib
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qconvert.errors import QConvertError, UsageError
from qconvert.feeds import Feeds, TensorSpec, fixed_batch
from qconvert.images.array_file import read_arrays
from qconvert.images.batch import Batch, Item, listed
from qconvert.images.classes import NO_CLASSES, Classes
from qconvert.images.image_list import ImageList

# An array of this name that is no input of the model holds the class of each item.
LABELS = "labels"


@dataclass(frozen=True, eq=False)
class ArrayImages:
    """Rows of the arrays in a file, first axis = items; `rows` are the chosen ones.

    Inputs that are no rows of a batch, such as a state or a single number, are `whole`: an item
    brings all of one. A batch then holds one item.
    """

    path: Path
    arrays: Mapping[str, NDArray[Any]]
    rows: tuple[int, ...]
    labels: tuple[int | None, ...]
    hashes: tuple[str, ...] = ()
    first: int = 0
    whole: frozenset[str] = frozenset()

    @property
    def root(self) -> Path:
        """The file."""
        return self.path

    @property
    def names(self) -> tuple[str, ...]:
        """The numbers of the rows."""
        return tuple(str(row) for row in self.rows)

    @property
    def classes(self) -> Classes:
        """Nothing: arrays carry numbers only."""
        return NO_CLASSES

    def chosen(self, places: Sequence[int]) -> "ArrayImages":
        """Return the items at these places, as a choice of its own."""
        return replace(
            self,
            rows=tuple(self.rows[place] for place in places),
            labels=tuple(self.labels[place] for place in places),
        )

    def between(self, start: int, stop: int) -> "ArrayImages":
        """Return a part of them; its items keep their positions."""
        return replace(
            self,
            rows=self.rows[start:stop],
            labels=self.labels[start:stop],
            hashes=self.hashes[start:stop],
            first=self.first + start,
        )

    def batches(self, size: int) -> Generator[Batch]:
        """Yield all rows in order; only what a batch needs is read from an uncompressed file."""
        size = 1 if self.whole else size
        for start in range(0, len(self.rows), size):
            rows = list(self.rows[start : start + size])
            read = {name: np.array(array[rows]) for name, array in self.arrays.items()}
            items = [self._item(read, start + offset, offset) for offset in range(len(rows))]
            feeds = {name: each[0] if name in self.whole else each for name, each in read.items()}
            yield Batch({name: np.asarray(each) for name, each in feeds.items()}, tuple(items))

    def listing(self) -> ImageList:
        """Return all rows with their hashes."""
        return listed(self, (item for batch in self.batches(1) for item in batch.items))

    def _item(self, feeds: Feeds, place: int, offset: int) -> Item:
        digest = hashlib.sha256()
        for name in sorted(feeds):
            digest.update(feeds[name][offset].tobytes())
        sha256 = digest.hexdigest()
        if self.hashes and self.hashes[place] != sha256:
            raise QConvertError(
                f"row {self.rows[place]} of `{self.path}` is not what it was: it has changed",
                hint="bring the file back, or start again from the arrays as they are now",
            )
        return Item(self.first + place, str(self.rows[place]), sha256, self.labels[place])


def find_arrays(path: Path, specs: Sequence[TensorSpec]) -> ArrayImages:
    """Return all rows of a file whose arrays fit the model's inputs."""
    arrays = read_arrays(path, specs[0].name if len(specs) == 1 else None)
    wanted = {spec.name for spec in specs}
    labels = arrays.pop(LABELS, None) if LABELS not in wanted else None
    if set(arrays) != wanted:
        raise UsageError(
            f"`{path}` has the arrays {_names(arrays)}; the model's inputs are {_names(wanted)}",
            hint="write one array an input: `numpy.savez(file, name=array, ...)`",
        )
    whole = frozenset(spec.name for spec in specs if _is_whole(spec, arrays[spec.name]))
    for spec in specs:
        _require_fit(path, spec, arrays[spec.name])
    if whole:
        _require_single(path, specs, whole)
    lengths = {name: len(array) for name, array in arrays.items()}
    count = min(lengths.values())
    if max(lengths.values()) != count:
        told = ", ".join(f"`{name}` {length}" for name, length in lengths.items())
        raise UsageError(
            f"the arrays of `{path}` have different lengths: {told}",
            hint="the first axis of each counts the images",
        )
    if not count:
        raise QConvertError(
            f"the arrays of `{path}` are empty", hint="the first axis of each counts the images"
        )
    known = _labels(path, labels, count)
    return ArrayImages(path, arrays, tuple(range(count)), known, whole=whole)


def _is_whole(spec: TensorSpec, array: NDArray[Any]) -> bool:
    """Whether the items of an array bring the whole input each, its first axis too."""
    return array.ndim == len(spec.shape) + 1


def _require_single(path: Path, specs: Sequence[TensorSpec], whole: frozenset[str]) -> None:
    """Refuse whole inputs where they do not go with a batch of one item."""
    first = specs[0]
    if first.name in whole or fixed_batch(specs) not in (1, None):
        raise UsageError(
            f"the items of `{sorted(whole)[0]}` in `{path}` bring all of an input, and so go one "
            f"at a time, but the first input is `{first}`",
            hint="give the first input one row an item, in a model with a batch of 1 or any",
        )


def _require_fit(path: Path, spec: TensorSpec, array: NDArray[Any]) -> None:
    if array.dtype != spec.dtype:
        raise UsageError(
            f"`{spec.name}` in `{path}` is {array.dtype}; the model takes {spec.dtype}",
            hint=f'convert it where you write it: `array.astype("{spec.dtype}")`',
        )
    wanted = spec.shape if _is_whole(spec, array) else spec.shape[1:]
    fits = array.ndim == len(wanted) + 1 and all(
        not isinstance(size, int) or size == got
        for size, got in zip(wanted, array.shape[1:], strict=True)
    )
    if not fits:
        raise UsageError(
            f"`{spec.name}` in `{path}` has the shape {list(array.shape)}; "
            f"the model's input is `{spec}`",
            hint="the first axis counts the items, the others are one input of the model, "
            "without its batch or, if it has none, all of it",
        )


def _labels(path: Path, labels: NDArray[Any] | None, count: int) -> tuple[int | None, ...]:
    if labels is None:
        return (None,) * count
    if labels.shape != (count,) or labels.dtype.kind not in "iu" or labels.min() < 0:
        raise UsageError(
            f"`{LABELS}` in `{path}` is {labels.dtype} {list(labels.shape)}; "
            f"it must be {count} whole numbers from 0",
            hint="leave it out where there are no labels",
        )
    return tuple(int(label) for label in labels)


def _names(names: Mapping[str, object] | set[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names)) or "none"
