"""Which images were used: names and hashes, kept in every artefact that came from them."""

import hashlib
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from qconvert.core.errors import QConvertError
from qconvert.core.tensors import Tensors
from qconvert.images.listing import Classes


@dataclass(frozen=True)
class ManifestEntry:
    """One image by name, relative to the list's root, and by content."""

    name: str
    sha256: str


@dataclass(frozen=True)
class ImageManifest:
    """Images in the order of their use, and the place that their names are relative to."""

    root: Path
    entries: tuple[ManifestEntry, ...]

    def __len__(self) -> int:
        return len(self.entries)

    def digest(self) -> str:
        """Return one hash over all names and contents; where they lie does not matter."""
        lines = "\n".join(f"{entry.sha256} {entry.name!r}" for entry in self.entries)
        return hashlib.sha256(lines.encode()).hexdigest()

    def shared(self, other: "ImageManifest") -> tuple[str, ...]:
        """Return the names of images whose content is in the other list too."""
        there = {entry.sha256 for entry in other.entries}
        return tuple(entry.name for entry in self.entries if entry.sha256 in there)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as JSON holds them."""
        return {
            "root": self.root.as_posix(),
            "images": [{"name": entry.name, "sha256": entry.sha256} for entry in self.entries],
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "ImageManifest":
        """Read what `to_dict` wrote."""
        try:
            entries = [
                ManifestEntry(str(each["name"]), str(each["sha256"])) for each in stored["images"]
            ]
            return cls(Path(stored["root"]), tuple(entries))
        except (KeyError, TypeError):
            raise QConvertError(
                "a stored list of images is damaged", hint="make it again"
            ) from None

    def to_text(self) -> str:
        """Return lines that `sha256sum --check` reads in the images' folder."""
        lines = []
        for entry in self.entries:
            name = entry.name.replace("\\", "\\\\").replace("\n", "\\n")
            mark = "" if name == entry.name else "\\"  # tells sha256sum that the name is escaped
            lines.append(f"{mark}{entry.sha256}  {name}\n")
        return "".join(lines)


@dataclass(frozen=True)
class BatchItem:
    """One input: its place among the chosen ones, its name, its content's hash, its label."""

    position: int
    name: str
    sha256: str
    label: int | None = None


@dataclass(frozen=True)
class SkippedFile:
    """A file that could not be read, and why."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"`{self.name}` ({self.reason})"


@dataclass(frozen=True)
class Batch:
    """Inputs in order; `skipped` are the files passed over since the batch before.

    Only the last batch is smaller than was asked for.
    """

    feeds: Tensors
    items: tuple[BatchItem, ...]
    skipped: tuple[SkippedFile, ...] = ()

    @property
    def index(self) -> int:
        """The place of the first item among the chosen ones."""
        return self.items[0].position


class Images(Protocol):
    """Chosen inputs of one network, pictures or arrays, that can be read any number of times."""

    @property
    def root(self) -> Path:
        """The folder or file that the names are relative to."""
        ...

    @property
    def names(self) -> tuple[str, ...]:
        """What each is called, relative to where all of them are."""
        ...

    @property
    def labels(self) -> tuple[int | None, ...]:
        """The class of each, None where it is not known."""
        ...

    @property
    def classes(self) -> Classes:
        """What the labels stand for."""
        ...

    def between(self, start: int, stop: int) -> "Images":
        """Return a part, for a shard or a held-out set; its items keep their positions."""
        ...

    def batches(self, size: int) -> Generator[Batch]:
        """Yield all of them in order; closing it early stops all work at once."""
        ...

    def manifest(self) -> ImageManifest:
        """Return all of them with their hashes, without decoding: the key of stored work."""
        ...


def manifest_of(images: Images, items: Iterable[BatchItem]) -> ImageManifest:
    """Return those items of the images that were really used, to be kept with the result."""
    entries = tuple(ManifestEntry(item.name, item.sha256) for item in items)
    return ImageManifest(images.root.absolute(), entries)
