"""Calibrate a model on images: one pass, resumed where it stopped, split over worker processes.

Finished batches are saved every few seconds in hidden part files beside the result. The parts of
workers add up to the same bits as a calibration in one process.
"""

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np

from qconvert.backends.ort import ORT_VERSION, open_cpu
from qconvert.calibrate.calibration import (
    Calibration,
    CalibrationImage,
    Collector,
    Origin,
    load_calibration,
    merge_calibrations,
    require_finite,
    sample_phases,
    save_calibration,
)
from qconvert.core import onnx_io
from qconvert.core.errors import QConvertError, UsageError
from qconvert.core.number_format import count
from qconvert.core.progress import Progress, start_step
from qconvert.core.tensors import Tensors, fixed_batch, pad_batch, tap_name
from qconvert.graph.taps import TappedModel, add_calibration_taps, find_masked_tensors
from qconvert.images import reopen_images
from qconvert.images.arrays import ArrayImages
from qconvert.images.image_files import SKIPPED_HINT, NoReadableImage, allowed_broken, map_ordered
from qconvert.images.listing import Batch, ImageEntry, Images, digest_of
from qconvert.images.preprocess import Preprocess
from qconvert.optimize import calibration_set
from qconvert.optimize.calibration_set import CALIBRATION_BATCH, CalibrationSet
from qconvert.run import worker_bootstrap
from qconvert.run.context import (
    JobContext,
    cache_key,
    fitted_preprocessing,
    open_calibration_images,
)
from qconvert.run.quantized_source import load_float
from qconvert.run.run_folder import require_output_file
from qconvert.sources import LoadedModel

MIN_IMAGES = 8
# One thread per worker avoids waiting within operators; more workers would need more memory.
MAX_PARALLEL_BATCHES = 4
SAVE_SECONDS = 10.0
CALIBRATION_FILE, TRAINING_FILE = "calibration.npz", "choosing.npz"


@dataclass(frozen=True)
class CalibrationInputs:
    """A tapped model and the images to run it on."""

    model: Path
    tapped: TappedModel
    images: Images
    origin: Origin


def calibrate(
    context: JobContext,
    out: Path,
    *,
    workers: int = 1,
    shard: tuple[int, int] | None = None,
    fresh: bool = False,
) -> Calibration:
    """Calibrate the model of the settings and save the result; `shard` is (i, n), i from 1 to n."""
    require_output_file(out, Path(str(context.config.model)))
    loaded = load_float(context, quantizing=False).loaded
    end = start_step(context.progress, "calibrate", "listing images")
    inputs = prepare_calibration(loaded, context, _threads(workers))
    part = shard_range(len(inputs.images.names), shard)
    calibration, was_known = _measure_and_save(inputs, out, [part], workers, context, fresh=fresh)
    done = int(np.isin(calibration.image_indices, part).sum())
    end(f"{done} images, {len(inputs.origin.tensors)} tensors; {out}", was_known)
    return calibration


def prepare_calibration(
    loaded: LoadedModel, context: JobContext, threads: int | None = None
) -> CalibrationInputs:
    """Add the taps and list the images: everything that decides the numbers."""
    settings = context.config.calibration
    images = open_calibration_images(loaded.source, context, settings.count, threads)
    manifest = images.manifest()
    if len(manifest) < MIN_IMAGES:
        raise QConvertError(
            f"`{settings.images}` has {count(len(manifest), 'image')}; "
            f"calibration needs at least {MIN_IMAGES}",
            hint="point `--images` at representative images; 100 to 500 are usual",
        )
    preprocessing = fitted_preprocessing(loaded.source, context.config.preprocess)
    tapped = add_calibration_taps(loaded.model, exact=settings.exact)
    origin = Origin(
        model=onnx_io.fingerprint(loaded.model),
        tensors=tapped.tensors,
        images=tuple(CalibrationImage(entry.name, entry.sha256) for entry in manifest),
        preprocessing={} if isinstance(images, ArrayImages) else preprocessing,
        runtime=f"CPUExecutionProvider {ORT_VERSION}, Pillow {version('pillow')}",
        exact=settings.exact,
    )
    return CalibrationInputs(loaded.path, tapped, images, origin)


