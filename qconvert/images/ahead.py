"""Work done ahead of its use, in threads: in order, only as far ahead as agreed, stoppable."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Given = TypeVar("Given")
Made = TypeVar("Made")


def ahead(
    make: Callable[[Given], Made], given: Iterable[Given], workers: int, limit: int
) -> Generator[Made]:
    """Yield `make(each)` in the order given, with at most `limit` of them begun and not yet taken.

    Whatever ends it (the last item, an error in `make`, or being closed early), no thread is left:
    what is running is waited for, what is waiting is dropped.
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix="qconvert-images")
    begun: deque[Future[Made]] = deque()
    try:
        for each in given:
            if len(begun) >= limit:
                yield begun.popleft().result()
            begun.append(pool.submit(make, each))
        while begun:
            yield begun.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
