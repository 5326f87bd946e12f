"""Text from untrusted files, made harmless where it is shown.

A node, a class or a file may have any name: with escape sequences that a terminal obeys, characters
that reverse the direction of a line, or formulas that a spreadsheet computes.
"""

# A spreadsheet takes these for the start of a formula, even after spaces.
FORMULA_STARTS = ("=", "+", "-", "@")


def sanitize_text(text: str) -> str:
    """Escape control characters, direction marks and lone surrogates."""
    return "".join(c if c.isprintable() or c == "\n" else f"\\x{ord(c):02x}" for c in text)


def sanitize_json(text: str) -> str:
    """Escape the same characters in JSON, without a change of its meaning."""
    return "".join(c if c.isprintable() or c == "\n" else _escape_json(c) for c in text)


def sanitize_cell(text: str) -> str:
    """Escape text for a CSV or Excel file: a quote marks possible formulas as text."""
    text = sanitize_text(text)
    return f"'{text}" if text.lstrip().startswith(FORMULA_STARTS) else text


def _escape_json(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))
