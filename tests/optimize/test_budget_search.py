"""Sets of blocks grow until the budget is kept, and shrink again as far as they can."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from qconvert.measure.mixed_result import BlockGain, PredictionLoss, SearchStep
from qconvert.optimize.blocks import Block
from qconvert.optimize.mixed_precision import (
    BlockSet,
    SetEvaluator,
    find_smallest_set,
    rank_blocks,
    set_sizes,
)

COUNT = 8
BLOCKS = tuple(Block(f"b{number}", (f"n{number}",), 0.01 * (number + 1)) for number in range(COUNT))


def loss(pp: float) -> PredictionLoss:
    return PredictionLoss(pp, 0.1, "agreement", 100, 100 - pp)


def probes(
    lost: Callable[[set[str]], float], confirmed: Callable[[set[str]], float]
) -> SetEvaluator:
    def look(blocks: BlockSet) -> SearchStep:
        names = tuple(block.name for block in blocks)
        return SearchStep(names, sum(block.share for block in blocks), 0.0, loss(lost(set(names))))

    return SetEvaluator(look, lambda blocks: loss(confirmed({block.name for block in blocks})))


def missing(*needed: str) -> Callable[[set[str]], float]:
    return lambda names: float(len(set(needed) - names))


def test_blocks_come_by_what_they_bring_for_their_cost() -> None:
    gains = [BlockGain(block.name, 1, block.share, gain, 0.0)
             for block, gain in zip(BLOCKS[:4], (0.1, 0.5, 0.2, -0.1), strict=True)]  # fmt: skip
    assert [block.name for block in rank_blocks(BLOCKS[:4], gains)] == ["b1", "b0", "b2", "b3"]


@pytest.mark.parametrize("needed", [("b0",), ("b2", "b7"), ("b1", "b3", "b6"), ("b6",)])
def test_the_set_has_what_is_needed_and_nothing_else(needed: tuple[str, ...]) -> None:
    found = find_smallest_set(BLOCKS, probes(missing(*needed), missing(*needed)), budget=0)
    assert found.chosen is not None
    assert set(found.chosen.lifted) == set(needed)
    assert found.chosen.confirmed == loss(0)


def test_what_keeps_the_budget_on_the_few_images_alone_is_not_taken() -> None:
    found = find_smallest_set(BLOCKS, probes(missing("b0"), missing("b4")), budget=0)
    assert found.chosen is not None
    assert set(found.chosen.lifted) == {"b0", "b4"}
    for step in found.steps:
        assert (step.confirmed is None) == (step.search.pp > 0)


def test_a_budget_may_be_kept_in_part() -> None:
    found = find_smallest_set(
        BLOCKS, probes(missing("b0", "b1", "b2"), missing("b0", "b1", "b2")), budget=1
    )
    assert found.chosen is not None
    assert found.chosen.lifted == ("b0", "b1")


def test_what_is_further_from_fp32_than_int8_is_not_taken_though_it_keeps_the_budget() -> None:
    kept = probes(missing("b0"), missing("b0"))

    def look(blocks: BlockSet) -> SearchStep:
        return replace(kept.evaluate(blocks), distance=2.0 if len(blocks) == 1 else 0.5)

    found = find_smallest_set(
        BLOCKS, SetEvaluator(look, kept.confirm, max_output_error=1.0), budget=0
    )
    assert found.chosen is not None
    assert found.chosen.lifted == ("b0", "b1")


def test_where_all_blocks_are_needed_there_is_no_mix() -> None:
    every = [block.name for block in BLOCKS]
    found = find_smallest_set(BLOCKS, probes(missing(*every), missing(*every)), budget=0)
    assert found.chosen is None


def test_no_set_is_tried_twice_and_few_are() -> None:
    tried: list[frozenset[str]] = []

    def lost(names: set[str]) -> float:
        tried.append(frozenset(names))
        return 0.0 if {"b6"} <= names else 1.0

    find_smallest_set(BLOCKS, probes(lost, missing("b6")), budget=0)
    assert len(tried) == len(set(tried)) < 2 * COUNT


def test_the_rungs_grow_by_halves_and_end_with_all() -> None:
    assert set_sizes(64) == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64]
    assert set_sizes(2) == [1, 2]
    assert set_sizes(1) == [1]
    assert set_sizes(0) == []
