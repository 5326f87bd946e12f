"""What calibration saw of a prepared model: from a file, from the store, or measured now."""

import contextlib
import functools
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from qconvert import __version__, onnx_io
from qconvert.calibrate import ranges_file
from qconvert.calibrate.calibration import Calibration, merge
from qconvert.config import Config
from qconvert.errors import QConvertError, UsageError
from qconvert.feeds import Feeds, batch_size, fixed_batch
from qconvert.images import reopen
from qconvert.images.batch import Images
from qconvert.images.image_list import Entry, ImageList
from qconvert.images.pictures import TAKE_OUT, NoImage
from qconvert.images.preprocess import Preprocess
from qconvert.images.reading import Reading
from qconvert.pipeline import pictures
from qconvert.pipeline.calibrate import Job, begin, measure_to
from qconvert.pipeline.measuring import BATCH
from qconvert.pipeline.prepared import Prepared
from qconvert.pipeline.progress import Progress, Tell
from qconvert.store import Store

WHOLE, CHOOSING, HELD_OUT = "calibration.npz", "choosing.npz", "held-out.npz"
# Of every five batches one is held out for choices, until there are enough.
EVERY, ENOUGH = 5, 64


@dataclass(frozen=True)
class Seen:
    """A calibration, and `count` images to choose between what could be made of it.

    Choices are made with `choosing`, which did not see those images where they are `held_out`.
    They are `at_hand` unless all that is known is their names. `lessons` returns so many of the
    others, spread over all of them, in batches that the model takes, and `spare` yields what
    `lessons` of so many leaves. Of few images none are `apart` from those. `again` shows all images
    to a model that answers the same.
    """

    whole: Calibration
    choosing: Calibration
    images: Callable[[], Iterator[Feeds]]
    count: int
    held_out: bool
    at_hand: bool = True
    apart: bool = True
    lessons: Callable[[int], list[Feeds]] = field(default=lambda count: [])
    spare: Callable[[int], Iterator[Feeds]] = field(default=lambda count: iter(()))
    again: Callable[[Prepared], "Seen"] | None = None

    def judges(self, lessons: int, most: int) -> Iterator[Feeds]:
        """Yield images that `lessons` of so many leave: those apart, and others up to `most`.

        Some there always are, unless the lessons took all.
        """
        count = 0
        for feeds in self.images() if self.apart else ():
            count += batch_size(feeds)
            yield feeds
        for feeds in self.spare(lessons):
            if count and count + batch_size(feeds) > most:
                return
            count += batch_size(feeds)
            yield feeds


def measured(ready: Prepared, config: Config, job: Job, store: Store, tell: Tell) -> Seen:
    """Return the calibration of a model on the images of the settings; only what is new is run."""
    started = time.perf_counter()
    tell(Progress("calibrate", "listing images"))
    look = begin(ready, config)
    held, others = split(len(look.images.names))
    origin = look.origin
    recipe = {
        "origin": origin.fingerprint,
        "model": origin.model,
        "name": ready.source.name,
        "qconvert": __version__,
    }

    def make(folder: Path) -> None:
        with store.bench("calibrate", recipe) as bench:
            here = [replace(job, out=bench / name, fresh=False) for name in (CHOOSING, HELD_OUT)]
            parts = [
                measure_to(look, each, wanted, tell).calibration
                for each, wanted in zip(here, (others, held), strict=True)
            ]
            whole = merge(*parts)
            _require_readable(whole, config)
            ranges_file.save(parts[0], folder / CHOOSING)
            ranges_file.save(whole, folder / WHOLE)

    found = store.get("calibrate", recipe, make)
    whole, choosing = (ranges_file.load(found.path / name) for name in (WHOLE, CHOOSING))
    text = f"{whole.done.size} images, {len(whole.summaries)} tensors"
    tell(Progress("calibrate", text, time.perf_counter() - started, found.stored))
    chosen = held or others
    count = _count(chosen, fixed_batch(ready.source.inputs))
    images = _feeds(ready, look.images, chosen)
    lessons, spare = _lessons(ready, lambda: look.images, others)
    again = functools.partial(measured, config=config, job=job, store=store, tell=tell)
    return Seen(whole, choosing, images, count, bool(held), True, bool(held), lessons, spare, again)


