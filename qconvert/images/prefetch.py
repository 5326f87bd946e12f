"""Work done ahead in threads: in order, no further ahead than agreed, within a memory budget."""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_ordered(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int, limit: int
) -> Generator[Result]:
    """Yield `function(item)` in order, with at most `limit` results started and not yet taken.

    However it ends (exhausted, by an error in `function`, or closed early), no thread is left:
    running calls finish, waiting ones are dropped.
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix="qconvert-images")
    started: deque[Future[Result]] = deque()
    try:
        for item in items:
            if len(started) >= limit:
                yield started.popleft().result()
            started.append(pool.submit(function, item))
        while started:
            yield started.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class PixelBudget:
    """Limits the pixels decoded at a time; a single image of any size is always let through."""

    def __init__(self, pixels: int) -> None:
        self._pixels = pixels
        self._reserved = 0
        self._changed = threading.Condition()

    @contextmanager
    def reserve(self, pixels: int) -> Iterator[None]:
        """Wait until that many pixels fit, and hold them."""
        with self._changed:
            self._changed.wait_for(
                lambda: not self._reserved or self._reserved + pixels <= self._pixels
            )
            self._reserved += pixels
        try:
            yield
        finally:
            with self._changed:
                self._reserved -= pixels
                self._changed.notify_all()
