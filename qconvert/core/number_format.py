"""Numbers as text: with significant digits only, and never rounded into another meaning."""

import math


def ms(value: float) -> str:
    """Format milliseconds."""
    decimals = 3 if value < 0.0995 else 2 if value < 99.95 else 1 if value < 999.5 else 0
    return f"{value:.{decimals}f}"


def ms_with_spread(value: float, spread: float) -> str:
    """Format milliseconds and their spread with the same decimals."""
    text = ms(value)
    decimals = len(text.partition(".")[2])
    return f"{text} ± {spread:.{decimals}f}"


def megabytes(size: float) -> str:
    """Format bytes as megabytes of a million bytes."""
    value = size / 1e6
    return f"{value:.{3 if value < 0.1 else 2 if value < 1 else 1}f}"


def ratio(value: float) -> str:
    """Format a ratio."""
    return f"{throughput(value)}×"


def percent(value: float) -> str:
    """Format a percentage without its sign; only exactly all is 100, and only exactly none 0."""
    if 0 < value < 0.01:
        return "<0.01"
    if value < 100 - 1e-9:  # the rounding error of a mean of hundreds of floats
        value = min(value, 99.99)
    return f"{value:.2f}"[:5]


def small_percent(value: float | None) -> str:
    """Format a percentage that may be tiny; nothing for None."""
    if value is None:
        return ""
    return "< 0.001" if 0 < value < 0.001 else f"{value:.3f}"


def throughput(value: float) -> str:
    """Format images per second."""
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"


def signed(value: float, decimals: int = 2) -> str:
    """Format a change with its sign, without one where it is written as zero."""
    text = f"{abs(value):.{decimals}f}"
    sign = "−" if value < 0 else "+"
    return f"{sign}{text}" if float(text) else text


def change_with_interval(value: float, half_width: float | None, decimals: int = 2) -> str:
    """Format a change and its interval; one decimal where either has two digits before it."""
    if half_width is None:
        return signed(value, decimals)
    fewer = 1 if max(abs(value), half_width) >= 9.995 else decimals
    return f"{signed(value, fewer)} ± {half_width:.{fewer}f}"


def decibels(value: float) -> str:
    """Format an SQNR; without any error it is infinite, with an overflow minus infinity."""
    if value == -math.inf:
        return "not finite"
    return "∞" if value == math.inf else f"{value:.1f}"


def with_db(value: float) -> str:
    """Format an SQNR with its unit, where it has one."""
    return decibels(value) if value == -math.inf else f"{decibels(value)} dB"


def divergence(value: float) -> str:
    """Format a KL divergence, which rounding may make slightly negative for equal outputs."""
    return f"{max(0.0, value):.4f}"


def value_and_limit(value: float, limit: float) -> tuple[str, str]:
    """Format a value and its limit, with at least two decimals and enough to tell them apart.

    The limit keeps the decimals that the user wrote.
    """
    written = f"{limit:.8f}".rstrip("0").partition(".")[2]
    for decimals in range(max(2, len(written)), 9):
        texts = f"{value:.{decimals}f}", f"{limit:.{decimals}f}"
        if texts[0] != texts[1] or math.isclose(value, limit, abs_tol=1e-9):
            break
    return texts


def count(number: int, noun: str) -> str:
    """Format a number and its noun."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def image_count(number: int, labelled: int | None) -> str:
    """Format how many images there are, and how many have labels where not all do."""
    prefix = f"{labelled} labelled of " if labelled and labelled < number else ""
    return prefix + count(number, "image")
