"""Numbers are written short, but keep the digits that matter."""

import math

import pytest

from qconvert.core import number_format


@pytest.mark.parametrize(
    ("value", "written"),
    [(0.0312, "0.031"), (0.38, "0.38"), (21.4, "21.40"), (123.45, "123.5"), (1234.5, "1234")],
)
def test_milliseconds_keep_three_or_four_digits(value: float, written: str) -> None:
    assert number_format.ms(value) == written


@pytest.mark.parametrize("value", [99.96, 999.6, 0.0996])
def test_rounding_up_does_not_widen_a_number(value: float) -> None:
    assert len(number_format.ms(value)) <= 5


def test_changes_have_a_sign_except_zero() -> None:
    assert number_format.signed(-0.52) == "−0.52"
    assert number_format.signed(0.1) == "+0.10"
    assert number_format.signed(-0.001) == "0.00"
    assert number_format.change_with_interval(-12.345, 0.5) == "−12.3 ± 0.5"
    assert number_format.change_with_interval(0.5, None) == "+0.50"


def test_percentages_reach_0_and_100_only_when_exact() -> None:
    values = (100.0, 100 - 1e-12, 99.9999, 99.998, 99.988, 88.333, 3.1, 0.01, 0.0099, 0.001, 0.0)
    texts = "100.0 100.0 99.99 99.99 99.99 88.33 3.10 0.01 <0.01 <0.01 0.00"
    assert " ".join(map(number_format.percent, values)) == texts


@pytest.mark.parametrize(
    ("value", "limit", "written"),
    [
        (1.0, 1.0, ("1.00", "1.00")),
        (1.004, 1.0, ("1.004", "1.000")),
        (0.9999, 1.0, ("0.9999", "1.0000")),
        (1.0 + 1e-12, 1.0, ("1.00", "1.00")),
        (0.0284, 0.0001, ("0.0284", "0.0001")),
        (0.7, 0.625, ("0.700", "0.625")),
    ],
)
def test_value_and_limit_are_distinguishable(
    value: float, limit: float, written: tuple[str, str]
) -> None:
    assert number_format.value_and_limit(value, limit) == written


def test_sizes_decibels_ratios_and_counts_are_formatted() -> None:
    assert number_format.megabytes(1_500) == "0.002"
    assert number_format.megabytes(18_600_000) == "18.6"
    assert number_format.decibels(math.inf) == "∞"
    assert number_format.with_db(20.0) == "20.0 dB"
    assert number_format.with_db(-math.inf) == "not finite"
    assert number_format.ratio(52.16) == "52.2×"
    assert number_format.divergence(-1e-9) == number_format.divergence(-0.0) == "0.0000"
    assert number_format.count(1, "image") == "1 image"
    assert number_format.count(2, "image") == "2 images"
    assert number_format.image_count(9, 3) == "3 labelled of 9 images"
    assert [number_format.image_count(9, value) for value in (9, 0, None)] == ["9 images"] * 3
