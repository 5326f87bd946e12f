"""The tensors of a model over images: one pass, resumed where it stopped, split over workers.

What is done lies in hidden part files beside the result, saved every few seconds, so that a run
that was killed goes on; they vanish when the result is there.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

from qconvert import onnx_io
from qconvert.backends.ort import VERSION
from qconvert.calibrate import ranges_file
from qconvert.calibrate.calibration import Calibration, Image, Origin, merge, require_finite
from qconvert.config import Config
from qconvert.errors import QConvertError
from qconvert.graph.masks import masked
from qconvert.graph.taps import Tapped, tap
from qconvert.images.arrays import ArrayImages
from qconvert.images.batch import Images
from qconvert.pipeline import pictures, prepared
from qconvert.pipeline.measuring import BATCH, Share, measure
from qconvert.pipeline.place import require_place
from qconvert.pipeline.prepared import Prepared
from qconvert.pipeline.progress import Progress, Tell
from qconvert.pipeline.workers import measure_in_workers
from qconvert.store import Store

FEWEST = 8


@dataclass(frozen=True)
class Job:
    """How to go about it; nothing here changes a number. `shard` is (i, n), i from 1 to n."""

    out: Path
    workers: int = 1
    shard: tuple[int, int] | None = None
    fresh: bool = False
    trust: bool = False


@dataclass(frozen=True)
class Look:
    """A model with its taps, and the images that it is to see."""

    model: Path
    tapped: Tapped
    images: Images
    origin: Origin


def calibrate(config: Config, job: Job, store: Store, tell: Tell) -> Calibration:
    """Measure what `job` asks for, save it at `job.out`, and return it."""
    require_place(job.out, Path(str(config.model)))
    ready = prepared.load(config, store, tell, trust=job.trust)
    started = time.perf_counter()
    tell(Progress("calibrate", "listing images"))
    look = begin(ready, config, _threads(job))
    wanted = part(len(look.images.names), job.shard)
    found = measure_to(look, job, [wanted], tell)
    seen = int(np.isin(found.calibration.done, wanted).sum())
    text = f"{seen} images, {len(look.origin.tensors)} tensors; {job.out}"
    tell(Progress("calibrate", text, time.perf_counter() - started, found.stored))
    return found.calibration


def begin(ready: Prepared, config: Config, threads: int | None = None) -> Look:
    """Tap a model and list its images, all that decides the numbers."""
    images = pictures.open_for(ready.source, config, config.calibration.count, threads)
    tapped = tap(ready.model, exact=config.calibration.exact)
    return Look(ready.path, tapped, images, _origin(ready, tapped, images, config))


@dataclass(frozen=True)
class Measured:
    """A calibration, and whether nothing had to be run for it."""

    calibration: Calibration
    stored: bool


def measure_to(look: Look, job: Job, wanted: Sequence[range], tell: Tell) -> Measured:
    """Measure what is missing of the wanted images, and save everything known at `job.out`."""
    known = Calibration(look.origin) if job.fresh else _known(look.origin, job.out)
    _keep_known(known, job.out)
    missing = [run for each in wanted for run in known.missing(each)]
    share = Share(look.images, missing, known, _keep(job.out), _threads(job))
    found = _measure(look, share, job.workers, tell)
    require_finite(found, masked(look.tapped.model.graph))
    if found is not known:
        ranges_file.save(found, job.out)
    _drop_parts(job.out)
    return Measured(found, stored=found is known)


def part(count: int, shard: tuple[int, int] | None) -> range:
    """Return the images of one shard; it starts where a batch does, so batches stay the same."""
    if shard is None:
        return range(count)
    batches = -(-count // BATCH)
    first, last = ((shard[0] - side) * batches // shard[1] * BATCH for side in (1, 0))
    return range(first, min(last, count))


def _origin(ready: Prepared, tapped: Tapped, images: Images, config: Config) -> Origin:
    listing = images.listing()
    if len(listing) < FEWEST:
        some = "1 image" if len(listing) == 1 else f"{len(listing)} images"
        raise QConvertError(
            f"`{config.calibration.images}` has {some}; calibration needs at least {FEWEST}",
            hint="point `--images` at representative pictures; 100 to 500 are usual",
        )
    is_array = isinstance(images, ArrayImages)
    return Origin(
        model=onnx_io.fingerprint(ready.model),
        tensors=tuple(each.tensor for each in tapped.taps),
        images=tuple(Image(entry.name, entry.sha256) for entry in listing.entries),
        preprocessing={} if is_array else pictures.settled(ready.source, config).to_dict(),
        runtime=f"CPUExecutionProvider {VERSION}, Pillow {version('pillow')}",
        exact=config.calibration.exact,
    )


def _threads(job: Job) -> int:
    return max(1, (os.cpu_count() or 1) // job.workers)


def _measure(look: Look, share: Share, workers: int, tell: Tell) -> Calibration:
    total = share.start.done.size + sum(len(each) for each in share.parts)

    def seen(done: int) -> None:
        tell(Progress("calibrate", "images", done=done, total=total))

    if not share.parts:
        return share.start
    if workers == 1:
        return measure(look.tapped, share, seen)
    found = share.start
    for each in measure_in_workers(look.model, share, workers, seen):
        found = merge(found, each)
    return found


def _keep(out: Path) -> Path:
    return out.with_name(f".{out.name}.part")


def _known(origin: Origin, out: Path) -> Calibration:
    """Return what the result and the parts of an earlier run hold, if they are of this very job."""
    known = Calibration(origin)
    for file in (out, *_parts(out)):
        try:
            found = ranges_file.load(file) if file.is_file() else None
        except QConvertError:  # another version's, or no calibration: it is made anew
            found = None
        if found and found.origin == origin and not np.isin(found.done, known.done).any():
            known = merge(known, found)
    return known


def _keep_known(known: Calibration, out: Path) -> None:
    """Put all that is known into one part, before anyone writes the others anew."""
    if known.done.size:
        ranges_file.save(known, _keep(out))
    for file in set(_parts(out)) - ({_keep(out)} if known.done.size else set()):
        file.unlink(missing_ok=True)


def _parts(out: Path) -> list[Path]:
    return sorted(out.parent.glob(f"{_keep(out).name}*"))


def _drop_parts(out: Path) -> None:
    for file in _parts(out):
        file.unlink(missing_ok=True)
