"""Blocks that are faster in float: their times, minimum cuts, and what whole engines confirm."""

import itertools
import math
from collections.abc import Hashable, Sequence

import numpy as np
import pytest

from qconvert.backends.ort_profile import OperatorTime
from qconvert.optimize.block_times import CONVERSION_MS, BlockCosts, Border, measure_costs
from qconvert.optimize.blocks import Block, find_blocks
from qconvert.optimize.faster_blocks import (
    BlockSet,
    SetTimer,
    SetTimes,
    cheapest_set,
    find_faster_set,
    names_of,
    propose_sets,
)
from qconvert.optimize.minimum_cut import minimum_cut
from tests.models import mixed
from tests.quantize.quantized_models import planned

BLOCKS = tuple(Block(name, (name,), 0.25) for name in "abcd")


def chain(int8: Sequence[float], floats: Sequence[float], conversion: float) -> BlockCosts:
    """Return the costs of blocks in a row, between an input and an output in float."""
    ends: list[str | None] = [None, *"abcd", None]
    borders = tuple(
        Border(before, frozenset({after}), conversion, conversion)
        for before, after in itertools.pairwise(ends)
    )
    return BlockCosts(
        dict(zip("abcd", int8, strict=True)), dict(zip("abcd", floats, strict=True)), borders
    )


def cost_of(costs: BlockCosts, in_float: set[str]) -> float:
    total = sum(
        costs.float_ms[name] if name in in_float else costs.int8_ms[name] for name in costs.int8_ms
    )
    for border in costs.borders:
        reads_float = {reader is None or reader in in_float for reader in border.consumers}
        if border.producer is None or border.producer in in_float:
            total += border.quantize_ms * (False in reads_float)
        else:
            total += border.dequantize_ms * (True in reads_float)
    return total


@pytest.mark.parametrize("seed", range(30))
def test_cut_is_the_cheapest_of_all_assignments(seed: int) -> None:
    draw = np.random.default_rng(seed)
    int8, floats = (dict(zip("abcd", draw.uniform(0, 1, 4), strict=True)) for _ in range(2))
    names: list[str | None] = [None, *"abcd"]
    borders = []
    for number in range(1, 5):
        readers = draw.choice(5, size=draw.integers(1, 4), replace=False)
        both = draw.uniform(0, 0.5, 2)
        members = frozenset(names[reader] for reader in readers)
        borders.append(Border(names[number - 1], members, float(both[0]), float(both[1])))
    costs = BlockCosts(int8, floats, tuple(borders))
    subsets = [set(row) for size in range(5) for row in itertools.combinations("abcd", size)]
    least = min(cost_of(costs, subset) for subset in subsets)
    assert cost_of(costs, cheapest_set(costs)) == pytest.approx(least)


def test_minimum_cut_of_a_known_graph() -> None:
    edges: dict[tuple[Hashable, Hashable], float] = {
        ("s", "a"): 3, ("s", "b"): 2, ("a", "b"): math.inf, ("a", "t"): 1, ("b", "t"): 2,
    }  # fmt: skip
    assert minimum_cut(edges, "s", "t") == {"s", "a", "b"}
    assert minimum_cut({**edges, ("b", "t"): 9.0}, "s", "t") == {"s"}


def test_single_fast_block_stays_in_int8_if_its_conversions_cost_more() -> None:
    assert cheapest_set(chain([2, 2, 1, 1], [1, 1, 2, 2], conversion=0.1)) == {"a", "b"}
    assert cheapest_set(chain([1, 2, 1, 1], [2, 1, 2, 2], conversion=0.4)) == {"b"}
    assert cheapest_set(chain([1, 2, 1, 1], [2, 1, 2, 2], conversion=0.6)) == set()


def test_neither_pure_engine_is_proposed() -> None:
    assert propose_sets(BLOCKS, chain([1, 1, 1, 1], [2, 2, 2, 2], 0.1)) == []
    assert propose_sets(BLOCKS, chain([2, 2, 2, 2], [1, 1, 1, 1], 0.1)) == []
    doubtful = propose_sets(BLOCKS, chain([2, 1.2, 1, 1], [1, 1, 2, 2], 0.1))
    assert [names_of(row) for row in doubtful] == [("a", "b"), ("a",)]


FRONT_IN_FLOAT = chain([2, 2, 1, 1], [1, 1, 2, 2], conversion=0.1)


def timer_of(mix: Sequence[float], again: Sequence[float] | None = None) -> SetTimer:
    """Return a timer of INT8 at 6 ms and of float at 5 ms, with these samples of the mix."""
    calls = iter([mix, again or mix])

    def timer(sets: Sequence[BlockSet]) -> SetTimes:
        samples = next(calls)
        times: dict[tuple[str, ...] | None, Sequence[float]] = {None: [5.0] * len(samples)}
        for blocks in sets:
            times[names_of(blocks)] = samples if blocks else [6.0] * len(samples)
        return times

    return timer


