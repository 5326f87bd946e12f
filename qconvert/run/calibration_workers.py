"""Run a tapped model over images, in this process or split over worker processes.

The parts of the workers add up to the same bits as a calibration in one process.
"""

import contextlib
import itertools
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from qconvert.backends.ort import open_cpu
from qconvert.calibrate import calibration_file
from qconvert.calibrate.calibration import Calibration
from qconvert.calibrate.collect import Collector, IndexedBatch, collect, make_tapped_runner
from qconvert.core import onnx_io
from qconvert.core.errors import QConvertError
from qconvert.core.tensors import RunModel, Tensors, batch_size, fixed_batch, pad_batch
from qconvert.graph.taps import TappedModel, add_calibration_taps
from qconvert.images.batches import Images
from qconvert.images.image_files import NoReadableImage, map_ordered
from qconvert.optimize.calibration_set import CALIBRATION_BATCH, split_batches
from qconvert.run import worker_bootstrap

# One core a batch: nothing waits for the slowest part of an operator. More would take memory.
MAX_PARALLEL_BATCHES = 4
POLL_SECONDS = 0.5


@dataclass(frozen=True)
class ImageShare:
    """The images to run, in parts of their list, and the calibration known at the start.

    The state is saved to `checkpoint` every few seconds.
    """

    images: Images
    parts: Sequence[range]
    start: Calibration
    checkpoint: Path
    threads: int = 1


def measure_share(
    tapped: TappedModel, share: ImageShare, report: Callable[[int], None]
) -> Calibration:
    """Return `share.start` and what its images add; `report` gets the number of finished images."""
    fixed = fixed_batch(onnx_io.inputs(tapped.model))
    size = 1 if tapped.observed.one_image_per_run else fixed or CALIBRATION_BATCH
    parallel = min(share.threads, MAX_PARALLEL_BATCHES)
    run = open_cpu(tapped.model, share.threads // parallel)
    if fixed:
        run = fill_batches(run, size, tapped)
    save = calibration_file.make_periodic_saver(share.checkpoint)

    def after_batch(collector: Collector) -> None:
        report(collector.image_count)
        save(collector)

    errors: list[NoReadableImage] = []
    batches = _numbered_batches(share, size, errors)
    outputs = map_ordered(make_tapped_runner(run, tapped), batches, parallel, limit=parallel + 1)
    with contextlib.closing(outputs):
        calibration = collect(outputs, tapped, share.start, after_batch)
    if errors and not calibration.image_indices.size:
        raise errors[-1]
    return calibration


def fill_batches(run: RunModel, size: int, tapped: TappedModel) -> RunModel:
    """Return `run` for a model of fixed batch: a short batch is padded, its outputs are cut."""
    whole = {tap.size for tap in tapped.taps}

    def run_filled(feeds: Tensors) -> Tensors:
        count = batch_size(feeds)
        outputs = run(pad_batch(feeds, size))
        return {name: array if name in whole else array[:count] for name, array in outputs.items()}

    return run_filled


def measure_in_workers(
    model: Path, share: ImageShare, workers: int, report: Callable[[int], None]
) -> list[Calibration]:
    """Return what each worker measured; `report` gets the number of all finished images."""
    context = multiprocessing.get_context("spawn")
    counter = context.Value("q", 0)
    shares = [
        replace(
            share,
            parts=parts,
            start=Calibration(share.start.origin),
            checkpoint=share.checkpoint.with_name(f"{share.checkpoint.name}-{number}"),
        )
        for number, parts in enumerate(split_parts(share.parts, workers))
        if parts
    ]
    arguments = (__name__, counter)
    with ProcessPoolExecutor(
        len(shares), context, worker_bootstrap.start_worker, arguments
    ) as pool:
        futures: list[Future[Calibration]] = []
        try:
            with _block_interrupts():
                futures += [pool.submit(_measure_in_child, model, part) for part in shares]
            _wait_for_workers(
                futures, lambda: report(share.start.image_indices.size + counter.value)
            )
        except BrokenProcessPool:
            raise QConvertError(
                "a worker process was killed, probably because memory ran out",
                hint="run it again: it resumes; fewer `--workers` need less memory",
            ) from None
        finally:
            for future in futures:
                future.cancel()
    return [future.result() for future in futures]


def split_parts(parts: Sequence[range], workers: int) -> list[list[range]]:
    """Deal out whole batches, so that no batch depends on the number of workers."""
    batches = split_batches(parts)
    workers = min(workers, len(batches)) or 1
    bounds = [len(batches) * number // workers for number in range(workers + 1)]
    return [_join_adjacent(batches[start:stop]) for start, stop in itertools.pairwise(bounds)]


def _numbered_batches(
    share: ImageShare, size: int, errors: list[NoReadableImage]
) -> Iterator[IndexedBatch]:
    """Yield the batches of all parts; a part without a readable image only adds to `errors`.

    An earlier run may have skipped the same images.
    """
    for part in share.parts:
        try:
            for batch in share.images.between(part.start, part.stop).batches(size):
                yield [item.position for item in batch.items], batch.feeds
        except NoReadableImage as error:
            errors.append(error)


def _join_adjacent(parts: Sequence[range]) -> list[range]:
    joined: list[range] = []
    for part in parts:
        if joined and joined[-1].stop == part.start:
            joined[-1] = range(joined[-1].start, part.stop)
        else:
            joined.append(part)
    return joined


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


def _wait_for_workers(futures: Sequence["Future[Calibration]"], report: Callable[[], None]) -> None:
    waiting = set(futures)
    while waiting:
        finished, waiting = wait(waiting, timeout=POLL_SECONDS, return_when=FIRST_EXCEPTION)
        report()
        for future in finished:
            future.result()


def _measure_in_child(model: Path, share: ImageShare) -> Calibration:
    before, counter = 0, worker_bootstrap.shared

    def report(done: int) -> None:
        nonlocal before
        with counter.get_lock():
            counter.value += done - before
        before = done

    tapped = add_calibration_taps(onnx_io.load(model), exact=share.start.origin.exact)
    return measure_share(tapped, share, report)
