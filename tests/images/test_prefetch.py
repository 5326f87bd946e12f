import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qconvert.images.image_files import PixelBudget, map_ordered


def threads() -> list[str]:
    return [
        thread.name for thread in threading.enumerate() if thread.name.startswith("qconvert-images")
    ]


@settings(deadline=None)
@given(count=st.integers(0, 40), workers=st.integers(1, 8), limit=st.integers(1, 20))
def test_results_keep_the_order_of_the_items(count: int, workers: int, limit: int) -> None:
    assert list(map_ordered(lambda number: number * 10, range(count), workers, limit)) == [
        number * 10 for number in range(count)
    ]


def test_slow_item_does_not_let_later_results_pass() -> None:
    later_done = threading.Event()

    def compute(number: int) -> int:
        if number == 0:
            assert later_done.wait(30)
        if number == 3:
            later_done.set()
        return number

    assert list(map_ordered(compute, range(8), workers=4, limit=8)) == list(range(8))


@pytest.mark.parametrize("limit", [1, 3, 7])
def test_no_more_items_are_taken_than_the_limit_allows(limit: int) -> None:
    started = 0

    def items() -> Iterator[int]:
        nonlocal started
        for number in range(30):
            started += 1
            yield number

    for taken, _ in enumerate(map_ordered(lambda number: number, items(), 4, limit), start=1):
        # One more item was taken, which waits for a place.
        assert started - taken <= limit


def test_closing_early_leaves_no_thread_and_starts_no_call() -> None:
    calls: list[int] = []
    results = map_ordered(calls.append, range(1000), workers=4, limit=8)
    next(results)
    results.close()
    assert threads() == []
    assert len(calls) <= 9


def test_exception_in_the_loop_leaves_no_thread() -> None:
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012
        for _ in map_ordered(lambda number: number, range(1000), workers=4, limit=8):
            raise KeyboardInterrupt
    assert threads() == []


def test_error_in_the_function_is_raised_at_its_place_and_leaves_no_thread() -> None:
    def compute(number: int) -> int:
        if number == 5:
            raise ValueError("five")
        return number

    results = []
    with pytest.raises(ValueError, match="five"):  # noqa: PT012
        for number in map_ordered(compute, range(100), workers=4, limit=8):
            results.append(number)
    assert results == [0, 1, 2, 3, 4]
    assert threads() == []


@pytest.mark.parametrize(("pixels", "most"), [(10, 100), (60, 60), (500, 500)])
def test_pixel_budget_limits_threads_and_lets_a_single_larger_image_through(
    pixels: int, most: int
) -> None:
    budget, lock = PixelBudget(100), threading.Lock()
    reserved, totals = 0, list[int]()

    def read(_: int) -> None:
        nonlocal reserved
        with budget.reserve(pixels):
            with lock:
                reserved += pixels
                totals.append(reserved)
            with lock:
                reserved -= pixels

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(read, range(200)))
    assert len(totals) == 200
    assert max(totals) <= most


def test_pixel_budget_is_released_when_reading_fails() -> None:
    budget = PixelBudget(100)
    with pytest.raises(ValueError, match="broken"), budget.reserve(100):
        raise ValueError("broken")
    with budget.reserve(100):
        pass