def test_set_that_whole_engines_confirm_is_kept() -> None:
    faster, times = find_faster_set(BLOCKS, FRONT_IN_FLOAT, timer_of([4.0] * 20))
    assert names_of(faster) == ("a", "b")
    assert set(times) == {None, (), ("a", "b")}


NOISY = [3.0, 7.0] * 10


@pytest.mark.parametrize("samples", [[5.5] * 20, [4.95] * 20, NOISY, [*[4.5] * 12, *[5.5] * 8]])
def test_set_within_the_noise_or_slower_than_float_is_not_kept(samples: list[float]) -> None:
    assert find_faster_set(BLOCKS, FRONT_IN_FLOAT, timer_of(samples)) == ((), {})


def test_set_that_was_faster_only_once_is_not_kept() -> None:
    timer = timer_of([3.0] * 20, again=[5.5] * 20)
    assert find_faster_set(BLOCKS, FRONT_IN_FLOAT, timer) == ((), {})


def operators(*times: tuple[str, str, float]) -> list[OperatorTime]:
    return [OperatorTime(name, op, ms) for name, op, ms in times]


INT8 = operators(
    ("image_quantized", "QuantizeLinear", 1.0),
    ("Transpose", "Transpose", 0.5),
    ("stem_token_1", "QLinearConv", 4.0),
    ("wide_token_4", "QLinearConv", 3.0),
    ("narrow_token_7", "QLinearConv", 1.0),
    ("sum", "QLinearAdd", 0.25),
    ("Transpose_token_9", "Transpose", 0.5),
    ("sum_rounded", "DequantizeLinear", 0.5),
    ("Sigmoid_23", "Sigmoid", 0.125),
    ("last_token_11", "QLinearConv", 1.0),
    ("scores", "QGemm", 2.0),
)
FLOATS = operators(
    ("a_nchwc", "Conv", 2.0),
    ("b_nchwc", "Conv", 1.0),
    ("narrow_nchwc", "Conv", 2.0),
    ("ReorderOutput", "ReorderOutput", 0.25),
    ("c_nchwc", "Conv", 3.0),
)
# Its name says nothing, but what it computes does.
FLOATS.append(OperatorTime("fused Gemm_3", "FusedGemm", 4.0, ("scores",)))


def costs_of(int8: Sequence[OperatorTime], floats: Sequence[OperatorTime]) -> BlockCosts:
    model = mixed()
    ratio = sum(time.ms for time in int8) / sum(time.ms for time in floats)
    return measure_costs(model, find_blocks(model, planned(model, "cpu")), int8, floats, ratio)


def test_times_of_fused_operators_go_to_their_blocks() -> None:
    costs = costs_of(INT8, FLOATS)
    zero = dict.fromkeys(("stem", "wide", "narrow", "side", "last", "scores"), 0.0)
    assert costs.int8_ms == pytest.approx(
        {**zero, "stem": 4, "wide": 3, "narrow": 1.375, "last": 1, "scores": 2}
    )
    assert costs.float_ms == pytest.approx(
        {**zero, "stem": 2, "wide": 1, "narrow": 2.25, "last": 3, "scores": 4}
    )


def test_conversions_have_the_measured_time_or_one_by_size() -> None:
    borders = {
        (border.producer, border.consumers): border for border in costs_of(INT8, FLOATS).borders
    }
    image = borders[(None, frozenset({"stem"}))]
    assert image.quantize_ms == pytest.approx(1.5)
    assert 0 < image.dequantize_ms < 1.5
    first = borders[("stem", frozenset({"wide", "narrow"}))]
    # Both measured conversions start in 1 ms, and convert 3 x 16 x 16 and 16 x 8 x 8 values.
    assert first.quantize_ms == pytest.approx(1 + 0.5 * 1024 / (768 + 1024))
    no_times = costs_of(operators(("stem", "QLinearConv", 1.0)), FLOATS)
    assert all(border.quantize_ms >= CONVERSION_MS for border in no_times.borders)


def test_ratio_of_whole_engines_corrects_the_profile() -> None:
    model = mixed()
    blocks = find_blocks(model, planned(model, "cpu"))
    costs = measure_costs(model, blocks, INT8, FLOATS, int8_to_float=1.0)
    factor = sum(time.ms for time in FLOATS) / sum(time.ms for time in INT8)
    assert costs.int8_ms["stem"] == pytest.approx(4 * factor)
    assert costs.float_ms["stem"] == 2
    unknown = measure_costs(model, blocks, [], FLOATS, int8_to_float=1.0)
    assert set(unknown.int8_ms.values()) == {0.0}
