"""The images of a network: batches of input tensors, and which image each row came from."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from qconvert.core.errors import UsageError
from qconvert.core.tensors import Tensors
from qconvert.images.listing import CLASSES_FILE, Classes, ImageEntry


@dataclass(frozen=True)
class ImageManifest:
    """Images by name and content in the order of their use, and what their names refer to."""

    root: Path
    entries: tuple[ImageEntry, ...]

    def __len__(self) -> int:
        return len(self.entries)

    def digest(self) -> str:
        """Return one hash over all names and contents; the root does not matter."""
        lines = "\n".join(f"{entry.sha256} {entry.name!r}" for entry in self.entries)
        return hashlib.sha256(lines.encode()).hexdigest()

    def to_text(self) -> str:
        """Return lines that `sha256sum --check` reads in the images' folder."""
        lines = []
        for entry in self.entries:
            name = entry.name.replace("\\", "\\\\").replace("\n", "\\n")
            mark = "" if name == entry.name else "\\"  # tells sha256sum that the name is escaped
            lines.append(f"{mark}{entry.sha256}  {name}\n")
        return "".join(lines)


@dataclass(frozen=True)
class Batch:
    """Inputs, and the image of each row; only the last batch may be smaller than asked for."""

    feeds: Tensors
    items: tuple[ImageEntry, ...]


@dataclass(frozen=True, eq=False)
class Images(ABC):
    """Chosen inputs of one network, files or array rows, that can be read any number of times."""

    root: Path
    entries: tuple[ImageEntry, ...]
    classes: Classes

    @property
    def names(self) -> tuple[str, ...]:
        """The name of each, relative to the root."""
        return tuple(entry.name for entry in self.entries)

    @property
    def labels(self) -> tuple[int | None, ...]:
        """The class of each, None where it is unknown."""
        return tuple(entry.label for entry in self.entries)

    def select(self, indices: Sequence[int]) -> Self:
        """Return the images at these indices, numbered anew."""
        chosen = enumerate(self.entries[index] for index in indices)
        entries = tuple(replace(entry, position=position) for position, entry in chosen)
        return replace(self, entries=entries)

    def between(self, start: int, stop: int) -> Self:
        """Return a part, for a shard or a held-out set; its items keep their positions."""
        return replace(self, entries=self.entries[start:stop])

    def check_classes(self, count: int) -> None:
        """Refuse labels that do not fit a network with `count` classes."""
        highest = max((label for label in self.labels if label is not None), default=0)
        if highest >= count:
            raise UsageError(
                f"label {highest} is not a class of the model, which has {count}, counted from 0",
                hint="labels are indices in the model's own order of classes",
            )
        folders = len(self.classes.names)
        if self.classes.from_folders and folders != count:
            # In sorted order a missing class would shift all classes after it.
            raise UsageError(
                f"{folders} class folders do not say which of the model's {count} classes they are",
                hint=f"put a `{CLASSES_FILE}` next to them: the model's classes in order, one per "
                "line",
            )

    def manifest(self) -> ImageManifest:
        """Return all images with their hashes, without decoding: the key of cached work."""
        entries = tuple(map(ImageEntry, self.names, self._hashes()))
        return ImageManifest(self.root.absolute(), entries)

    @abstractmethod
    def batches(self, size: int) -> Generator[Batch]:
        """Yield all images in order; closing the generator early stops all work at once."""

    @abstractmethod
    def _hashes(self) -> Iterable[str]: ...