def shard_range(count: int, shard: tuple[int, int] | None) -> range:
    """Return the images of a shard; it starts at a batch boundary, so batches stay the same."""
    if shard is None:
        return range(count)
    batches = -(-count // CALIBRATION_BATCH)
    first, last = ((shard[0] - side) * batches // shard[1] * CALIBRATION_BATCH for side in (1, 0))
    return range(first, min(last, count))


def measure_calibration_set(loaded: LoadedModel, context: JobContext) -> CalibrationSet:
    """Calibrate a model on the images of the settings, some of them held out; cached."""
    end = start_step(context.progress, "calibrate", "listing images")
    inputs = prepare_calibration(loaded, context)
    holdout, training = calibration_set.split_holdout(len(inputs.images.names))
    key = cache_key(loaded.source.name, inputs.origin.model, origin=inputs.origin.fingerprint)

    def make(folder: Path) -> None:
        with context.cache.resumable("calibrate", key) as state:
            for_training, _ = _measure_and_save(inputs, state / TRAINING_FILE, training, 1, context)
            held_out, _ = _measure_and_save(inputs, state / "held-out.npz", holdout, 1, context)
            full = merge_calibrations(for_training, held_out)
            # each of the two counts only its own broken images
            images, max_broken = inputs.origin.images, context.config.calibration.max_broken
            broken = [images[index].name for run in full.missing_images() for index in run]
            if len(broken) > allowed_broken(max_broken, len(images)):
                raise QConvertError(
                    f"{len(broken)} of {len(images)} images could not be read",
                    details=[f"`{name}`" for name in broken[:5]],
                    hint=SKIPPED_HINT,
                )
            save_calibration(full, folder / CALIBRATION_FILE)
            save_calibration(for_training, folder / TRAINING_FILE)

    entry, hit = context.cache.get_or_make("calibrate", key, make)
    full = load_calibration(entry / CALIBRATION_FILE)
    without_holdout = load_calibration(entry / TRAINING_FILE)
    end(f"{full.image_indices.size} images, {len(full.summaries)} tensors", hit)
    batch = fixed_batch(loaded.source.inputs)
    return CalibrationSet(
        full, without_holdout, inputs.images, batch, bool(holdout), can_recalibrate=True
    )


def load_calibration_set(
    loaded: LoadedModel, context: JobContext, path: Path, *, images_required: bool = True
) -> CalibrationSet:
    """Read a calibration file of the model, and open its images where the settings say they are."""
    calibration, images = load_calibration(path), None
    origin = calibration.origin
    if origin.model != onnx_io.fingerprint(loaded.model):
        raise UsageError(
            f"`{path}` was measured on another model than `{context.config.model}`",
            hint="calibrate this one: `qconvert calibrate MODEL --images PATH`",
        )
    if context.config.calibration.images is not None:
        try:
            root = open_calibration_images(loaded.source, context, 1).root
            entries = tuple(ImageEntry(image.name, image.sha256) for image in origin.images)
            preprocess = Preprocess.from_dict(origin.preprocessing)
            reopened = reopen_images(root, entries, loaded.source.inputs, preprocess)
            if images_required or digest_of(reopened.manifest()) == digest_of(entries):
                images = reopened
        except QConvertError:
            if images_required:
                raise
    batch = fixed_batch(loaded.source.inputs)
    return CalibrationSet(calibration, calibration, images, batch, excludes_holdout=False)


def _measure_and_save(
    inputs: CalibrationInputs,
    out: Path,
    parts: Sequence[range],
    workers: int,
    context: JobContext,
    *,
    fresh: bool = False,
) -> tuple[Calibration, bool]:
    """Run the missing images and save the result; return it, and whether it was complete before."""
    finished, part_names = Calibration(inputs.origin), f".{out.name}.part*"
    earlier = sorted(out.parent.glob(part_names))
    for file in () if fresh else (out, *earlier):
        try:
            part = load_calibration(file)
        except QConvertError:  # missing, of another version, or no calibration: measure again
            continue
        is_new = not np.isin(part.image_indices, finished.image_indices).any()
        if part.origin == inputs.origin and is_new:
            finished = merge_calibrations(finished, part)
    # All finished images go into one part file before others are written.
    part_file = out.with_name(f".{out.name}.part")
    if finished.image_indices.size:
        save_calibration(finished, part_file)
        earlier = [file for file in earlier if file != part_file]
    for file in earlier:
        file.unlink(missing_ok=True)

    missing = [run for part in parts for run in finished.missing_images(part)]
    total = finished.image_indices.size + sum(map(len, missing))

    def report(done: int) -> None:
        context.progress(Progress("calibrate", "images", done=done, total=total))

    share = ImageShare(inputs.images, missing, finished, part_file, _threads(workers))
    calibration = finished
    if missing and workers == 1:
        calibration = _measure_share(inputs.tapped, share, report)
    elif missing:
        for measured in _measure_in_workers(inputs.model, share, workers, report):
            calibration = merge_calibrations(calibration, measured)
    require_finite(calibration, find_masked_tensors(inputs.tapped.model.graph))
    if calibration is not finished:
        save_calibration(calibration, out)
    for file in list(out.parent.glob(part_names)):
        file.unlink(missing_ok=True)
    return calibration, calibration is finished


def _threads(workers: int) -> int:
    return max(1, (os.cpu_count() or 1) // workers)


@dataclass(frozen=True)
class ImageShare:
    """The images to run, what is known at the start, and the file in which the state is saved."""

    images: Images
    parts: Sequence[range]
    start: Calibration
    checkpoint: Path
    threads: int = 1


def _measure_share(
    tapped: TappedModel, share: ImageShare, report: Callable[[int], None]
) -> Calibration:
    """Return `share.start` and what its images add; `report` gets the number of finished images."""
    fixed = fixed_batch(onnx_io.inputs(tapped.model))
    size = 1 if tapped.observed.one_image_per_run else fixed or CALIBRATION_BATCH
    parallel = min(share.threads, MAX_PARALLEL_BATCHES)
    run = open_cpu(tapped.model, share.threads // parallel)
    without_images = {tap_name("size", tensor) for tensor in tapped.tensors}
    errors: list[NoReadableImage] = []

    def read_batches() -> Iterator[Batch]:
        # A part may have no readable image: an earlier run has skipped the same ones.
        for part in share.parts:
            try:
                yield from share.images.between(part.start, part.stop).batches(size)
            except NoReadableImage as error:
                errors.append(error)

    def run_batch(batch: Batch) -> tuple[list[int], Tensors]:
        indices, feeds = [item.position for item in batch.items], dict(batch.feeds)
        if tapped.phase:
            feeds[tapped.phase] = sample_phases(indices)
        if not fixed:
            return indices, run(feeds)
        # A short batch is padded, and the outputs of the padding are cut.
        outputs = run(pad_batch(feeds, size))
        return indices, {
            name: array if name in without_images else array[: len(indices)]
            for name, array in outputs.items()
        }

    collector, saved = Collector(share.start), time.monotonic()
    results = map_ordered(run_batch, read_batches(), parallel, limit=parallel + 1)
    with contextlib.closing(results):
        for indices, outputs in results:
            collector.add(indices, outputs)
            report(collector.image_count)
            if time.monotonic() - saved >= SAVE_SECONDS:
                save_calibration(collector.calibration(), share.checkpoint)
                saved = time.monotonic()
    if errors and not collector.image_count:
        raise errors[-1]
    return collector.calibration()


def _measure_in_workers(
    model: Path, share: ImageShare, workers: int, report: Callable[[int], None]
) -> list[Calibration]:
    context = multiprocessing.get_context("spawn")
    counter = context.Value("q", 0)
    start, file = Calibration(share.start.origin), share.checkpoint
    shares = [
        replace(share, parts=parts, start=start, checkpoint=file.with_name(f"{file.name}-{number}"))
        for number, parts in enumerate(split_parts(share.parts, workers))
    ]
    bootstrap = (worker_bootstrap.start_worker, (__name__, counter))
    pool = ProcessPoolExecutor(len(shares), context, *bootstrap)
    try:
        with _block_interrupts():
            futures = [pool.submit(_measure_in_child, model, part) for part in shares]
        waiting = set(futures)
        while waiting:
            finished, waiting = wait(waiting, timeout=0.5, return_when=FIRST_EXCEPTION)
            report(share.start.image_indices.size + counter.value)
            for future in finished:
                future.result()
        return [future.result() for future in futures]
    except BrokenProcessPool:
        raise QConvertError(
            "a worker process was killed, probably because memory ran out",
            hint="run it again: it resumes; fewer `--workers` need less memory",
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def split_parts(parts: Sequence[range], workers: int) -> list[list[range]]:
    """Distribute whole batches, so that no batch depends on the number of workers."""
    batches = calibration_set.split_batches(parts)
    workers = min(workers, len(batches)) or 1
    shares: list[list[range]] = [[] for _ in range(workers)]
    for number, batch in enumerate(batches):
        share = shares[number * workers // len(batches)]
        if share and share[-1].stop == batch.start:
            share[-1] = range(share[-1].start, batch.stop)
        else:
            share.append(batch)
    return shares


@contextmanager
def _block_interrupts() -> Iterator[None]:
    """Start processes that ignore Ctrl-C: every process gets it, and the parent handles it."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _measure_in_child(model: Path, share: ImageShare) -> Calibration:
    before, counter = 0, worker_bootstrap.shared

    def report(done: int) -> None:
        nonlocal before
        with counter.get_lock():
            counter.value += done - before
        before = done

    tapped = add_calibration_taps(onnx_io.load(model), exact=share.start.origin.exact)
    return _measure_share(tapped, share, report)
