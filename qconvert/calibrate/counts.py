"""How often values occur, by the upper half of their float32: sign, exponent, 7 mantissa bits.

No range has to be chosen before the first value is seen, the resolution is 0.8 % everywhere, and
tables merge by addition.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

KEYS = 1 << 16
SIGN = 0x8000
INFINITY = 0x7F80
NAN = 0x7FC0


@dataclass(frozen=True, eq=False)
class Counts:
    """The keys that occur, in rising order, and how often each does."""

    keys: NDArray[np.uint16]
    numbers: NDArray[np.int64]

    def __add__(self, other: "Counts") -> "Counts":
        keys, places = np.unique(np.concatenate([self.keys, other.keys]), return_inverse=True)
        numbers = np.zeros(keys.size, dtype=np.int64)
        np.add.at(numbers, places, np.concatenate([self.numbers, other.numbers]))
        return Counts(keys, numbers)

    @property
    def total(self) -> int:
        """How many values were counted."""
        return int(self.numbers.sum())

    @property
    def zeros(self) -> int:
        """How many of them were zero, or so small (below 1e-40) that no grid tells them apart."""
        return self._of(0, SIGN)

    @property
    def infinities(self) -> int:
        """How many of them were infinite."""
        return self._of(INFINITY, SIGN | INFINITY)

    @property
    def nans(self) -> int:
        """How many of them were not a number."""
        return self._of(NAN)

    def _of(self, *keys: int) -> int:
        return int(self.numbers[np.isin(self.keys, keys)].sum())


def count(parts: Sequence[NDArray[np.uint16]]) -> Counts:
    """Count the keys of all parts."""
    table = np.bincount(np.concatenate([np.zeros(0, np.uint16), *parts]), minlength=KEYS)
    found = np.flatnonzero(table)
    return Counts(found.astype(np.uint16), table[found].astype(np.int64))


def keys_of(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Return the key of each value; all that is not a number has one key."""
    keys = (np.ascontiguousarray(values).view(np.uint32) >> 16).astype(np.uint16)
    if not np.isfinite(values).all():
        keys[np.isnan(values)] = NAN
    return keys
