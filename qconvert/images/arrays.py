"""Arrays in an .npz or .npy file as inputs of a network, for inputs that are not images."""

import hashlib
import os
import zipfile
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qconvert.core import npz
from qconvert.core.errors import QConvertError, UsageError, first_line
from qconvert.core.tensors import Tensors, TensorSpec, fixed_batch
from qconvert.images.frames import Frame
from qconvert.images.listing import NO_CLASSES, Batch, ImageEntry, Images
from qconvert.images.preprocess import image_layout

ARRAY_SUFFIXES = (".npz", ".npy")

# An array of this name that is not an input of the model holds the class of each item.
LABELS_ARRAY = "labels"

_FIRST_AXIS = "the first axis of each counts the items"


@dataclass(frozen=True, eq=False)
class ArrayImages(Images):
    """Rows of the arrays in a file; an item of an `unbatched` input is the whole input."""

    arrays: Mapping[str, NDArray[Any]]
    unbatched: frozenset[str] = frozenset()

    def batches(self, size: int) -> Generator[Batch]:
        """Yield all rows in order; only what a batch needs is read from an uncompressed file."""
        size = 1 if self.unbatched else size
        for start in range(0, len(self.entries), size):
            entries = self.entries[start : start + size]
            rows = [int(entry.name) for entry in entries]
            # A copy, and of a single number an array still.
            feeds = {name: np.array(array[rows]) for name, array in self.arrays.items()}
            items = tuple(
                replace(entry, sha256=self._hash_row(entry, feeds, offset))
                for offset, entry in enumerate(entries)
            )
            for name in self.unbatched:
                feeds[name] = np.asarray(feeds[name][0])
            yield Batch(feeds, items, identity_frames(feeds, len(items)))

    def _hashes(self) -> Iterable[str]:
        return (item.sha256 for batch in self.batches(1) for item in batch.items)

    def _hash_row(self, entry: ImageEntry, feeds: Tensors, offset: int) -> str:
        content = b"".join(feeds[name][offset].tobytes() for name in sorted(feeds))
        sha256 = hashlib.sha256(content).hexdigest()
        if entry.sha256 not in ("", sha256):
            raise QConvertError(
                f"the content of row {entry.name} of `{self.root}` has changed since it was used",
                hint="restore the file, or start again from the arrays as they are now",
            )
        return sha256


def open_arrays(path: Path, specs: Sequence[TensorSpec]) -> ArrayImages:
    """Return all rows of a file whose arrays fit the model's inputs."""
    arrays = _read_arrays(path, specs[0].name if len(specs) == 1 else None)
    inputs = {spec.name for spec in specs}
    labels = arrays.pop(LABELS_ARRAY, None) if LABELS_ARRAY not in inputs else None
    if set(arrays) != inputs:
        raise UsageError(
            f"`{path}` has the arrays {_quoted(arrays)}; the model's inputs are {_quoted(inputs)}",
            hint="write one array per input: `numpy.savez(file, name=array, ...)`",
        )
    # An item is a whole input, its first axis included.
    unbatched = {spec.name for spec in specs if arrays[spec.name].ndim == len(spec.shape) + 1}
    for spec in specs:
        item_shape = spec.shape[0 if spec.name in unbatched else 1 :]
        _require_fit(path, spec, arrays[spec.name], item_shape)
    if unbatched and (specs[0].name in unbatched or fixed_batch(specs) not in (1, None)):
        raise UsageError(
            f"an item of `{min(unbatched)}` in `{path}` is a whole input, so items are fed one at "
            f"a time, but the first input is `{specs[0]}`",
            hint="give the first input one row per item, in a model with a free batch or one of 1",
        )
    count = len(arrays[specs[0].name])
    if any(len(array) != count for array in arrays.values()):
        lengths = ", ".join(f"`{name}` {len(array)}" for name, array in arrays.items())
        raise UsageError(
            f"the arrays of `{path}` have different lengths: {lengths}", hint=_FIRST_AXIS
        )
    if not count:
        raise QConvertError(f"the arrays of `{path}` are empty", hint=_FIRST_AXIS)
    classes: list[int | None] = [None] * count
    if labels is not None:
        if labels.shape != (count,) or labels.dtype.kind not in "iu" or labels.min() < 0:
            raise UsageError(
                f"`{LABELS_ARRAY}` in `{path}` is {labels.dtype} {list(labels.shape)}; "
                f"it must be {count} whole numbers from 0",
                hint="leave it out if there are no labels",
            )
        classes = labels.tolist()
    entries = tuple(ImageEntry(str(row), label=label) for row, label in enumerate(classes))
    return ArrayImages(path, entries, NO_CLASSES, arrays, frozenset(unbatched))


