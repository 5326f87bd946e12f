"""One picture from its file to one item of a batch, or the reason why not."""

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from qconvert.errors import QConvertError
from qconvert.images.batch import Item, Skipped
from qconvert.images.decode import BrokenImage, Mode, decoded, opened
from qconvert.images.listing import Picture
from qconvert.images.pixels import Convert
from qconvert.images.room import Room

# More than an uncompressed picture of 16-bit RGBA takes, and its header.
_BYTES_A_PIXEL, _HEADER_BYTES = 8, 1 << 20


@dataclass(frozen=True)
class Reading:
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


USUAL = Reading()


@dataclass(frozen=True)
class Ready:
    """A picture that was read, as the network takes it."""

    item: Item
    array: NDArray[Any]


@dataclass(frozen=True)
class Reader:
    """Reads pictures of one mode and converts them; the file is read once, for hash and pixels."""

    convert: Convert
    mode: Mode
    max_pixels: int
    room: Room

    def read(self, given: tuple[int, Picture]) -> Ready | Skipped:
        """Return the picture at a position; raise only for what is wrong with the settings."""
        position, picture = given
        try:
            data = content(picture.file, self.max_pixels)
            sha256 = hashlib.sha256(data).hexdigest()
            _require_same(picture, sha256)
            image = opened(data, self.max_pixels)
            with self.room.taken(image.width * image.height):
                array = self.convert(decoded(image, self.mode), picture.name)
        except BrokenImage as error:
            return Skipped(picture.name, str(error))
        return Ready(Item(position, picture.name, sha256, picture.label), array)


def content(file: Path, max_pixels: int) -> bytes:
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


def _require_same(picture: Picture, sha256: str) -> None:
    if picture.sha256 not in (None, sha256):
        raise QConvertError(
            f"`{picture.file}` is not what it was: its content has changed",
            hint="bring the file back, or start again from the images as they are now",
        )
