"""Text from untrusted files, escaped where it is shown: a node or a file may have any name."""

import json


def sanitize_text(text: str) -> str:
    """Escape control characters, direction marks and lone surrogates."""
    return "".join(c if c.isprintable() or c == "\n" else f"\\x{ord(c):02x}" for c in text)


def sanitize_json(text: str) -> str:
    """Escape the same characters in JSON, without a change of its meaning."""
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)


def sanitize_cell(text: str) -> str:
    """Escape text for a CSV or Excel file: a quote marks possible formulas as text."""
    text = sanitize_text(text)
    # A spreadsheet reads these as the start of a formula, even after spaces.
    return f"'{text}" if text.lstrip().startswith(("=", "+", "-", "@")) else text
