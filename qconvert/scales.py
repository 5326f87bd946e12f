"""The numbers behind quantization: which values a tensor takes, and the integers that hold them."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Range:
    """The values of a tensor that are kept; what lies outside is clipped to the nearer end."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low <= self.high):
            raise ValueError(f"a range runs upward, got {self.low} .. {self.high}")

    @property
    def largest(self) -> float:
        """The largest magnitude inside, which is what a symmetric grid needs."""
        return max(abs(self.low), abs(self.high))


@dataclass(frozen=True)
class Grid:
    """The integers that a range is laid on: symmetric around zero, or shifted by a zero point.

    Zero is always one of its values: the grid of a range is that of the range widened to zero.
    """

    bits: int = 8
    symmetric: bool = True

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 16:
            raise ValueError(f"a grid has 2 to 16 bits, got {self.bits}")

    @property
    def levels(self) -> int:
        """How many integers there are."""
        return 1 << self.bits

    @property
    def half(self) -> int:
        """The largest integer of the symmetric grid: 127 for 8 bits."""
        return (1 << (self.bits - 1)) - 1
