"""What calibration saw of a prepared model: from a file, from the store, or measured now."""

import contextlib
import functools
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from qconvert import __version__
from qconvert.calibrate import calibration_file
from qconvert.calibrate.calibration import Calibration, merge_calibrations
from qconvert.core import onnx_io
from qconvert.core.cache import Cache
from qconvert.core.config import Config
from qconvert.core.errors import QConvertError, UsageError
from qconvert.core.progress import Progress, ProgressCallback
from qconvert.core.tensors import Tensors, fixed_batch
from qconvert.images import reopen_images
from qconvert.images.batches import ImageManifest, Images, ManifestEntry
from qconvert.images.image_files import SKIPPED_HINT, NoReadableImage, ReadOptions
from qconvert.images.preprocess import Preprocess
from qconvert.optimize.calibration_set import CALIBRATION_BATCH, CalibrationSet
from qconvert.run import job_images
from qconvert.run.calibrate import CalibrationRequest, measure_and_save, prepare_calibration
from qconvert.sources import LoadedModel

CALIBRATION_FILE, TRAINING_FILE, HOLDOUT_FILE = "calibration.npz", "choosing.npz", "held-out.npz"
# Of every five batches one is held out for choices, until there are enough.
HOLDOUT_EVERY, MAX_HOLDOUT_IMAGES = 5, 64


def measure(
    ready: LoadedModel,
    config: Config,
    job: CalibrationRequest,
    store: Cache,
    tell: ProgressCallback,
) -> CalibrationSet:
    """Return the calibration of a model on the images of the settings; only what is new is run."""
    started = time.perf_counter()
    tell(Progress("calibrate", "listing images"))
    look = prepare_calibration(ready, config)
    held, others = split_holdout(len(look.images.names))
    origin = look.origin
    recipe = {
        "origin": origin.fingerprint,
        "model": origin.model,
        "name": ready.source.name,
        "qconvert": __version__,
    }

    def make(folder: Path) -> None:
        with store.resumable("calibrate", recipe) as bench:
            here = [
                replace(job, out=bench / name, fresh=False)
                for name in (TRAINING_FILE, HOLDOUT_FILE)
            ]
            parts = [
                measure_and_save(look, each, wanted, tell).calibration
                for each, wanted in zip(here, (others, held), strict=True)
            ]
            whole = merge_calibrations(*parts)
            _require_readable(whole, config)
            calibration_file.save(parts[0], folder / TRAINING_FILE)
            calibration_file.save(whole, folder / CALIBRATION_FILE)

    found = store.get_or_make("calibrate", recipe, make)
    whole, choosing = (
        calibration_file.load(found.path / name) for name in (CALIBRATION_FILE, TRAINING_FILE)
    )
    text = f"{whole.image_indices.size} images, {len(whole.summaries)} tensors"
    tell(Progress("calibrate", text, time.perf_counter() - started, found.hit))
    chosen = held or others
    count = _count_images(chosen, fixed_batch(ready.source.inputs))
    images = _batch_reader(ready, look.images, chosen)
    lessons, spare = _training_readers(ready, lambda: look.images, others)
    again = functools.partial(measure, config=config, job=job, store=store, tell=tell)
    return CalibrationSet(
        whole, choosing, images, count, bool(held), True, bool(held), lessons, spare, again
    )


def load(ready: LoadedModel, config: Config, path: Path) -> CalibrationSet:
    """Return a calibration made earlier; refuse one of another model."""
    whole = calibration_file.load(path)
    if whole.origin.model != onnx_io.fingerprint(ready.model):
        raise UsageError(
            f"`{path}` was measured on another model than `{config.model}`",
            hint="calibrate this one: `qconvert calibrate MODEL --images PATH`",
        )
    held, others = split_holdout(len(whole.origin.images))
    chosen = held or others

    def images() -> Iterator[Tensors]:
        yield from _batch_reader(ready, _reopen_images(ready, config, whole), chosen)()

    at_hand = config.calibration.images is not None
    count = _count_images(chosen, fixed_batch(ready.source.inputs))
    lessons, spare = _training_readers(ready, lambda: _reopen_images(ready, config, whole), others)
    return CalibrationSet(whole, whole, images, count, False, at_hand, bool(held), lessons, spare)


def has_images(ready: LoadedModel, config: Config, path: Path) -> bool:
    """Whether the images of a calibration made earlier lie where the settings say, unchanged."""
    whole = calibration_file.load(path)
    try:
        listed = _reopen_images(ready, config, whole).manifest()
    except QConvertError:
        return False
    return [each.sha256 for each in listed.entries] == [e.sha256 for e in whole.origin.images]


