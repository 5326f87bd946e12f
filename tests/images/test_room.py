"""However many threads read pictures, no more pixels are decoded at a time than there is room."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from qconvert.images.prefetch import PixelBudget


@pytest.mark.parametrize(("pixels", "most"), [(10, 100), (60, 60), (500, 500)])
def test_threads_wait_for_room_and_a_picture_larger_than_it_has_all_of_it(
    pixels: int, most: int
) -> None:
    room, lock = PixelBudget(100), threading.Lock()
    inside, seen = 0, list[int]()

    def read(_: int) -> None:
        nonlocal inside
        with room.reserve(pixels):
            with lock:
                inside += pixels
                seen.append(inside)
            with lock:
                inside -= pixels

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(read, range(200)))
    assert len(seen) == 200
    assert max(seen) <= most


def test_room_is_given_back_when_reading_fails() -> None:
    room = PixelBudget(100)
    with pytest.raises(ValueError, match="broken"), room.reserve(100):
        raise ValueError("broken")
    with room.reserve(100):
        pass
