"""Which layers go wrong: as a table in the order of the network, and the worst of them."""

import math
from collections.abc import Sequence

from qconvert.measure.layers import Layer
from qconvert.report import numerals
from qconvert.report.model import Variant
from qconvert.report.sheet import Column, Sheet, right

BLOCKS = " ▏▎▍▌▋▊▉█"
BAR = 8
FINEST = 0.001


def layers(found: Sequence[Layer], title: str = "Layers") -> Sheet:
    """Return a row a layer: what arrives, what it makes alone, and what of that is clipping.

    Beside an infinite error, whose bar is full, the others are drawn as without it.
    """
    largest = max(filter(math.isfinite, map(error, found)), default=0.0)
    rows = [
        (
            label(each),
            each.op,
            each.precision,
            _db(each.arriving_db),
            _db(each.made_db),
            bar(_part(error(each), largest)),
            "" if each.cosine is None else f"{each.cosine:.5f}",
            share(each.clipped),
            share(each.saturated),
        )
        for each in found
    ]
    columns = (
        Column("layer"),
        Column("operator", rank=4),
        Column("in", rank=2),
        *right("arrives dB", "made dB"),
        Column("error made", rank=1),
        Column("cosine", "right", rank=3),
        Column("clipped %", "right", rank=5),
        Column("saturated %", "right", rank=6),
    )
    return Sheet(title, columns, tuple(rows))


def worst(found: Sequence[Layer], most: int) -> list[Layer]:
    """Return the layers that make the largest errors of their own, the largest first."""
    ranked = sorted(found, key=lambda each: (-error(each), each.tensor))
    return [each for each in ranked[:most] if error(each)]


def error(layer: Layer) -> float:
    """Return the error that a layer makes, relative to what it should say: 0.01 for 40 dB.

    Infinite where the layer overflows, 0 where nothing is known.
    """
    return 0.0 if layer.made_db is None else float(10.0 ** (-layer.made_db / 20))


def _part(of: float, largest: float) -> float:
    if math.isinf(of):
        return 1.0
    return of / largest if largest else 0.0


def label(layer: Layer) -> str:
    """Return what a layer is called: its node, or the tensor where the node has no name."""
    return layer.node or layer.tensor


def bar(part: float) -> str:
    """Draw a share of a bar with blocks."""
    eighths = round(max(0.0, min(1.0, part)) * BAR * 8)
    return (BLOCKS[8] * (eighths // 8) + BLOCKS[eighths % 8]).rstrip()


def part_of(drawn: str) -> float | None:
    """Return the share that a bar stands for, None where it is none."""
    if not drawn or set(drawn) - set(BLOCKS[1:]):
        return None
    return sum(BLOCKS.index(each) for each in drawn) / (8 * BAR)


def distinct(variants: Sequence[Variant]) -> list[tuple[str, Sequence[Layer]]]:
    """Return the layers of all variants; those of the same graph once, under all their names."""
    found: dict[Sequence[Layer], list[str]] = {}
    for each in variants:
        if each.layers:
            found.setdefault(each.layers, []).append(each.name)
    return [(", ".join(names), layers) for layers, names in found.items()]


def share(percent: float | None) -> str:
    """Write a percentage that may be tiny; nothing where it means nothing."""
    if percent is None:
        return ""
    return f"< {FINEST}" if 0 < percent < FINEST else f"{percent:.3f}"


def _db(value: float | None) -> str:
    return "" if value is None else numerals.decibels(value)
