"""The images of a calibration, split in two: most to calibrate on, some held out to validate on."""

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from qconvert.calibrate.calibration import Calibration
from qconvert.core.errors import UsageError
from qconvert.core.tensors import Tensors, batch_size, pad_batch
from qconvert.images.image_files import NoReadableImage
from qconvert.images.listing import Images

# Memory is mostly the activations of the batches in flight; larger batches are hardly faster.
CALIBRATION_BATCH = 4
# Of every five batches one is held out, until there are enough.
HOLDOUT_EVERY, MAX_HOLDOUT_IMAGES = 5, 64
MISSING_IMAGES = "choosing a method needs some of the calibration images again"
MISSING_IMAGES_HINT = "say where they are: `--images PATH`, or choose a method: `--method mse`"


@dataclass(frozen=True)
class CalibrationSet:
    """A calibration with its images; `images` is None when only their names are known.

    `training` is the calibration without the held-out images if it `excludes_holdout`, else `full`.
    `fixed_batch` is the batch of the model, None if it is dynamic. If it `can_recalibrate`, another
    model can be calibrated on the same images.
    """

    full: Calibration
    training: Calibration
    images: Images | None
    fixed_batch: int | None
    excludes_holdout: bool
    can_recalibrate: bool = False

    @property
    def has_holdout(self) -> bool:
        """Whether any images are held out; a few images are too few for that."""
        return bool(self._split[0])

    @property
    def validation_count(self) -> int:
        """The number of validation images, without those that only fill up a batch."""
        count, size = sum(map(len, self._validation_parts)), self.fixed_batch or 1
        return count // size * size or count

    def validation_batches(self) -> Iterator[Tensors]:
        """Yield the held-out images, or all images if none are held out."""
        return self._read_batches(self._validation_parts)

    def training_batches(self, count: int) -> list[Tensors]:
        """Return about `count` training images, spread evenly over all of them."""
        return list(self._read_batches(self._training_parts(count)))

    def holdout_batches(self, training_count: int, max_images: int) -> Iterator[Tensors]:
        """Yield images that `training_batches(training_count)` does not contain.

        These are all held-out images, then remaining training images up to `max_images` in all.
        At least one batch is yielded unless training takes every image.
        """
        holdout, others = self._split
        count = 0
        for feeds in self._read_batches(holdout):
            count += batch_size(feeds)
            yield feeds
        used = self._training_parts(training_count)
        remaining = [part for part in split_batches(others) if part not in used]
        for feeds in self._read_batches(remaining):
            if count and count + batch_size(feeds) > max_images:
                return
            count += batch_size(feeds)
            yield feeds

    @property
    def _split(self) -> tuple[list[range], list[range]]:
        return split_holdout(len(self.full.origin.images))

    @property
    def _validation_parts(self) -> list[range]:
        holdout, others = self._split
        return holdout or others

    def _training_parts(self, count: int) -> list[range]:
        parts = split_batches(self._split[1])
        number = max(1, min(len(parts), -(-count // CALIBRATION_BATCH)))
        return [parts[index * len(parts) // number] for index in range(number)]

    def _read_batches(self, parts: Sequence[range]) -> Iterator[Tensors]:
        """Yield images in batches that the model takes.

        If the model fixes the batch, images that do not fill one are left out; images that do not
        fill the first are repeated.
        """
        size = self.fixed_batch
        if size in (None, 1):
            yield from self._read(parts, size or CALIBRATION_BATCH)
            return
        images = self._read(parts, 1)
        is_first = True
        while group := list(itertools.islice(images, size)):
            if is_first or len(group) == size:
                feeds = {name: np.concatenate([row[name] for row in group]) for name in group[0]}
                yield pad_batch(feeds, size)
            is_first = False

    def _read(self, parts: Sequence[range], size: int) -> Iterator[Tensors]:
        if self.images is None:
            raise UsageError(MISSING_IMAGES, hint=MISSING_IMAGES_HINT)
        for part in parts:
            with contextlib.suppress(NoReadableImage):
                for batch in self.images.between(part.start, part.stop).batches(size):
                    yield batch.feeds


def split_holdout(count: int) -> tuple[list[range], list[range]]:
    """Split so many images into the held-out ones and the others.

    Whole batches are held out, spread over the list, so that the batches of the others stay as
    they are without a holdout.
    """
    batches = count // CALIBRATION_BATCH
    every = max(HOLDOUT_EVERY, -(-batches * CALIBRATION_BATCH // MAX_HOLDOUT_IMAGES))
    ends = [batch * CALIBRATION_BATCH for batch in range(every, batches + 1, every)]
    holdout = [range(end - CALIBRATION_BATCH, end) for end in ends]
    starts, stops = [0, *ends], [*(part.start for part in holdout), count]
    others = [range(start, stop) for start, stop in zip(starts, stops, strict=True) if start < stop]
    return holdout, others


def split_batches(parts: Sequence[range]) -> list[range]:
    """Split parts of the images into whole batches; the last of a part may be shorter."""
    return [
        part[start : start + CALIBRATION_BATCH]
        for part in parts
        for start in range(0, len(part), CALIBRATION_BATCH)
    ]
