"""Arrays as inputs of a network: an .npz or .npy file, for inputs that are no pictures."""

import hashlib
import zipfile
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from qconvert.core import npz
from qconvert.core.errors import QConvertError, UsageError, first_line
from qconvert.core.tensors import Tensors, TensorSpec, fixed_batch
from qconvert.images.batches import Batch, BatchItem, ImageManifest, manifest_of
from qconvert.images.listing import NO_CLASSES, Classes

ARRAY_SUFFIXES = (".npz", ".npy")
_LOCAL_HEADER, _NAME_LENGTH, _EXTRA_LENGTH = 30, 26, 28


def read_arrays(path: Path, only_input: str | None) -> dict[str, NDArray[Any]]:
    """Return the arrays by name; an .npy has no names and stands for the model's only input."""
    if not path.is_file():
        raise UsageError(f"`{path}` does not exist", hint="check the path")
    if path.suffix.lower() == ".npy" and only_input is None:
        raise UsageError(
            f"`{path}` holds one array; the model has several inputs",
            hint="give an .npz with one array an input",
        )
    try:
        if only_input is not None and path.suffix.lower() == ".npy":
            with path.open("rb") as file:
                said = npz.read_header(file)
            return {only_input: _memory_map(path, said, said.header_bytes)}
        return _read_npz(path)
    except npz.CORRUPT_ERRORS as error:
        raise UsageError(
            f"`{path}` cannot be read as arrays: {first_line(error)}",
            hint="write it with `numpy.savez` or `numpy.save`, and no Python objects in it",
        ) from None


def _read_npz(path: Path) -> dict[str, NDArray[Any]]:
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        npz.require_within_limit([each for each in members if not _is_stored(each)])
        return {
            each.filename.removesuffix(".npy"): _map_member(path, each)
            if _is_stored(each)
            else npz.read_array(archive, each)
            for each in members
        }


def _is_stored(member: zipfile.ZipInfo) -> bool:
    """Whether a member is not compressed."""
    return member.compress_type == zipfile.ZIP_STORED


def _map_member(path: Path, member: zipfile.ZipInfo) -> NDArray[Any]:
    """Return an array that is read from the file only where it is looked at."""
    with path.open("rb") as file:
        file.seek(member.header_offset)
        start = file.read(_LOCAL_HEADER)
        lengths = (start[at : at + 2] for at in (_NAME_LENGTH, _EXTRA_LENGTH))
        file.seek(sum(int.from_bytes(length, "little") for length in lengths), 1)
        said = npz.read_header(file)
        at = file.tell()
    return _memory_map(path, said, at)


def _memory_map(path: Path, said: npz.ArrayHeader, at: int) -> NDArray[Any]:
    if at + said.nbytes > path.stat().st_size:
        raise ValueError("it is shorter than it says")
    if not said.nbytes:  # nothing cannot be mapped
        return np.zeros(said.shape, said.dtype)
    order: Literal["F", "C"] = "F" if said.fortran_order else "C"
    mapped: NDArray[Any] = np.memmap(
        path, said.dtype, mode="r", offset=at, shape=said.shape, order=order
    )
    return mapped


# An array of this name that is no input of the model holds the class of each item.
LABELS_ARRAY = "labels"


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
    first_position: int = 0
    unbatched: frozenset[str] = frozenset()

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

    def select(self, places: Sequence[int]) -> "ArrayImages":
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
            first_position=self.first_position + start,
        )

    def batches(self, size: int) -> Generator[Batch]:
        """Yield all rows in order; only what a batch needs is read from an uncompressed file."""
        size = 1 if self.unbatched else size
        for start in range(0, len(self.rows), size):
            rows = list(self.rows[start : start + size])
            read = {name: np.array(array[rows]) for name, array in self.arrays.items()}
            items = [self._item(read, start + offset, offset) for offset in range(len(rows))]
            feeds = {
                name: each[0] if name in self.unbatched else each for name, each in read.items()
            }
            yield Batch({name: np.asarray(each) for name, each in feeds.items()}, tuple(items))

    def manifest(self) -> ImageManifest:
        """Return all rows with their hashes."""
        return manifest_of(self, (item for batch in self.batches(1) for item in batch.items))

    def _item(self, feeds: Tensors, place: int, offset: int) -> BatchItem:
        digest = hashlib.sha256()
        for name in sorted(feeds):
            digest.update(feeds[name][offset].tobytes())
        sha256 = digest.hexdigest()
        if self.hashes and self.hashes[place] != sha256:
            raise QConvertError(
                f"row {self.rows[place]} of `{self.path}` is not what it was: it has changed",
                hint="bring the file back, or start again from the arrays as they are now",
            )
        return BatchItem(
            self.first_position + place, str(self.rows[place]), sha256, self.labels[place]
        )


def open_arrays(path: Path, specs: Sequence[TensorSpec]) -> ArrayImages:
    """Return all rows of a file whose arrays fit the model's inputs."""
    arrays = read_arrays(path, specs[0].name if len(specs) == 1 else None)
    wanted = {spec.name for spec in specs}
    labels = arrays.pop(LABELS_ARRAY, None) if LABELS_ARRAY not in wanted else None
    if set(arrays) != wanted:
        raise UsageError(
            f"`{path}` has the arrays {_names(arrays)}; the model's inputs are {_names(wanted)}",
            hint="write one array an input: `numpy.savez(file, name=array, ...)`",
        )
    whole = frozenset(spec.name for spec in specs if _is_unbatched(spec, arrays[spec.name]))
    for spec in specs:
        _require_fit(path, spec, arrays[spec.name])
    if whole:
        _require_batch_of_one(path, specs, whole)
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
    known = _label_tuple(path, labels, count)
    return ArrayImages(path, arrays, tuple(range(count)), known, unbatched=whole)


def _is_unbatched(spec: TensorSpec, array: NDArray[Any]) -> bool:
    """Whether the items of an array bring the whole input each, its first axis too."""
    return array.ndim == len(spec.shape) + 1


def _require_batch_of_one(path: Path, specs: Sequence[TensorSpec], whole: frozenset[str]) -> None:
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
    wanted = spec.shape if _is_unbatched(spec, array) else spec.shape[1:]
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


def _label_tuple(path: Path, labels: NDArray[Any] | None, count: int) -> tuple[int | None, ...]:
    if labels is None:
        return (None,) * count
    if labels.shape != (count,) or labels.dtype.kind not in "iu" or labels.min() < 0:
        raise UsageError(
            f"`{LABELS_ARRAY}` in `{path}` is {labels.dtype} {list(labels.shape)}; "
            f"it must be {count} whole numbers from 0",
            hint="leave it out where there are no labels",
        )
    return tuple(int(label) for label in labels)


def _names(names: Mapping[str, object] | set[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names)) or "none"
