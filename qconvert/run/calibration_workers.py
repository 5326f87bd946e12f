"""One process's share of a calibration: the tapped model over some of the images."""

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
from qconvert.core.tensors import RunModel, Tensors, fixed_batch, pad_batch
from qconvert.graph.taps import TappedModel, add_calibration_taps
from qconvert.images.batches import Images
from qconvert.images.image_files import NoReadableImage
from qconvert.images.prefetch import map_ordered
from qconvert.optimize.calibration_set import CALIBRATION_BATCH
from qconvert.run import worker_bootstrap

# One core a batch: nothing waits for the slowest part of an operator. More would take memory.
MAX_PARALLEL_BATCHES = 4


@dataclass(frozen=True)
class ImageShare:
    """Parts of the images to run, what is known already, and the file that keeps it."""

    images: Images
    parts: Sequence[range]
    start: Calibration
    checkpoint: Path
    threads: int = 1


def measure_share(
    tapped: TappedModel, share: ImageShare, seen: Callable[[int], None]
) -> Calibration:
    """Return `share.start` and all that its images add; `seen` hears how many are done."""
    fixed = fixed_batch(onnx_io.inputs(tapped.model))
    size = 1 if tapped.observed.one_image_per_run else fixed or CALIBRATION_BATCH
    at_once = min(share.threads, MAX_PARALLEL_BATCHES)
    run = open_cpu(tapped.model, share.threads // at_once)
    if fixed:
        run = fill_batches(run, size, tapped)
    save = calibration_file.make_periodic_saver(share.checkpoint)

    def after(collector: Collector) -> None:
        seen(collector.image_count)
        save(collector)

    unread: list[NoReadableImage] = []
    batches = _numbered_batches(share, size, unread)
    answers = map_ordered(make_tapped_runner(run, tapped), batches, at_once, limit=at_once + 1)
    with contextlib.closing(answers):
        found = collect(answers, tapped, share.start, after)
    if unread and not found.image_indices.size:
        raise unread[-1]
    return found


def fill_batches(run: RunModel, size: int, tapped: TappedModel) -> RunModel:
    """Return `run` for a model of fixed batch: a short batch is filled up, the filling left out."""
    whole = {each.size for each in tapped.taps}

    def fill(feeds: Tensors) -> Tensors:
        count = len(next(iter(feeds.values())))
        answers = run(pad_batch(feeds, size))
        return {name: each if name in whole else each[:count] for name, each in answers.items()}

    return fill


def _numbered_batches(
    share: ImageShare, size: int, unread: list[NoReadableImage]
) -> Iterator[IndexedBatch]:
    """Yield the batches of all parts; a part without a readable picture is kept in `unread`.

    Those may be files that could not be read the last time either; that is no news.
    """
    for part in share.parts:
        try:
            for batch in share.images.between(part.start, part.stop).batches(size):
                yield [item.position for item in batch.items], batch.feeds
        except NoReadableImage as error:
            unread.append(error)


POLL_SECONDS = 0.5


def measure_in_workers(
    model: Path, share: ImageShare, workers: int, seen: Callable[[int], None]
) -> list[Calibration]:
    """Return the parts that each worker measured; `seen` hears how many images are done in all."""
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
    given = (__name__, counter)
    with ProcessPoolExecutor(len(shares), context, worker_bootstrap.start_worker, given) as pool:
        futures: list[Future[Calibration]] = []
        try:
            with _block_interrupts():
                futures += [pool.submit(_measure_in_child, model, each) for each in shares]
            _wait_for_workers(futures, lambda: seen(share.start.image_indices.size + counter.value))
        except BrokenProcessPool:
            raise QConvertError(
                "a worker process was killed, perhaps for want of memory",
                hint="run it again, it goes on from there; fewer `--workers` need less",
            ) from None
        finally:
            for future in futures:
                future.cancel()
    return [future.result() for future in futures]


def split_parts(parts: Sequence[range], workers: int) -> list[list[range]]:
    """Deal out whole batches, so that no batch changes with the number of workers."""
    pieces = [
        range(start, min(start + CALIBRATION_BATCH, part.stop))
        for part in parts
        for start in range(part.start, part.stop, CALIBRATION_BATCH)
    ]
    workers = min(workers, len(pieces)) or 1
    bounds = [len(pieces) * number // workers for number in range(workers + 1)]
    return [_join_adjacent(pieces[a:b]) for a, b in itertools.pairwise(bounds)]


def _join_adjacent(pieces: Sequence[range]) -> list[range]:
    joined: list[range] = []
    for piece in pieces:
        if joined and joined[-1].stop == piece.start:
            joined[-1] = range(joined[-1].start, piece.stop)
        else:
            joined.append(piece)
    return joined


@contextmanager
def _block_interrupts() -> Iterator[None]:
    """Start processes that never hear of Ctrl-C: it reaches all, and the parent answers to it."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _wait_for_workers(futures: Sequence["Future[Calibration]"], look: Callable[[], None]) -> None:
    waiting = set(futures)
    while waiting:
        ended, waiting = wait(waiting, timeout=POLL_SECONDS, return_when=FIRST_EXCEPTION)
        look()
        for future in ended:
            future.result()


def _measure_in_child(model: Path, share: ImageShare) -> Calibration:
    before, counter = 0, worker_bootstrap.shared

    def seen(done: int) -> None:
        nonlocal before
        with counter.get_lock():
            counter.value += done - before
        before = done

    tapped = add_calibration_taps(onnx_io.load(model), exact=share.start.origin.exact)
    return measure_share(tapped, share, seen)