def split_holdout(count: int) -> tuple[list[range], list[range]]:
    """Return which of so many images are held out for choices, and the others.

    Whole batches, spread over the list, so that all others are run as without holding any out.
    """
    batches = count // CALIBRATION_BATCH
    every = max(HOLDOUT_EVERY, -(-batches * CALIBRATION_BATCH // MAX_HOLDOUT_IMAGES))
    ends = [batch * CALIBRATION_BATCH for batch in range(every, batches + 1, every)]
    held = [range(end - CALIBRATION_BATCH, end) for end in ends]
    starts = [0, *ends]
    others = [
        range(start, stop)
        for start, stop in zip(starts, [*(each.start for each in held), count], strict=True)
        if start < stop
    ]
    return held, others


def _training_readers(
    ready: LoadedModel, images: Callable[[], Images], others: Sequence[range]
) -> tuple[Callable[[int], list[Tensors]], Callable[[int], Iterator[Tensors]]]:
    """Return what reads so many of the others, spread evenly over them, and what reads the rest."""
    batches = [
        range(start, min(start + CALIBRATION_BATCH, part.stop))
        for part in others
        for start in range(part.start, part.stop, CALIBRATION_BATCH)
    ]

    def some(count: int) -> list[range]:
        wanted = max(1, min(len(batches), -(-count // CALIBRATION_BATCH)))
        return [batches[place * len(batches) // wanted] for place in range(wanted)]

    def read(count: int) -> list[Tensors]:
        return list(_batch_reader(ready, images(), some(count))())

    def spare(count: int) -> Iterator[Tensors]:
        taken = some(count)
        yield from _batch_reader(ready, images(), [each for each in batches if each not in taken])()

    return read, spare


def _reopen_images(ready: LoadedModel, config: Config, seen: Calibration) -> Images:
    """Return the images of a calibration file, found again below the path of the settings."""
    if config.calibration.images is None:
        raise UsageError(
            "choosing a method needs some of the calibration images again",
            hint="say where they are: `--images PATH`, or choose a method: `--method mse`",
        )
    entries = tuple(ManifestEntry(image.name, image.sha256) for image in seen.origin.images)
    root = job_images.open_calibration_images(ready.source, config, 1).root
    preprocess = Preprocess.from_dict(seen.origin.preprocessing)
    return reopen_images(ImageManifest(root, entries), ready.source.inputs, preprocess)


def _batch_reader(
    ready: LoadedModel, images: Images, wanted: Sequence[range]
) -> Callable[[], Iterator[Tensors]]:
    """Return what yields those images in batches that the model takes.

    Where the model fixes the batch, images that do not make a whole one are left out; fewer than
    one are repeated.
    """
    fixed = fixed_batch(ready.source.inputs)

    def parts(size: int) -> Iterator[Tensors]:
        for part in wanted:
            with contextlib.suppress(NoReadableImage):
                yield from (
                    batch.feeds for batch in images.between(part.start, part.stop).batches(size)
                )

    def groups(size: int) -> Iterator[Tensors]:
        single, first = parts(1), True
        while group := list(itertools.islice(single, size)):
            if len(group) < size and not first:
                return
            first = False
            yield {
                name: np.resize(np.concatenate([each[name] for each in group]), (size, *rest))
                for name, rest in ((name, each.shape[1:]) for name, each in group[0].items())
            }

    if fixed in (None, 1):
        return lambda: parts(fixed or CALIBRATION_BATCH)
    return lambda: groups(fixed)


def _require_readable(seen: Calibration, config: Config) -> None:
    """Refuse a list of which too many pictures could not be read; parts each count their own."""
    images = seen.origin.images
    broken = [images[at].name for run in seen.missing_images() for at in run]
    if len(broken) > ReadOptions(max_broken=config.calibration.max_broken).allowed_broken(
        len(images)
    ):
        raise QConvertError(
            f"{len(broken)} of {len(images)} pictures could not be read",
            details=[f"`{name}`" for name in broken[:5]],
            hint=SKIPPED_HINT,
        )


def _count_images(parts: Sequence[range], fixed: int | None) -> int:
    """Return how many images `_feeds` yields of these, not counting those that it repeats."""
    images = sum(len(part) for part in parts)
    return images // fixed * fixed or images if fixed else images
