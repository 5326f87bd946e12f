"""Names and values that something is likely to stumble over."""

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


def name(chance: random.Random) -> str:
    """Return an awkward name."""
    return chance.choice(NAMES)


def integer(chance: random.Random) -> int:
    """Return a number at an edge."""
    return chance.choice(INTEGERS)


def number(chance: random.Random) -> float:
    """Return a float at an edge."""
    return chance.choice(FLOATS)
