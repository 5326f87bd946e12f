"""One picture from its file to one item of a batch, or the reason why not."""

import contextlib
import hashlib
import os
import stat
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qconvert.core.errors import QConvertError
from qconvert.images.batches import Batch, BatchItem, ImageManifest, ManifestEntry, SkippedFile
from qconvert.images.decode import BrokenImage, PixelMode, load_pixels, open_header
from qconvert.images.listing import Classes, ImageFile, ImageListing, abbreviate
from qconvert.images.prefetch import PixelBudget, map_ordered
from qconvert.images.preprocess import ImageConverter, ImageInput, Preprocess, make_converter

# More than an uncompressed picture of 16-bit RGBA takes, and its header.
_BYTES_A_PIXEL, _HEADER_BYTES = 8, 1 << 20


@dataclass(frozen=True)
class ReadOptions:
    """How pictures are read: threads, and how much may be wrong with the files.

    Unset, there is a thread for each core, and a tenth of the files may be broken, at least ten.
    """

    workers: int | None = None
    max_broken: int | None = None
    max_pixels: int = 100_000_000

    def __post_init__(self) -> None:
        if (
            self.workers == 0
            or min(self.workers or 0, self.max_broken or 0, self.max_pixels - 1) < 0
        ):
            raise ValueError(f"there are no such limits: {self}")

    @property
    def threads(self) -> int:
        """The number of threads, which is at least one."""
        return self.workers or _cores()

    def allowed_broken(self, files: int) -> int:
        """Return how many of so many files may be broken."""
        return max(10, files // 10) if self.max_broken is None else self.max_broken


DEFAULT_READ_OPTIONS = ReadOptions()


@dataclass(frozen=True)
class PreparedImage:
    """A picture that was read, as the network takes it."""

    item: BatchItem
    array: NDArray[Any]


@dataclass(frozen=True)
class ImageReader:
    """Reads pictures of one mode and converts them; the file is read once, for hash and pixels."""

    convert: ImageConverter
    mode: PixelMode
    max_pixels: int
    budget: PixelBudget

    def read(self, given: tuple[int, ImageFile]) -> PreparedImage | SkippedFile:
        """Return the picture at a position; raise only for what is wrong with the settings."""
        position, picture = given
        try:
            data = read_image_bytes(picture.file, self.max_pixels)
            sha256 = hashlib.sha256(data).hexdigest()
            _require_unchanged(picture, sha256)
            image = open_header(data, self.max_pixels)
            with self.budget.reserve(image.width * image.height):
                array = self.convert(load_pixels(image, self.mode), picture.name)
        except BrokenImage as error:
            return SkippedFile(picture.name, str(error))
        return PreparedImage(BatchItem(position, picture.name, sha256, picture.label), array)


def read_image_bytes(file: Path, max_pixels: int) -> bytes:
    """Return a file's bytes; what can hold no picture within the limit is not read."""
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            raise BrokenImage("not a file")
        if status.st_size > max_pixels * _BYTES_A_PIXEL + _HEADER_BYTES:
            raise BrokenImage(
                f"{status.st_size:,} bytes are over the limit of {max_pixels:,} pixels"
            )
        return file.read_bytes()
    except OSError as error:
        raise BrokenImage(error.strerror or type(error).__name__) from None


def _cores() -> int:
    """Return how many cores this process may use; only Linux tells that from how many there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _require_unchanged(picture: ImageFile, sha256: str) -> None:
    if picture.sha256 not in (None, sha256):
        raise QConvertError(
            f"`{picture.file}` is not what it was: its content has changed",
            hint="bring the file back, or start again from the images as they are now",
        )


SKIPPED_HINT = "take them out, or allow more with `--max-broken N`"


class NoReadableImage(QConvertError):
    """Not one of the chosen files could be read."""


@dataclass(frozen=True)
class FileImages:
    """Chosen pictures for a network; `preprocess` and `target` are as `fit` returned them."""

    files: ImageListing
    preprocess: Preprocess
    image_input: ImageInput
    options: ReadOptions = DEFAULT_READ_OPTIONS
    first_position: int = 0

    @property
    def root(self) -> Path:
        """The folder that the names are relative to."""
        return self.files.root

    @property
    def names(self) -> tuple[str, ...]:
        """The files' names, relative to their folder."""
        return tuple(picture.name for picture in self.files.items)

    @property
    def labels(self) -> tuple[int | None, ...]:
        """The class of each, None where it is not known."""
        return tuple(picture.label for picture in self.files.items)

    @property
    def classes(self) -> Classes:
        """What the labels stand for."""
        return self.files.classes

    def between(self, start: int, stop: int) -> "FileImages":
        """Return a part of them; its items keep their positions."""
        part = replace(self.files, items=self.files.items[start:stop])
        return replace(self, files=part, first_position=self.first_position + start)

    def batches(self, size: int) -> Generator[Batch]:
        """Yield all readable pictures in order; the bytes depend on neither size nor threads."""
        mode: PixelMode = "L" if self.image_input.channels == 1 else "RGB"
        most = self.options.max_pixels
        reader = ImageReader(
            make_converter(self.preprocess, self.image_input), mode, most, PixelBudget(most)
        )
        numbered = enumerate(self.files.items, self.first_position)
        threads = self.options.threads
        results = map_ordered(reader.read, numbered, threads, limit=size + 2 * threads)
        with contextlib.closing(results):
            yield from self._grouped(results, size)

    def manifest(self) -> ImageManifest:
        """Return names and hashes of all files; one that cannot be read has an empty hash."""
        threads = self.options.threads
        hashes = map_ordered(self._hash, self.files.items, threads, 2 * threads)
        entries = (
            ManifestEntry(name, sha256) for name, sha256 in zip(self.names, hashes, strict=True)
        )
        return ImageManifest(self.files.root.absolute(), tuple(entries))

    def _hash(self, picture: ImageFile) -> str:
        try:
            return hashlib.sha256(
                read_image_bytes(picture.file, self.options.max_pixels)
            ).hexdigest()
        except BrokenImage:
            return ""

    def _grouped(
        self, results: Iterator[PreparedImage | SkippedFile], size: int
    ) -> Generator[Batch]:
        ready: list[PreparedImage] = []
        skipped: list[SkippedFile] = []
        told = 0
        for result in results:
            if isinstance(result, SkippedFile):
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
            what = f"no image of `{self.files.path}` could be read"
            raise NoReadableImage(what, details=describe_skipped(skipped), hint=SKIPPED_HINT)

    def _batch(self, ready: list[PreparedImage], skipped: list[SkippedFile]) -> Batch:
        feeds = {self.image_input.name: np.stack([each.array for each in ready])}
        return Batch(feeds, tuple(each.item for each in ready), tuple(skipped))

    def _check(self, skipped: list[SkippedFile]) -> None:
        files = len(self.files.items)
        allowed = self.options.allowed_broken(files)
        if len(skipped) > allowed:
            what = f"too many of the {files} images of `{self.files.path}` could not be read"
            message = f"{what}: {len(skipped)} so far, {allowed} allowed"
            raise QConvertError(message, details=describe_skipped(skipped), hint=SKIPPED_HINT)


def describe_skipped(skipped: list[SkippedFile]) -> list[str]:
    """Return a line for each of the first files that were passed over."""
    return abbreviate([str(each) for each in skipped])
