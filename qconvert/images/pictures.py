"""Pictures as inputs of a network: decoded and prepared in threads, a bounded number ahead."""

import contextlib
import hashlib
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from qconvert.errors import QConvertError
from qconvert.images.ahead import ahead
from qconvert.images.batch import Batch, Skipped
from qconvert.images.classes import Classes
from qconvert.images.decode import BrokenImage, Mode
from qconvert.images.image_list import Entry, ImageList
from qconvert.images.listing import Picture, Pictures, some
from qconvert.images.pixels import conversion
from qconvert.images.preprocess import Preprocess
from qconvert.images.reading import USUAL, Reader, Reading, Ready, content
from qconvert.images.room import Room
from qconvert.images.target import Target

TAKE_OUT = "take them out, or allow more with `--max-broken N`"


class NoImage(QConvertError):
    """Not one of the chosen files could be read."""


@dataclass(frozen=True)
class PictureImages:
    """Chosen pictures for a network; `preprocess` and `target` are as `fit` returned them."""

    pictures: Pictures
    preprocess: Preprocess
    target: Target
    reading: Reading = USUAL
    first: int = 0

    @property
    def root(self) -> Path:
        """The folder that the names are relative to."""
        return self.pictures.root

    @property
    def names(self) -> tuple[str, ...]:
        """The files' names, relative to their folder."""
        return tuple(picture.name for picture in self.pictures.items)

    @property
    def labels(self) -> tuple[int | None, ...]:
        """The class of each, None where it is not known."""
        return tuple(picture.label for picture in self.pictures.items)

    @property
    def classes(self) -> Classes:
        """What the labels stand for."""
        return self.pictures.classes

    def between(self, start: int, stop: int) -> "PictureImages":
        """Return a part of them; its items keep their positions."""
        part = replace(self.pictures, items=self.pictures.items[start:stop])
        return replace(self, pictures=part, first=self.first + start)

    def batches(self, size: int) -> Generator[Batch]:
        """Yield all readable pictures in order; the bytes depend on neither size nor threads."""
        mode: Mode = "L" if self.target.channels == 1 else "RGB"
        most = self.reading.max_pixels
        reader = Reader(conversion(self.preprocess, self.target), mode, most, Room(most))
        numbered = enumerate(self.pictures.items, self.first)
        threads = self.reading.threads
        results = ahead(reader.read, numbered, threads, limit=size + 2 * threads)
        with contextlib.closing(results):
            yield from self._grouped(results, size)

    def listing(self) -> ImageList:
        """Return names and hashes of all files; one that cannot be read has an empty hash."""
        threads = self.reading.threads
        hashes = ahead(self._hash, self.pictures.items, threads, 2 * threads)
        entries = (Entry(name, sha256) for name, sha256 in zip(self.names, hashes, strict=True))
        return ImageList(self.pictures.root.absolute(), tuple(entries))

    def _hash(self, picture: Picture) -> str:
        try:
            return hashlib.sha256(content(picture.file, self.reading.max_pixels)).hexdigest()
        except BrokenImage:
            return ""

    def _grouped(self, results: Iterator[Ready | Skipped], size: int) -> Generator[Batch]:
        ready: list[Ready] = []
        skipped: list[Skipped] = []
        told = 0
        for result in results:
            if isinstance(result, Skipped):
                skipped.append(result)
                self._check(skipped)
                continue
            # A full batch waits for one picture more: so the last one tells all that was skipped.
            if len(ready) == size:
                yield self._batch(ready, skipped[told:])
                ready, told = [], len(skipped)
            ready.append(result)
        if ready:
            yield self._batch(ready, skipped[told:])
        elif skipped:
            what = f"no image of `{self.pictures.path}` could be read"
            raise NoImage(what, details=told_of(skipped), hint=TAKE_OUT)

    def _batch(self, ready: list[Ready], skipped: list[Skipped]) -> Batch:
        feeds = {self.target.name: np.stack([each.array for each in ready])}
        return Batch(feeds, tuple(each.item for each in ready), tuple(skipped))

    def _check(self, skipped: list[Skipped]) -> None:
        files = len(self.pictures.items)
        allowed = self.reading.allowed_broken(files)
        if len(skipped) > allowed:
            what = f"too many of the {files} images of `{self.pictures.path}` could not be read"
            message = f"{what}: {len(skipped)} so far, {allowed} allowed"
            raise QConvertError(message, details=told_of(skipped), hint=TAKE_OUT)


def told_of(skipped: list[Skipped]) -> list[str]:
    """Return a line for each of the first files that were passed over."""
    return some([str(each) for each in skipped])
