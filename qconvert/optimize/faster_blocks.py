"""The blocks to keep in float because they run faster so.

A block costs one time in INT8 and another in float, and a tensor between a block in INT8 and one in
float costs a conversion. The least sum is a minimum cut of a graph whose source is float and whose
sink is INT8 (Greig, Porteous and Seheult 1989). Times of single operators only propose sets: the
profiler slows all of them down, and fusion differs at a border. Whole engines are timed to decide.
"""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence

from qconvert.measure.latency import speedup, speedup_interval
from qconvert.optimize.block_times import BlockCosts
from qconvert.optimize.blocks import Block
from qconvert.optimize.minimum_cut import minimum_cut

BlockSet = Sequence[Block]
# Milliseconds of INT8 with a set of blocks in float, by their names, and under None those of the
# float engine: all samples, taken in the same rounds.
SetTimes = Mapping[tuple[str, ...] | None, Sequence[float]]
SetTimer = Callable[[Sequence[BlockSet]], SetTimes]

# Factors of the times of conversions and of floats: both may cost more than in the engines from
# which their times are.
DOUBTS = ((1.0, 1.0), (2.0, 1.0), (1.0, 1.1), (4.0, 1.1), (1.0, 1.25))
# A set that gains less is not worth another engine.
MIN_SPEEDUP = 1.02


def find_faster_set(
    blocks: BlockSet, costs: BlockCosts, timer: SetTimer
) -> tuple[BlockSet, SetTimes]:
    """Return the blocks that make INT8 faster in float, and the times that show it; both may be empty.

    The best of several sets was lucky too: it is timed again, with INT8 and the float engine alone.
    """
    sets = propose_sets(blocks, costs)
    if not sets:
        return (), {}
    times = timer([(), *sets])
    best = max(sets, key=lambda row: _least_speedup(times, row))
    times = timer([(), best])
    rivals = [times[None], times[()]]
    is_faster = all(speedup_interval(rival, times[names_of(best)])[0] > 1 for rival in rivals)
    return (best, times) if is_faster and _least_speedup(times, best) >= MIN_SPEEDUP else ((), {})


def propose_sets(blocks: BlockSet, costs: BlockCosts) -> list[tuple[Block, ...]]:
    """Return sets of blocks that may be faster in float than INT8 and float alone."""
    sets = []
    for conversions, floats in DOUBTS:
        in_float = cheapest_set(costs, conversions, floats)
        sets.append(tuple(block for block in blocks if block.name in in_float))
    return [row for row in dict.fromkeys(sets) if 0 < len(row) < len(blocks)]


def cheapest_set(costs: BlockCosts, conversions: float = 1.0, floats: float = 1.0) -> set[str]:
    """Return the blocks in float of the cheapest assignment, with times multiplied by factors."""
    edges: dict[tuple[Hashable, Hashable], float] = {}
    side: dict[str | None, Hashable] = {name: ("block", name) for name in costs.int8_ms}
    for name, node in side.items():
        edges[("float", node)] = costs.int8_ms[str(name)]
        edges[(node, "int8")] = floats * costs.float_ms[str(name)]
    side[None] = "float"
    for number, border in enumerate(costs.borders):
        # However many blocks read a tensor, it is converted once.
        to_int8, to_float = ("to int8", number), ("to float", number)
        edges[(side[border.producer], to_int8)] = conversions * border.quantize_ms
        edges[(to_float, side[border.producer])] = conversions * border.dequantize_ms
        for reader in border.consumers:
            edges[(to_int8, side[reader])] = math.inf
            edges[(side[reader], to_float)] = math.inf
    in_float = minimum_cut(edges, "float", "int8")
    return {name for name in costs.int8_ms if side[name] in in_float}


def names_of(blocks: BlockSet) -> tuple[str, ...]:
    """Return the names under which the times of a set are."""
    return tuple(block.name for block in blocks)


def _least_speedup(times: SetTimes, blocks: BlockSet) -> float:
    return min(speedup(times[rival], times[names_of(blocks)]) for rival in (None, ()))
