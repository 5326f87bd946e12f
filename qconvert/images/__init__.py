"""Inputs of a network from image files or arrays."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from qconvert.core.errors import UsageError
from qconvert.core.tensors import TensorSpec
from qconvert.images import listing
from qconvert.images.arrays import ARRAY_SUFFIXES, open_arrays
from qconvert.images.image_files import CORES, FileImages
from qconvert.images.listing import ImageEntry, Images
from qconvert.images.preprocess import Preprocess, find_image_input, fit_to_input
from qconvert.images.truth_files import TruthSet, find_truth


@dataclass(frozen=True)
class ImageChoice:
    """Which images: all that `path` names, or at most `count`; and how they are read."""

    path: Path
    count: int | None = None
    labels: Path | None = None
    seed: int = 0
    max_broken: int | None = None
    threads: int | None = None


def open_images(choice: ImageChoice, specs: Sequence[TensorSpec], preprocess: Preprocess) -> Images:
    """Return the chosen images as inputs of a model; nothing is decoded yet."""
    if choice.labels is not None and not choice.labels.exists():
        raise UsageError(
            f"`{choice.labels}` does not exist", hint="check the path given to `--labels`"
        )
    images: Images
    if choice.path.suffix.lower() in ARRAY_SUFFIXES:
        if choice.labels is not None:
            raise UsageError(
                "`--labels` is for image files", hint="put an array `labels` into the .npz"
            )
        images = open_arrays(choice.path, specs)
    else:
        # The model's input comes first: without one there is nothing to look for.
        preprocess, image_input = fit_to_input(preprocess, find_image_input(specs))
        names = listing.list_images(choice.path)
        labels, classes = _find_class_labels(choice, names)
        entries = tuple(map(_labelled_entry, names, labels))
        root = choice.path if choice.path.is_dir() else choice.path.parent
        reading = choice.max_broken, choice.threads or CORES
        images = FileImages(root, entries, classes, preprocess, image_input, *reading)
        images = replace(images, notes=image_input.notes)
        if all(label is None for label in labels):
            truth = find_truth(choice.path, names, choice.labels)
            if truth is not None:
                subset = listing.choose_subset(truth.sampling_labels(), choice.count, choice.seed)
                images = with_truth(images, truth)
                return replace(images.select(subset), source=choice.path)
    subset = listing.choose_subset(images.labels, choice.count, choice.seed)
    return replace(images.select(subset), source=choice.path)


def with_truth(images: FileImages, truth: TruthSet) -> FileImages:
    """Return the images with what each of them shows."""
    pairs = zip(images.entries, truth.truths, strict=True)
    entries = tuple(replace(entry, truth=shown) for entry, shown in pairs)
    notes = (*images.notes, *truth.notes)
    return replace(
        images, entries=entries, classes=truth.classes, truth_kind=truth.kind, notes=notes
    )


def _find_class_labels(choice: ImageChoice, names: Sequence[str]) -> listing.Labels:
    """Return the class of each image; a file or folder of boxes or masks holds none."""
    file = choice.labels
    if file is not None and (file.is_dir() or file.suffix.lower() == ".json"):
        return [None] * len(names), listing.NO_CLASSES
    return listing.find_labels(choice.path, names, choice.labels)


def _labelled_entry(name: str, label: int | None) -> ImageEntry:
    return ImageEntry(name, label=label)


def reopen_images(
    root: Path, entries: Sequence[ImageEntry], specs: Sequence[TensorSpec], preprocess: Preprocess
) -> Images:
    """Return exactly the images of a manifest; reading one that has changed is an error."""
    if root.suffix.lower() in ARRAY_SUFFIXES:
        arrays = open_arrays(root, specs)
        if max(int(entry.name) for entry in entries) >= len(arrays.entries):
            raise UsageError(
                f"`{root}` has only {len(arrays.entries)} rows left of those used before",
                hint="calibrate again, or restore the file that was used",
            )
        labels = arrays.labels
        entries = tuple(replace(entry, label=labels[int(entry.name)]) for entry in entries)
        return replace(arrays, entries=entries).select(range(len(entries)))
    preprocess, image_input = fit_to_input(preprocess, find_image_input(specs))
    listing.require_files(root, (root / entry.name for entry in entries))
    images = FileImages(root, tuple(entries), listing.NO_CLASSES, preprocess, image_input)
    return replace(images, source=root).select(range(len(entries)))
