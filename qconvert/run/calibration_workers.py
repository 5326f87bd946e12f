"""Run a tapped model over images, in this process or split over worker processes.

The parts of the workers add up to the same bits as a calibration in one process.
"""

import contextlib
import itertools
import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from qconvert.backends.ort import open_cpu
from qconvert.calibrate import calibration_file
from qconvert.calibrate.calibration import Calibration
from qconvert.calibrate.collect import Collector, sample_phases
from qconvert.core import onnx_io
from qconvert.core.errors import QConvertError
from qconvert.core.tensors import Tensors, fixed_batch, pad_batch
from qconvert.graph.taps import TappedModel, add_calibration_taps
from qconvert.images.batches import Batch, Images
from qconvert.images.image_files import NoReadableImage, map_ordered
from qconvert.optimize.calibration_set import CALIBRATION_BATCH, split_batches
from qconvert.run import worker_bootstrap

# One thread per worker avoids waiting within operators; more workers would need more memory.
MAX_PARALLEL_BATCHES = 4
SAVE_SECONDS = 10.0


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
    """Return `share.start` and what its images add; `report` gets the number of finished images.

    A killed process loses only what came after the last save.
    """
    fixed = fixed_batch(onnx_io.inputs(tapped.model))
    size = 1 if tapped.observed.one_image_per_run else fixed or CALIBRATION_BATCH
    parallel = min(share.threads, MAX_PARALLEL_BATCHES)
    run = open_cpu(tapped.model, share.threads // parallel)
    without_images = {tap.size for tap in tapped.taps}
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

    collector, saved = Collector(tapped.taps, share.start), time.monotonic()
    results = map_ordered(run_batch, read_batches(), parallel, limit=parallel + 1)
    with contextlib.closing(results):
        for indices, outputs in results:
            collector.add(indices, outputs)
            report(collector.image_count)
            if time.monotonic() - saved >= SAVE_SECONDS:
                calibration_file.save(collector.calibration(), share.checkpoint)
                saved = time.monotonic()
    if errors and not collector.image_count:
        raise errors[-1]
    return collector.calibration()


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
            waiting = set(futures)
            while waiting:
                finished, waiting = wait(waiting, timeout=0.5, return_when=FIRST_EXCEPTION)
                report(share.start.image_indices.size + counter.value)
                for future in finished:
                    future.result()
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
    """Distribute whole batches, so that no batch depends on the number of workers."""
    batches = split_batches(parts)
    workers = min(workers, len(batches)) or 1
    bounds = [len(batches) * number // workers for number in range(workers + 1)]
    shares: list[list[range]] = []
    for start, stop in itertools.pairwise(bounds):
        joined: list[range] = []
        for batch in batches[start:stop]:
            if joined and joined[-1].stop == batch.start:
                joined[-1] = range(joined[-1].start, batch.stop)
            else:
                joined.append(batch)
        shares.append(joined)
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
    return measure_share(tapped, share, report)
