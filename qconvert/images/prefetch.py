"""Work done ahead of its use, in threads: in order, only as far ahead as agreed, stoppable."""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

WorkItem = TypeVar("WorkItem")
WorkResult = TypeVar("WorkResult")


def map_ordered(
    make: Callable[[WorkItem], WorkResult], given: Iterable[WorkItem], workers: int, limit: int
) -> Generator[WorkResult]:
    """Yield `make(each)` in the order given, with at most `limit` of them begun and not yet taken.

    Whatever ends it (the last item, an error in `make`, or being closed early), no thread is left:
    what is running is waited for, what is waiting is dropped.
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix="qconvert-images")
    begun: deque[Future[WorkResult]] = deque()
    try:
        for each in given:
            if len(begun) >= limit:
                yield begun.popleft().result()
            begun.append(pool.submit(make, each))
        while begun:
            yield begun.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class PixelBudget:
    """Has place for so many pixels at a time, and for a single picture of any size."""

    def __init__(self, pixels: int) -> None:
        self._pixels = pixels
        self._taken = 0
        self._changed = threading.Condition()

    @contextmanager
    def reserve(self, pixels: int) -> Iterator[None]:
        """Wait until there is place for so many pixels, and keep it."""
        with self._changed:
            self._changed.wait_for(lambda: not self._taken or self._fits(pixels))
            self._taken += pixels
        try:
            yield
        finally:
            with self._changed:
                self._taken -= pixels
                self._changed.notify_all()

    def _fits(self, pixels: int) -> bool:
        return self._taken + pixels <= self._pixels
