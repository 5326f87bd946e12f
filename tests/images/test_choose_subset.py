from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from qconvert.images.listing import choose_subset

LABELS = st.lists(st.integers(0, 5), min_size=1, max_size=60)
COUNTS = st.integers(1, 70)
SEEDS = st.integers(0, 5)


@settings(deadline=None)
@given(LABELS, COUNTS, SEEDS)
def test_the_same_images_come_in_order_every_time(labels: list[int], count: int, seed: int) -> None:
    for known in (labels, [None] * len(labels)):
        chosen = choose_subset(known, count, seed)
        assert chosen == choose_subset(known, count, seed)
        assert len(chosen) == min(count, len(labels))
        assert list(chosen) == sorted(set(chosen))


@settings(deadline=None)
@given(LABELS, COUNTS, SEEDS)
def test_classes_get_equal_shares_as_far_as_they_have_images(
    labels: list[int], count: int, seed: int
) -> None:
    given, there = Counter(labels[at] for at in choose_subset(labels, count, seed)), Counter(labels)
    fullest = max(given.values())
    assert all(given[label] >= min(there[label], fullest - 1) for label in there)


@settings(deadline=None)
@given(st.integers(1, 200), COUNTS, SEEDS)
def test_without_labels_each_stretch_gives_one(total: int, count: int, seed: int) -> None:
    chosen = choose_subset([None] * total, count, seed)
    if count < total:
        assert all(at * total // count <= place for at, place in enumerate(chosen))
        assert all(place < (at + 1) * total // count for at, place in enumerate(chosen))


def test_another_seed_chooses_other_images() -> None:
    assert choose_subset([None] * 1000, 10, 0) != choose_subset([None] * 1000, 10, 1)
    assert choose_subset([0, 1] * 500, 10, 0) != choose_subset([0, 1] * 500, 10, 1)


def test_the_choice_is_the_same_on_any_machine() -> None:
    assert choose_subset([None] * 100, 5, 0) == (9, 37, 47, 63, 82)
    assert choose_subset([0, 1] * 50, 4, 0) == (15, 44, 46, 87)


def test_no_count_takes_all() -> None:
    assert choose_subset([None, 3, 1], None, 0) == (0, 1, 2)
