"""The set of float blocks grows until it keeps the budget, and shrinks as far as it can."""

from collections.abc import Callable, Sequence

import pytest

from qconvert.measure.mixed_result import BlockGain
from qconvert.optimize.blocks import Block
from qconvert.optimize.mixed_precision import find_smallest_set, rank_blocks, set_sizes

BLOCKS = tuple(Block(f"b{number}", (f"n{number}",), 0.01 * (number + 1)) for number in range(8))


def needing(*needed: str) -> Callable[[Sequence[Block]], bool]:
    return lambda blocks: set(needed) <= {block.name for block in blocks}


def smallest(keeps_budget: Callable[[Sequence[Block]], bool]) -> set[str]:
    return {block.name for block in find_smallest_set(BLOCKS, keeps_budget)}


def test_blocks_are_ranked_by_gain_for_cost() -> None:
    gains = [
        BlockGain(block.name, 1, block.share, gain, 0.0)
        for block, gain in zip(BLOCKS[:4], (0.1, 0.5, 0.2, -0.1), strict=True)
    ]
    assert [block.name for block in rank_blocks(BLOCKS[:4], gains)] == ["b1", "b0", "b2", "b3"]


@pytest.mark.parametrize("needed", [("b0",), ("b2", "b7"), ("b1", "b3", "b6"), ("b6",)])
def test_set_has_the_needed_blocks_and_no_others(needed: tuple[str, ...]) -> None:
    assert smallest(needing(*needed)) == set(needed)


def test_set_is_empty_if_none_keeps_the_budget() -> None:
    assert smallest(lambda blocks: False) == set()


def test_set_has_all_blocks_if_all_are_needed() -> None:
    names = {block.name for block in BLOCKS}
    assert smallest(needing(*names)) == names


def test_few_sets_are_tried() -> None:
    tried: set[frozenset[str]] = set()

    def keeps_budget(blocks: Sequence[Block]) -> bool:
        tried.add(frozenset(block.name for block in blocks))
        return needing("b6")(blocks)

    smallest(keeps_budget)
    assert len(tried) < 2 * len(BLOCKS)


def test_set_sizes_grow_by_halves_and_end_with_all() -> None:
    assert set_sizes(64) == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64]
    assert [set_sizes(count) for count in (2, 1, 0)] == [[1, 2], [1], []]
