"""Sums that do not depend on the order of their terms, to the last bit.

A sum is an integer number of quanta of 2^-52, kept in two int64 limbs in their one canonical form.
A term is rounded down to a quantum first, so a mean of terms is off by at most 2^-52 (2e-16), on
top of what the terms themselves are off by. Terms beyond ±2^36 count as ±2^36: no activation that
means anything is there.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

COARSE_BITS = 10
FINE_BITS = 42
LARGEST = 2.0**36


@dataclass(frozen=True, eq=False)
class ExactSum:
    """One sum for each channel: `coarse` times 2^-10, and less than that again in `fine` quanta."""

    coarse: NDArray[np.int64]
    fine: NDArray[np.int64]

    def __add__(self, other: "ExactSum") -> "ExactSum":
        fine = self.fine + other.fine
        return ExactSum(
            self.coarse + other.coarse + (fine >> FINE_BITS), fine & ((1 << FINE_BITS) - 1)
        )

    def value(self) -> NDArray[np.float64]:
        """Return the sums as floating point numbers."""
        fine = np.ldexp(self.fine.astype(np.float64), -COARSE_BITS - FINE_BITS)
        return np.ldexp(self.coarse.astype(np.float64), -COARSE_BITS) + fine


def exact_sum(terms: NDArray[np.float32]) -> ExactSum:
    """Add up finite terms over their first axis, of which there are at most 2^16."""
    scaled = np.ldexp(np.clip(terms.astype(np.float64), -LARGEST, LARGEST), COARSE_BITS)
    whole = np.floor(scaled)
    rest = np.floor(np.ldexp(scaled - whole, FINE_BITS))
    zero = np.zeros(terms.shape[1:], dtype=np.int64)
    part = ExactSum(whole.astype(np.int64).sum(axis=0), rest.astype(np.int64).sum(axis=0))
    return part + ExactSum(zero, zero)
