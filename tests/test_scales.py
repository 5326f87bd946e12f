"""Values of quantization refuse nonsense at birth."""

import math

import pytest

from qconvert.scales import Grid, Range


@pytest.mark.parametrize(
    ("low", "high"), [(1.0, 0.0), (math.nan, 1.0), (0.0, math.nan), (0.0, math.inf)]
)
def test_a_range_that_does_not_run_upward_is_refused(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="a range runs upward"):
        Range(low, high)


def test_a_range_may_be_a_single_value() -> None:
    assert Range(-2.0, -2.0).largest == 2.0


@pytest.mark.parametrize("bits", [0, 1, 17])
def test_a_grid_without_a_sensible_number_of_bits_is_refused(bits: int) -> None:
    with pytest.raises(ValueError, match="2 to 16 bits"):
        Grid(bits=bits)


def test_eight_bits_have_256_levels_and_127_on_either_side() -> None:
    assert (Grid(8).levels, Grid(8).half) == (256, 127)
