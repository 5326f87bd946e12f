"""Names that come from files, made harmless where they are shown.

A node, a class or a file may be called anything: sequences that a terminal obeys, letters that turn
the direction of a line, words that a spreadsheet computes.
"""

# What a spreadsheet takes for the start of a formula, even behind blanks.
FORMULA_STARTS = ("=", "+", "-", "@")


def sanitize_text(text: str) -> str:
    """Make characters visible that would act instead: control, direction, and half characters."""
    return "".join(c if c.isprintable() or c == "\n" else f"\\x{ord(c):02x}" for c in text)


def sanitize_json(text: str) -> str:
    """Escape such characters in JSON, which means the same."""
    return "".join(c if c.isprintable() or c == "\n" else _escape_json(c) for c in text)


def sanitize_cell(text: str) -> str:
    """Return text for a table file: what would be a formula gets the quote that marks text."""
    text = sanitize_text(text)
    return f"'{text}" if text.lstrip().startswith(FORMULA_STARTS) else text


def _escape_json(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))
