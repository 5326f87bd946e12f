"""Room for decoded pictures: memory follows their size, and not the number of threads."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Room:
    """Has place for so many pixels at a time, and for a single picture of any size."""

    def __init__(self, pixels: int) -> None:
        self._pixels = pixels
        self._taken = 0
        self._changed = threading.Condition()

    @contextmanager
    def taken(self, pixels: int) -> Iterator[None]:
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
