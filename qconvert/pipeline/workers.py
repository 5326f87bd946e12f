"""A calibration split over processes; their parts add up to the same bits as one process makes."""

import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import Any

from qconvert import onnx_io
from qconvert.calibrate.calibration import Calibration
from qconvert.errors import QConvertError
from qconvert.graph.taps import tap
from qconvert.pipeline.measuring import BATCH, Share, measure

LOOK_SECONDS = 0.5

_done: Any = None


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
    with ProcessPoolExecutor(workers, context, _begin, (counter,)) as pool:
        futures = [pool.submit(_measure, model, each) for each in shares]
        try:
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


def _watch(futures: Sequence["Future[Calibration]"], look: Callable[[], None]) -> None:
    waiting = set(futures)
    while waiting:
        ended, waiting = wait(waiting, timeout=LOOK_SECONDS, return_when=FIRST_EXCEPTION)
        look()
        for future in ended:
            future.result()


def _begin(counter: Any) -> None:
    global _done  # noqa: PLW0603 - what a process is given at its start has no other place
    _done = counter
    # Ctrl-C reaches the whole group, and the parent alone answers to it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed parent tells nobody, and its workers would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _measure(model: Path, share: Share) -> Calibration:
    before = 0

    def seen(done: int) -> None:
        nonlocal before
        with _done.get_lock():
            _done.value += done - before
        before = done

    tapped = tap(onnx_io.load(model), exact=share.start.origin.exact)
    return measure(tapped, share, seen)
