"""Names and numbers that software tends to handle badly."""

import random

NAMES = (
    "", " ", ".", "..", "../outside/x", "/tmp/qconvert-outside", "a/b", "a\\b", "x" * 5000,
    "\x1b[2J\x1b]0;owned\x07", "line\nbreak", "\r", "\t", "nul\x00byte", "\u202etxt.exe",
    "<script>alert(1)</script>", "'\"><img src=x onerror=alert(1)>", "](javascript:alert(1))",
    "|a|b|\n|-|-|", "`", "``` \n# big", "=1+1", "@SUM(A1)", "+cmd|' /C calc'!A0", "-2+3",
    "{{7*7}}", "{% raw %}", "%s%n", "$(id)", "é", "\U0001f600", "con", "--help", "-o",
)  # fmt: skip

INTEGERS = (
    -1, 0, 1, 2, 3, 7, 255, 65536, 2**31 - 1, 2**31, 2**32, 2**40, 2**62, 2**63 - 1, -(2**31),
    -(2**63),
)  # fmt: skip

FLOATS = (0.0, -0.0, 1e-45, 1e-30, -1.0, 1e30, 3.4e38, float("inf"), float("-inf"), float("nan"))


def any_name(rng: random.Random) -> str:
    """Return a name that is hard to handle."""
    return rng.choice(NAMES)


def any_integer(rng: random.Random) -> int:
    """Return an integer at a limit."""
    return rng.choice(INTEGERS)


def any_float(rng: random.Random) -> float:
    """Return a float at a limit."""
    return rng.choice(FLOATS)
