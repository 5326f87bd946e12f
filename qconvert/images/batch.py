"""What `images` hands to everything else: batches of inputs, and where each of them came from."""

from collections.abc import Generator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from qconvert.feeds import Feeds
from qconvert.images.classes import Classes
from qconvert.images.image_list import Entry, ImageList


@dataclass(frozen=True)
class Item:
    """One input: its place among the chosen ones, its name, its content's hash, its label."""

    position: int
    name: str
    sha256: str
    label: int | None = None


@dataclass(frozen=True)
class Skipped:
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

    feeds: Feeds
    items: tuple[Item, ...]
    skipped: tuple[Skipped, ...] = ()

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

    def listing(self) -> ImageList:
        """Return all of them with their hashes, without decoding: the key of stored work."""
        ...


def listed(images: Images, items: Iterable[Item]) -> ImageList:
    """Return those items of the images that were really used, to be kept with the result."""
    entries = tuple(Entry(item.name, item.sha256) for item in items)
    return ImageList(images.root.absolute(), entries)
