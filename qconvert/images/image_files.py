"""Read image files as network inputs: decoded and prepared in threads, a bounded number ahead.

Images become upright 8-bit pixels, whatever their format, mode, depth and orientation. Colours
follow Pillow's `convert`, as in torchvision and timm: alpha is dropped, not blended; palettes and
CMYK become RGB; the first frame of an animation counts. EXIF orientation is applied, which
torchvision and timm leave out. JPEG's reduced decoding (`Image.draft`) is not used: over 50
ImageNet images, the mean difference at the target size was 2.2/255.
"""

import contextlib
import hashlib
import io
import os
import stat
import threading
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from qconvert.core.errors import QConvertError, first_line
from qconvert.images.frames import Frame, frame_of
from qconvert.images.listing import Batch, ImageEntry, Images, abbreviate
from qconvert.images.preprocess import ImageConverter, ImageInput, Preprocess, make_converter

Item = TypeVar("Item")
Result = TypeVar("Result")
# An image with its hash, as an item of a batch, and where it lies in it.
ReadItem = tuple[ImageEntry, NDArray[Any], Frame]

SKIPPED_HINT = "remove them, or allow more with `--max-broken N`"

# No others: Pillow also opens EPS, which runs Ghostscript. The common ones come first.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF")

PixelMode = Literal["RGB", "L"]

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

# Pillow's own pixel limit is a global that warns first; `MAX_PIXELS` is checked here instead.
MAX_PIXELS = 100_000_000
_PILLOW_LIMIT = threading.Lock()

# The warning names no file, and the image is read all the same. ImageNet has such images.
warnings.filterwarnings("ignore", message="Corrupt EXIF data")


class BrokenImage(Exception):
    """The file cannot be read as an image; the message says why."""


class NoReadableImage(QConvertError):
    """None of the chosen files could be read."""


