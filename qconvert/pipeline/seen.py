"""What calibration saw of a prepared model: from a file, from the store, or measured now."""

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from qconvert import onnx_io
from qconvert.calibrate import ranges_file
from qconvert.calibrate.calibration import Calibration, merge
from qconvert.config import Config
from qconvert.errors import UsageError
from qconvert.feeds import Feeds, fixed_batch
from qconvert.images import reopen
from qconvert.images.batch import Images
from qconvert.images.image_list import Entry, ImageList
from qconvert.images.preprocess import Preprocess
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
    They are `at_hand` unless all that is known is their names.
    """

    whole: Calibration
    choosing: Calibration
    images: Callable[[], Iterator[Feeds]]
    count: int
    held_out: bool
    at_hand: bool = True


def measured(ready: Prepared, config: Config, job: Job, store: Store, tell: Tell) -> Seen:
    """Return the calibration of a model on the images of the settings; only what is new is run."""
    started = time.perf_counter()
    tell(Progress("calibrate", "listing images"))
    look = begin(ready, config)
    held, others = split(len(look.images.names))
    origin = look.origin
    recipe = {"origin": origin.fingerprint, "model": origin.model, "name": ready.source.name}

    def make(folder: Path) -> None:
        bench = store.bench("calibrate", recipe)
        parts = [
            measure_to(look, replace(job, out=bench / name, fresh=False), wanted, tell).calibration
            for name, wanted in ((CHOOSING, others), (HELD_OUT, held))
        ]
        ranges_file.save(parts[0], folder / CHOOSING)
        ranges_file.save(merge(*parts), folder / WHOLE)
        shutil.rmtree(bench)

    found = store.get("calibrate", recipe, make)
    whole, choosing = (ranges_file.load(found.path / name) for name in (WHOLE, CHOOSING))
    text = f"{whole.done.size} images, {len(whole.summaries)} tensors"
    tell(Progress("calibrate", text, time.perf_counter() - started, found.stored))
    chosen = held or others
    return Seen(whole, choosing, _feeds(ready, look.images, chosen), _count(chosen), bool(held))


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
    return Seen(whole, whole, images, _count(chosen), held_out=False, at_hand=at_hand)


def split(count: int) -> tuple[list[range], list[range]]:
    """Return which of so many images are held out for choices, and the others.

    Whole batches, spread over the list, so that all others are run as without holding any out.
    """
    batches = [range(start, min(start + BATCH, count)) for start in range(0, count, BATCH)]
    every = max(EVERY, -(-len(batches) * BATCH // ENOUGH))
    held = [each for place, each in enumerate(batches) if place % every == every - 1]
    return held, [each for each in batches if each not in held]


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
    """Return what yields batches of those images, whole ones where the model fixes the batch."""
    fixed = fixed_batch(ready.source.inputs)

    def feeds() -> Iterator[Feeds]:
        for part in wanted:
            for batch in images.between(part.start, part.stop).batches(fixed or BATCH):
                if not fixed or len(batch.items) == fixed:
                    yield batch.feeds

    return feeds


def _count(parts: Sequence[range]) -> int:
    return sum(len(part) for part in parts)
