"""A calibration split over processes; their parts add up to the same bits as one process makes."""

import itertools
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from qconvert import onnx_io
from qconvert.calibrate.calibration import Calibration
from qconvert.errors import QConvertError
from qconvert.graph.taps import tap
from qconvert.pipeline import worker_start
from qconvert.pipeline.measuring import BATCH, Share, measure

LOOK_SECONDS = 0.5


def measure_in_workers(
    model: Path, share: Share, workers: int, seen: Callable[[int], None]
) -> list[Calibration]:
    """Return the parts that each worker measured; `seen` hears how many images are done in all."""
    context = multiprocessing.get_context("spawn")
    counter = context.Value("q", 0)
    shares = [
        replace(
            share,
            parts=parts,
            start=Calibration(share.start.origin),
            keep=share.keep.with_name(f"{share.keep.name}-{number}"),
        )
        for number, parts in enumerate(split(share.parts, workers))
        if parts
    ]
    given = (__name__, counter)
    with ProcessPoolExecutor(len(shares), context, worker_start.start, given) as pool:
        futures: list[Future[Calibration]] = []
        try:
            with _deaf():
                futures += [pool.submit(_measure, model, each) for each in shares]
            _watch(futures, lambda: seen(share.start.done.size + counter.value))
        except BrokenProcessPool:
            raise QConvertError(
                "a worker process was killed, perhaps for want of memory",
                hint="run it again, it goes on from there; fewer `--workers` need less",
            ) from None
        finally:
            for future in futures:
                future.cancel()
    return [future.result() for future in futures]


def split(parts: Sequence[range], workers: int) -> list[list[range]]:
    """Deal out whole batches, so that no batch changes with the number of workers."""
    pieces = [
        range(start, min(start + BATCH, part.stop))
        for part in parts
        for start in range(part.start, part.stop, BATCH)
    ]
    workers = min(workers, len(pieces)) or 1
    bounds = [len(pieces) * number // workers for number in range(workers + 1)]
    return [_joined(pieces[a:b]) for a, b in itertools.pairwise(bounds)]


def _joined(pieces: Sequence[range]) -> list[range]:
    joined: list[range] = []
    for piece in pieces:
        if joined and joined[-1].stop == piece.start:
            joined[-1] = range(joined[-1].start, piece.stop)
        else:
            joined.append(piece)
    return joined


@contextmanager
def _deaf() -> Iterator[None]:
    """Start processes that never hear of Ctrl-C: it reaches all, and the parent answers to it."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _watch(futures: Sequence["Future[Calibration]"], look: Callable[[], None]) -> None:
    waiting = set(futures)
    while waiting:
        ended, waiting = wait(waiting, timeout=LOOK_SECONDS, return_when=FIRST_EXCEPTION)
        look()
        for future in ended:
            future.result()


def _measure(model: Path, share: Share) -> Calibration:
    before, counter = 0, worker_start.shared

    def seen(done: int) -> None:
        nonlocal before
        with counter.get_lock():
            counter.value += done - before
        before = done

    tapped = tap(onnx_io.load(model), exact=share.start.origin.exact)
    return measure(tapped, share, seen)