def allowed_broken(max_broken: int | None, files: int) -> int:
    """Return how many files may be broken: `max_broken`, or by default a tenth, at least ten."""
    return max(10, files // 10) if max_broken is None else max_broken


def read_image_bytes(file: Path) -> bytes:
    """Return a file's bytes; a file too large for an image within the limit is not read."""
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            raise BrokenImage("not a file")
        # More than an uncompressed image of 16-bit RGBA takes, and its header.
        if status.st_size > 8 * MAX_PIXELS + (1 << 20):
            raise BrokenImage(
                f"{status.st_size:,} bytes are over the limit of {MAX_PIXELS:,} pixels"
            )
        return file.read_bytes()
    except OSError as error:
        raise BrokenImage(error.strerror or type(error).__name__) from None


def open_header(data: bytes) -> Image.Image:
    """Return an image of which only the header has been read."""
    with _as_broken_image("not an image" if data else "empty file"):
        with _PILLOW_LIMIT:
            limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            try:
                image = Image.open(io.BytesIO(data), formats=FORMATS)
            finally:
                Image.MAX_IMAGE_PIXELS = limit
        if image.width * image.height > MAX_PIXELS:
            raise BrokenImage(
                f"{image.width}×{image.height} is over the limit of {MAX_PIXELS:,} pixels"
            )
        return image


def upright_size(file: Path) -> tuple[int, int] | None:
    """Return the (width, height) of an image that is upright, None if it cannot be read."""
    try:
        image = open_header(read_image_bytes(file))
    except BrokenImage:
        return None
    orientation = 1
    with contextlib.suppress(Exception):  # as in `load_pixels`
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    # From 5 on the rows of the file are columns; Pillow gives TIFF's size upright by itself.
    if orientation in (5, 6, 7, 8) and image.format != "TIFF":
        return image.height, image.width
    return image.size


def load_pixels(image: Image.Image, mode: PixelMode) -> Image.Image:
    """Return the image upright, in 8 bits a channel."""
    with _as_broken_image("not an image"):
        image.load()
        # An invalid orientation leaves the image as it is.
        with contextlib.suppress(Exception):
            ImageOps.exif_transpose(image, in_place=True)
        if image.mode.startswith("I;16"):
            # Pillow would clip at 255; 65535 / 257 = 255 exactly.
            wide = np.asarray(image).astype(np.uint32)
            wide += 128
            wide //= 257
            image = Image.fromarray(wide.astype(np.uint8))
        if image.mode in ("I", "F"):
            raise BrokenImage("32-bit pixels have no known range; save the image with 8 or 16 bits")
        if image.mode == mode:
            return image
        image.info.pop("transparency", None)  # it would be dropped all the same, with a warning
        return image.convert(mode)


@contextlib.contextmanager
def _as_broken_image(unidentified: str) -> Iterator[None]:
    try:
        yield
    except (BrokenImage, MemoryError):
        raise
    except UnidentifiedImageError:
        raise BrokenImage(unidentified) from None
    except Exception as error:  # Pillow raises many types for damaged files
        raise BrokenImage(first_line(error)) from None


def map_ordered(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int, limit: int
) -> Generator[Result]:
    """Yield `function(item)` in order, with at most `limit` results started and not yet taken.

    However it ends, no thread is left: running calls finish, waiting ones are dropped.
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix="qconvert-images")
    started: deque[Future[Result]] = deque()
    try:
        for item in items:
            if len(started) >= limit:
                yield started.popleft().result()
            started.append(pool.submit(function, item))
        while started:
            yield started.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class PixelBudget:
    """Limits the pixels decoded at a time; a single image of any size is always let through."""

    def __init__(self, pixels: int) -> None:
        self._limit = self._free = pixels
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def reserve(self, pixels: int) -> Iterator[None]:
        """Wait until that many pixels fit, and hold them."""
        with self._changed:
            self._changed.wait_for(lambda: self._free >= min(pixels, self._limit))
            self._free -= pixels
        try:
            yield
        finally:
            with self._changed:
                self._free += pixels
                self._changed.notify_all()


@dataclass(frozen=True, eq=False)
class FileImages(Images):
    """Image files; both values of the preprocessing are those that fit."""

    preprocess: Preprocess
    image_input: ImageInput
    max_broken: int | None = None
    threads: int = CORES

    def batches(self, size: int) -> Generator[Batch]:
        """Yield all readable images in order; the bytes depend on neither size nor threads."""
        convert = make_converter(self.preprocess, self.image_input)
        read = partial(self._read, convert, PixelBudget(MAX_PIXELS))
        allowed = allowed_broken(self.max_broken, len(self.entries))
        ready: list[ReadItem] = []
        skipped: list[str] = []
        results = map_ordered(read, self.entries, self.threads, size + 2 * self.threads)
        with contextlib.closing(results):
            for result in results:
                if isinstance(result, str):
                    skipped.append(result)
                    if len(skipped) > allowed:
                        raise QConvertError(
                            f"too many of the {len(self.entries)} images of `{self.source}` could "
                            f"not be read: {len(skipped)} so far, {allowed} allowed",
                            details=abbreviate(skipped),
                            hint=SKIPPED_HINT,
                        )
                    continue
                if len(ready) == size:
                    yield self._batch(ready)
                    ready = []
                ready.append(result)
        if ready:
            yield self._batch(ready)
        elif skipped:
            raise NoReadableImage(
                f"no image of `{self.source}` could be read",
                details=abbreviate(skipped),
                hint=SKIPPED_HINT,
            )

    def _batch(self, ready: list[ReadItem]) -> Batch:
        items, arrays, frames = zip(*ready, strict=True)
        return Batch(self.image_input.feeds(arrays), items, frames)

    def _read(
        self, convert: ImageConverter, budget: PixelBudget, entry: ImageEntry
    ) -> ReadItem | str:
        """Return a file as an item; of a broken file, its name and the reason."""
        file = self.root / entry.name
        try:
            data = read_image_bytes(file)
            sha256 = hashlib.sha256(data).hexdigest()
            if entry.sha256 not in ("", sha256):
                raise QConvertError(
                    f"the content of `{file}` has changed since it was used",
                    hint="restore the file, or start again from the images as they are now",
                )
            image = open_header(data)
            with budget.reserve(image.width * image.height):
                mode: PixelMode = "L" if self.image_input.channels == 1 else "RGB"
                upright = load_pixels(image, mode)
                array = convert(upright, entry.name)
                frame = frame_of(self.preprocess, self.image_input, upright.size)
        except BrokenImage as error:
            return f"`{entry.name}` ({error})"
        return replace(entry, sha256=sha256), array, frame

    def _hashes(self) -> Iterable[str]:
        """Return the hashes of all files; that of one that cannot be read is empty."""

        def hash_file(name: str) -> str:
            try:
                data = read_image_bytes(self.root / name)
            except BrokenImage:
                return ""
            return hashlib.sha256(data).hexdigest()

        return map_ordered(hash_file, self.names, self.threads, 2 * self.threads)