def from_file(ready: Prepared, config: Config, path: Path) -> Seen:
    """Return a calibration made earlier; refuse one of another model."""
    whole = ranges_file.load(path)
    if whole.origin.model != onnx_io.fingerprint(ready.model):
        raise UsageError(
            f"`{path}` was measured on another model than `{config.model}`",
            hint="calibrate this one: `qconvert calibrate MODEL --images PATH`",
        )
    held, others = split(len(whole.origin.images))
    chosen = held or others

    def images() -> Iterator[Feeds]:
        yield from _feeds(ready, _again(ready, config, whole), chosen)()

    at_hand = config.calibration.images is not None
    count = _count(chosen, fixed_batch(ready.source.inputs))
    lessons, spare = _lessons(ready, lambda: _again(ready, config, whole), others)
    return Seen(whole, whole, images, count, False, at_hand, bool(held), lessons, spare)


def are_there(ready: Prepared, config: Config, path: Path) -> bool:
    """Whether the images of a calibration made earlier lie where the settings say, unchanged."""
    whole = ranges_file.load(path)
    try:
        listed = _again(ready, config, whole).listing()
    except QConvertError:
        return False
    return [each.sha256 for each in listed.entries] == [e.sha256 for e in whole.origin.images]


def split(count: int) -> tuple[list[range], list[range]]:
    """Return which of so many images are held out for choices, and the others.

    Whole batches, spread over the list, so that all others are run as without holding any out.
    """
    batches = count // BATCH
    every = max(EVERY, -(-batches * BATCH // ENOUGH))
    ends = [batch * BATCH for batch in range(every, batches + 1, every)]
    held = [range(end - BATCH, end) for end in ends]
    starts = [0, *ends]
    others = [
        range(start, stop)
        for start, stop in zip(starts, [*(each.start for each in held), count], strict=True)
        if start < stop
    ]
    return held, others


def _lessons(
    ready: Prepared, images: Callable[[], Images], others: Sequence[range]
) -> tuple[Callable[[int], list[Feeds]], Callable[[int], Iterator[Feeds]]]:
    """Return what reads so many of the others, spread evenly over them, and what reads the rest."""
    batches = [
        range(start, min(start + BATCH, part.stop))
        for part in others
        for start in range(part.start, part.stop, BATCH)
    ]

    def some(count: int) -> list[range]:
        wanted = max(1, min(len(batches), -(-count // BATCH)))
        return [batches[place * len(batches) // wanted] for place in range(wanted)]

    def read(count: int) -> list[Feeds]:
        return list(_feeds(ready, images(), some(count))())

    def spare(count: int) -> Iterator[Feeds]:
        taken = some(count)
        yield from _feeds(ready, images(), [each for each in batches if each not in taken])()

    return read, spare


def _again(ready: Prepared, config: Config, seen: Calibration) -> Images:
    """Return the images of a calibration file, found again below the path of the settings."""
    if config.calibration.images is None:
        raise UsageError(
            "choosing a method needs some of the calibration images again",
            hint="say where they are: `--images PATH`, or choose a method: `--method mse`",
        )
    entries = tuple(Entry(image.name, image.sha256) for image in seen.origin.images)
    root = pictures.open_for(ready.source, config, 1).root
    preprocess = Preprocess.from_dict(seen.origin.preprocessing)
    return reopen(ImageList(root, entries), ready.source.inputs, preprocess)


def _feeds(
    ready: Prepared, images: Images, wanted: Sequence[range]
) -> Callable[[], Iterator[Feeds]]:
    """Return what yields those images in batches that the model takes.

    Where the model fixes the batch, images that do not make a whole one are left out; fewer than
    one are repeated.
    """
    fixed = fixed_batch(ready.source.inputs)

    def parts(size: int) -> Iterator[Feeds]:
        for part in wanted:
            with contextlib.suppress(NoImage):
                yield from (
                    batch.feeds for batch in images.between(part.start, part.stop).batches(size)
                )

    def groups(size: int) -> Iterator[Feeds]:
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
        return lambda: parts(fixed or BATCH)
    return lambda: groups(fixed)


def _require_readable(seen: Calibration, config: Config) -> None:
    """Refuse a list of which too many pictures could not be read; parts each count their own."""
    images = seen.origin.images
    broken = [images[at].name for run in seen.missing() for at in run]
    if len(broken) > Reading(max_broken=config.calibration.max_broken).allowed_broken(len(images)):
        raise QConvertError(
            f"{len(broken)} of {len(images)} pictures could not be read",
            details=[f"`{name}`" for name in broken[:5]],
            hint=TAKE_OUT,
        )


def _count(parts: Sequence[range], fixed: int | None) -> int:
    """Return how many images `_feeds` yields of these, not counting those that it repeats."""
    images = sum(len(part) for part in parts)
    return images // fixed * fixed or images if fixed else images
