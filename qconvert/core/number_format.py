"""How figures are written: as many digits as they deserve, and never one that changes the sense."""

import math

MIN_SMALL_PERCENT = 0.001

MAX_DIGITS = 9
MIN_PERCENT = 0.01
ROUNDOFF = 1e-9  # by which a mean of hundreds may fall short


def ms(value: float) -> str:
    """Write milliseconds."""
    return f"{value:.{_decimals(value)}f}"


def ms_with_spread(value: float, spread: float) -> str:
    """Write milliseconds and their spread with the same decimals."""
    return f"{ms(value)} ± {spread:.{_decimals(value)}f}"


def megabytes(size: float) -> str:
    """Write bytes as megabytes of a million bytes."""
    value = size / 1e6
    decimals = 3 if value < 0.1 else 2 if value < 1 else 1
    return f"{value:.{decimals}f}"


def ratio(ratio: float) -> str:
    """Write a ratio."""
    return f"{ratio:.{2 if ratio < 10 else 1 if ratio < 100 else 0}f}×"


def percent(value: float) -> str:
    """Write a percentage in at most five characters, without its sign.

    Only all is written as 100, and only nothing as 0.
    """
    if 0 < value < MIN_PERCENT:
        return f"<{MIN_PERCENT}"
    if value < 100 - ROUNDOFF:
        value = min(value, 100 - MIN_PERCENT)
    return f"{value:.2f}"[:5]


def throughput(value: float) -> str:
    """Write a number of images a second."""
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"


def signed(value: float, decimals: int = 2) -> str:
    """Write a change with its sign; none on what rounds to zero."""
    text = f"{abs(value):.{decimals}f}"
    if float(text) == 0:
        return text
    return f"{'−' if value < 0 else '+'}{text}"


def change_with_interval(value: float, half_width: float | None, decimals: int = 2) -> str:
    """Write a change and its interval; with one decimal where either has two digits before it."""
    if half_width is None:
        return signed(value, decimals)
    fewer = 1 if max(abs(value), half_width) >= 9.995 else decimals
    return f"{signed(value, fewer)} ± {half_width:.{fewer}f}"


def decibels(value: float) -> str:
    """Write an SQNR; outputs without any error have an infinite one, what overflows the least."""
    if value == -math.inf:
        return "not finite"
    return "∞" if value == math.inf else f"{value:.1f}"


def with_db(value: float) -> str:
    """Write an SQNR with its unit, where it has one."""
    return decibels(value) if value == -math.inf else f"{decibels(value)} dB"


def divergence(value: float) -> str:
    """Write a KL, which rounding takes a hair below zero where answers are alike."""
    return f"{max(0.0, value):.4f}"


def value_and_limit(value: float, limit: float) -> tuple[str, str]:
    """Write a value and its limit with two decimals, or so many that they do not look the same.

    The limit is written as it was given.
    """
    given = f"{limit:.{MAX_DIGITS - 1}f}".rstrip("0").partition(".")[2]
    for decimals in range(max(2, len(given)), MAX_DIGITS):
        texts = f"{value:.{decimals}f}", f"{limit:.{decimals}f}"
        if texts[0] != texts[1] or math.isclose(value, limit, abs_tol=1e-9):
            break
    return texts


def count(number: int, noun: str) -> str:
    """Write a number and its noun, in the plural unless it is one."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def image_count(number: int, labelled: int | None) -> str:
    """Write how many images were looked at, and how many of them have labels where not all do."""
    some = f"{labelled} labelled of " if labelled and labelled < number else ""
    return some + count(number, "image")


def _decimals(value: float) -> int:
    return 3 if value < 0.0995 else 2 if value < 99.95 else 1 if value < 999.5 else 0


def small_percent(percent: float | None) -> str:
    """Write a percentage that may be tiny; nothing where it means nothing."""
    if percent is None:
        return ""
    return f"< {MIN_SMALL_PERCENT}" if 0 < percent < MIN_SMALL_PERCENT else f"{percent:.3f}"
