"""The entry `segmentation` of COCO's annotations: polygons, or run lengths as numbers or as text."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from qconvert.images.object_masks import Polygons, RunLengths, Shape, outline_of

# Characters from "0" hold six bits: five of the number, lowest first, and whether more follow.
_FIRST_CHARACTER, _BITS = ord("0"), 5
_MORE, _SIGN, _PAYLOAD = 0x20, 0x10, 0x1F
# More than any picture has; longer numbers would overflow 64 bits.
_MAX_CHARACTERS = 7
_MAX_SIDE = 10**6


def parse_segmentation(value: object) -> Shape | None:
    """Return the shape of an object, None where there is none or it is not COCO's."""
    if isinstance(value, list):
        if not value or not all(_is_outline(part) for part in value):
            return None
        return Polygons(tuple(outline_of(part) for part in value))
    if isinstance(value, dict):
        return _run_lengths(value.get("size"), value.get("counts"))
    return None


def _is_outline(part: object) -> bool:
    if not isinstance(part, list) or len(part) < 6 or len(part) % 2:
        return False
    return all(
        isinstance(number, int | float) and math.isfinite(number) and abs(number) < 1e6
        for number in part
    )


def _run_lengths(size: Any, counts: Any) -> RunLengths | None:
    if isinstance(counts, str):
        counts = _read_counts(counts)
    lists = (size, counts)
    if not all(isinstance(row, list) and all(type(n) is int for n in row) for row in lists):
        return None
    # Python's integers, as an array would wrap around.
    if len(size) != 2 or not 0 < min(size) <= max(size) < _MAX_SIDE or min(counts, default=0) < 0:
        return None
    if sum(counts) != size[0] * size[1]:
        return None
    return RunLengths(np.array(counts, np.int64), (size[1], size[0]))


def _read_counts(text: str) -> list[int] | None:
    """Return the counts of compressed run lengths; from the fourth on, text holds differences.

    These are to the count two places before.
    """
    counts: list[int] = []
    codes: list[int] = []
    for character in text:
        code = ord(character) - _FIRST_CHARACTER
        codes.append(code)
        if not 0 <= code < 2 * _MORE or len(codes) > _MAX_CHARACTERS:
            return None
        if code & _MORE:
            continue
        number = _signed(codes)
        counts.append(number + counts[-2] if len(counts) > 2 else number)
        codes = []
    return None if codes else counts


def _signed(codes: Sequence[int]) -> int:
    number = sum((code & _PAYLOAD) << (_BITS * place) for place, code in enumerate(codes))
    return number - (1 << (_BITS * len(codes))) if codes[-1] & _SIGN else number
