import threading
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qconvert.images.prefetch import map_ordered


def threads() -> list[str]:
    return [each.name for each in threading.enumerate() if each.name.startswith("qconvert-images")]


@settings(deadline=None)
@given(count=st.integers(0, 40), workers=st.integers(1, 8), limit=st.integers(1, 20))
def test_results_come_in_the_order_given(count: int, workers: int, limit: int) -> None:
    assert list(map_ordered(lambda number: number * 10, range(count), workers, limit)) == [
        number * 10 for number in range(count)
    ]


def test_a_slow_item_does_not_let_later_ones_pass() -> None:
    later_done = threading.Event()

    def make(number: int) -> int:
        if number == 0:
            assert later_done.wait(30)
        if number == 3:
            later_done.set()
        return number

    assert list(map_ordered(make, range(8), workers=4, limit=8)) == list(range(8))


@pytest.mark.parametrize("limit", [1, 3, 7])
def test_no_more_is_begun_than_the_limit_allows(limit: int) -> None:
    begun = 0

    def items() -> Iterator[int]:
        nonlocal begun
        for number in range(30):
            begun += 1
            yield number

    for taken, _ in enumerate(map_ordered(lambda number: number, items(), 4, limit), start=1):
        # One more was looked at to see that there is one; it waits for room.
        assert begun - taken <= limit


def test_leaving_early_leaves_no_thread_and_begins_nothing_more() -> None:
    made: list[int] = []
    results = map_ordered(made.append, range(1000), workers=4, limit=8)
    next(results)
    results.close()
    assert threads() == []
    assert len(made) <= 9


def test_an_exception_in_the_loop_leaves_no_thread() -> None:
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012
        for _ in map_ordered(lambda number: number, range(1000), workers=4, limit=8):
            raise KeyboardInterrupt
    assert threads() == []


def test_an_error_while_making_comes_out_at_its_place_and_leaves_no_thread() -> None:
    def make(number: int) -> int:
        if number == 5:
            raise ValueError("five")
        return number

    seen = []
    with pytest.raises(ValueError, match="five"):  # noqa: PT012
        for number in map_ordered(make, range(100), workers=4, limit=8):
            seen.append(number)
    assert seen == [0, 1, 2, 3, 4]
    assert threads() == []
