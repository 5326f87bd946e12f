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

from qconvert.backends.ort import ORT_VERSION
from qconvert.calibrate import calibration_file
from qconvert.calibrate.calibration import (
    Calibration,
    CalibrationImage,
    Origin,
    merge_calibrations,
    require_finite,
)
from qconvert.core import onnx_io
from qconvert.core.cache import Cache
from qconvert.core.config import Config
from qconvert.core.errors import QConvertError
from qconvert.core.progress import Progress, ProgressCallback
from qconvert.graph.observed_tensors import find_masked_tensors
from qconvert.graph.taps import TappedModel, add_calibration_taps
from qconvert.images.arrays import ArrayImages
from qconvert.images.batches import Images
from qconvert.optimize.calibration_set import CALIBRATION_BATCH
from qconvert.run import job_images, load_model
from qconvert.run.calibration_workers import ImageShare, measure_in_workers, measure_share
from qconvert.run.run_folder import require_output_file
from qconvert.sources import LoadedModel

MIN_IMAGES = 8


@dataclass(frozen=True)
class CalibrationRequest:
    """How to go about it; nothing here changes a number. `shard` is (i, n), i from 1 to n."""

    out: Path
    workers: int = 1
    shard: tuple[int, int] | None = None
    fresh: bool = False
    trust: bool = False


@dataclass(frozen=True)
class CalibrationInputs:
    """A model with its taps, and the images that it is to see."""

    model: Path
    tapped: TappedModel
    images: Images
    origin: Origin


def calibrate(
    config: Config, job: CalibrationRequest, store: Cache, tell: ProgressCallback
) -> Calibration:
    """Measure what `job` asks for, save it at `job.out`, and return it."""
    require_output_file(job.out, Path(str(config.model)))
    ready = load_model.load_and_clean(config, store, tell, trust=job.trust)
    started = time.perf_counter()
    tell(Progress("calibrate", "listing images"))
    look = prepare_calibration(ready, config, _threads(job))
    wanted = shard_range(len(look.images.names), job.shard)
    found = measure_and_save(look, job, [wanted], tell)
    seen = int(np.isin(found.calibration.image_indices, wanted).sum())
    text = f"{seen} images, {len(look.origin.tensors)} tensors; {job.out}"
    tell(Progress("calibrate", text, time.perf_counter() - started, found.stored))
    return found.calibration


def prepare_calibration(
    ready: LoadedModel, config: Config, threads: int | None = None
) -> CalibrationInputs:
    """Tap a model and list its images, all that decides the numbers."""
    images = job_images.open_calibration_images(
        ready.source, config, config.calibration.count, threads
    )
    tapped = add_calibration_taps(ready.model, exact=config.calibration.exact)
    return CalibrationInputs(ready.path, tapped, images, _origin(ready, tapped, images, config))


@dataclass(frozen=True)
class MeasuredCalibration:
    """A calibration, and whether nothing had to be run for it."""

    calibration: Calibration
    stored: bool


def measure_and_save(
    look: CalibrationInputs,
    job: CalibrationRequest,
    wanted: Sequence[range],
    tell: ProgressCallback,
) -> MeasuredCalibration:
    """Measure what is missing of the wanted images, and save everything known at `job.out`."""
    known = Calibration(look.origin) if job.fresh else _load_known(look.origin, job.out)
    _save_known(known, job.out)
    missing = [run for each in wanted for run in known.missing_images(each)]
    share = ImageShare(look.images, missing, known, _part_file(job.out), _threads(job))
    found = _measure(look, share, job.workers, tell)
    require_finite(found, find_masked_tensors(look.tapped.model.graph))
    if found is not known:
        calibration_file.save(found, job.out)
    _drop_parts(job.out)
    return MeasuredCalibration(found, stored=found is known)


def shard_range(count: int, shard: tuple[int, int] | None) -> range:
    """Return the images of one shard; it starts where a batch does, so batches stay the same."""
    if shard is None:
        return range(count)
    batches = -(-count // CALIBRATION_BATCH)
    first, last = ((shard[0] - side) * batches // shard[1] * CALIBRATION_BATCH for side in (1, 0))
    return range(first, min(last, count))


def _origin(ready: LoadedModel, tapped: TappedModel, images: Images, config: Config) -> Origin:
    listing = images.manifest()
    if len(listing) < MIN_IMAGES:
        some = "1 image" if len(listing) == 1 else f"{len(listing)} images"
        raise QConvertError(
            f"`{config.calibration.images}` has {some}; calibration needs at least {MIN_IMAGES}",
            hint="point `--images` at representative pictures; 100 to 500 are usual",
        )
    is_array = isinstance(images, ArrayImages)
    return Origin(
        model=onnx_io.fingerprint(ready.model),
        tensors=tuple(each.tensor for each in tapped.taps),
        images=tuple(CalibrationImage(entry.name, entry.sha256) for entry in listing.entries),
        preprocessing={}
        if is_array
        else job_images.fitted_preprocessing(ready.source, config).to_dict(),
        runtime=f"CPUExecutionProvider {ORT_VERSION}, Pillow {version('pillow')}",
        exact=config.calibration.exact,
    )


def _threads(job: CalibrationRequest) -> int:
    return max(1, (os.cpu_count() or 1) // job.workers)


def _measure(
    look: CalibrationInputs, share: ImageShare, workers: int, tell: ProgressCallback
) -> Calibration:
    total = share.start.image_indices.size + sum(len(each) for each in share.parts)

    def seen(done: int) -> None:
        tell(Progress("calibrate", "images", done=done, total=total))

    if not share.parts:
        return share.start
    if workers == 1:
        return measure_share(look.tapped, share, seen)
    found = share.start
    for each in measure_in_workers(look.model, share, workers, seen):
        found = merge_calibrations(found, each)
    return found


def _part_file(out: Path) -> Path:
    return out.with_name(f".{out.name}.part")


def _load_known(origin: Origin, out: Path) -> Calibration:
    """Return what the result and the parts of an earlier run hold, if they are of this very job."""
    known = Calibration(origin)
    for file in (out, *_parts(out)):
        try:
            found = calibration_file.load(file) if file.is_file() else None
        except QConvertError:  # another version's, or no calibration: it is made anew
            found = None
        if (
            found
            and found.origin == origin
            and not np.isin(found.image_indices, known.image_indices).any()
        ):
            known = merge_calibrations(known, found)
    return known


def _save_known(known: Calibration, out: Path) -> None:
    """Put all that is known into one part, before anyone writes the others anew."""
    if known.image_indices.size:
        calibration_file.save(known, _part_file(out))
    for file in set(_parts(out)) - ({_part_file(out)} if known.image_indices.size else set()):
        file.unlink(missing_ok=True)


def _parts(out: Path) -> list[Path]:
    return sorted(out.parent.glob(f"{_part_file(out).name}*"))


def _drop_parts(out: Path) -> None:
    for file in _parts(out):
        file.unlink(missing_ok=True)
