"""Inputs for a network, from whatever a user calls images: pictures in files, or arrays.

`open_images` says which, `images.batches(8)` reads them, `reopen` finds those of a stored list.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from qconvert.core.errors import UsageError
from qconvert.core.tensors import TensorSpec
from qconvert.images.arrays import ARRAY_SUFFIXES as ARRAYS
from qconvert.images.arrays import open_arrays
from qconvert.images.batches import ImageManifest, Images
from qconvert.images.image_files import DEFAULT_READ_OPTIONS, FileImages, ReadOptions
from qconvert.images.labels import attach_labels
from qconvert.images.listing import (
    ImageFile,
    ImageListing,
    choose_subset,
    list_images,
    require_files,
)
from qconvert.images.preprocess import Preprocess, find_image_input, fit_to_input


@dataclass(frozen=True)
class ImageChoice:
    """Which images: all that `path` stands for, or at most `count` of them."""

    path: Path
    count: int | None = None
    labels: Path | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.count is not None and self.count < 1:
            raise ValueError(f"a choice has at least one image, got {self.count}")


def open_images(
    choice: ImageChoice,
    specs: Sequence[TensorSpec],
    preprocess: Preprocess,
    reading: ReadOptions = DEFAULT_READ_OPTIONS,
) -> Images:
    """Return the chosen images as inputs for a model; nothing is decoded yet."""
    if choice.path.suffix.lower() in ARRAYS:
        if choice.labels is not None:
            raise UsageError(
                "`--labels` is for pictures", hint="put an array `labels` into the .npz"
            )
        arrays = open_arrays(choice.path, specs)
        return arrays.select(choose_subset(arrays.labels, choice.count, choice.seed))
    preprocess, target = fit_to_input(preprocess, find_image_input(specs))
    pictures = attach_labels(list_images(choice.path), choice.labels)
    labels = [item.label for item in pictures.items]
    items = tuple(pictures.items[at] for at in choose_subset(labels, choice.count, choice.seed))
    return FileImages(replace(pictures, items=items), preprocess, target, reading)


def reopen_images(
    used: ImageManifest,
    specs: Sequence[TensorSpec],
    preprocess: Preprocess,
    reading: ReadOptions = DEFAULT_READ_OPTIONS,
) -> Images:
    """Return the very images of a stored list; reading one that has changed is an error."""
    hashes = tuple(entry.sha256 for entry in used.entries)
    if used.root.suffix.lower() in ARRAYS:
        arrays = open_arrays(used.root, specs)
        rows = [int(entry.name) for entry in used.entries]
        if max(rows) >= len(arrays.rows):
            raise UsageError(
                f"`{used.root}` has only {len(arrays.rows)} rows left of those used before",
                hint="calibrate again, or bring back the file that was used",
            )
        return replace(arrays.select(rows), hashes=hashes)
    preprocess, target = fit_to_input(preprocess, find_image_input(specs))
    items = [
        ImageFile(entry.name, used.root / entry.name, sha256=entry.sha256) for entry in used.entries
    ]
    require_files(used.root, (item.file for item in items))
    return FileImages(ImageListing(used.root, tuple(items)), preprocess, target, reading)
