"""Which of many images to use: the same ones every time, spread over all of them."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise


def choose(labels: Sequence[int | None], count: int | None, seed: int) -> tuple[int, ...]:
    """Return the places of at most `count` images, ascending.

    Where every image has a label, classes get equal shares as far as they have images. Otherwise
    the images are cut into `count` equal stretches, and each gives one.
    """
    total = len(labels)
    if count is None or count >= total:
        return tuple(range(total))
    if None in labels:
        edges = [stretch * total // count for stretch in range(count + 1)]
        return tuple(start + _draw(seed, start) % (stop - start) for start, stop in pairwise(edges))
    return tuple(sorted(_in_turns(labels, seed)[:count]))


def _in_turns(labels: Sequence[int | None], seed: int) -> list[int]:
    """Return all places so that each class gives its first, then each its second, and so on."""
    given: Counter[int | None] = Counter()
    turns: list[tuple[int, int, int]] = []
    for place in sorted(range(len(labels)), key=lambda place: _draw(seed, place)):
        label = labels[place]
        turns.append((given[label], _draw(seed, label), place))
        given[label] += 1
    return [place for _, _, place in sorted(turns)]


def _draw(seed: int, what: int | None) -> int:
    """Return a number that depends on nothing else, on any machine and in any version of Python."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{what}".encode()).digest()[:8])