def identity_frames(feeds: Tensors, count: int) -> tuple[Frame, ...]:
    """Return frames of the first input that has an image's shape: rows are pictures as they are."""
    for array in feeds.values():
        if (layout := image_layout(array.shape)) is not None:
            height, width = array.shape[2:] if layout == "nchw" else array.shape[1:3]
            return (Frame(width, height, width, height),) * count
    return ()


def _read_arrays(path: Path, only_input: str | None) -> dict[str, NDArray[Any]]:
    """Return the arrays by name, memory-mapped if uncompressed; an .npy is the only input."""
    if not path.is_file():
        raise UsageError(f"`{path}` does not exist", hint="check the path")
    is_npy = path.suffix.lower() == ".npy"
    if is_npy and only_input is None:
        raise UsageError(
            f"`{path}` contains one array, but the model has several inputs",
            hint="give an .npz with one array per input",
        )
    try:
        if is_npy and only_input is not None:
            return {only_input: _map_array(path)}
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            packed = [member for member in members if member.compress_type != zipfile.ZIP_STORED]
            npz.require_within_limit(packed)
            return {
                member.filename.removesuffix(".npy"): npz.read_array(archive, member)
                if member in packed
                else _map_array(path, member)
                for member in members
            }
    except npz.CORRUPT_ERRORS as error:
        raise UsageError(
            f"`{path}` cannot be read as arrays: {first_line(error)}",
            hint="write it with `numpy.savez` or `numpy.save`, without Python objects in it",
        ) from None


def _map_array(path: Path, member: zipfile.ZipInfo | None = None) -> NDArray[Any]:
    """Return the array of an .npy file, or of an uncompressed member of an .npz, read on access."""
    with path.open("rb") as file:
        if member is not None:
            # Its local header has 30 bytes, and from 26 on the lengths of the name and extra field.
            file.seek(member.header_offset + 26)
            file.seek(sum(int.from_bytes(file.read(2), "little") for _ in range(2)), os.SEEK_CUR)
        header = npz.read_header(file)
        start = file.tell()
    if start + header.nbytes > path.stat().st_size:
        raise ValueError("it is shorter than its header says")
    if not header.nbytes:  # an empty array cannot be mapped
        return np.zeros(header.shape, header.dtype)
    return np.memmap(path, header.dtype, "r", start, header.shape, header.order)


def _require_fit(
    path: Path, spec: TensorSpec, array: NDArray[Any], item_shape: Sequence[int | str]
) -> None:
    if array.dtype != spec.dtype:
        raise UsageError(
            f"`{spec.name}` in `{path}` is {array.dtype}; the model takes {spec.dtype}",
            hint=f'convert it where you write it: `array.astype("{spec.dtype}")`',
        )
    fits = array.ndim == len(item_shape) + 1 and all(
        not isinstance(size, int) or size == actual
        for size, actual in zip(item_shape, array.shape[1:], strict=True)
    )
    if not fits:
        raise UsageError(
            f"`{spec.name}` in `{path}` has the shape {list(array.shape)}; "
            f"the model's input is `{spec}`",
            hint="the first axis counts the items, the others are one input of the model, "
            "without its batch or, if it has none, all of it",
        )


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names)) or "none"
