"""Terminal text beside the tables: footnotes, failed gates, notes, the verdict."""

import re
import textwrap

from qconvert.report import gates
from qconvert.report.model import Report

# No line ends between a number and its unit or interval.
UNBREAKABLE_SPACE = re.compile(r"(?<=\d) (?=(?:%|pp|ms|dB|MB|±)(?:\W|$))|(?<=±) ")
NO_BREAK_SPACE = "\u00a0"


def closing_text(report: Report) -> str:
    """Return the failed gates, the notes, and the verdict as the last line."""
    failed = [gates.describe_gate(gate) for gate in report.gates if not gate.passed]
    sentences = [f"gate failed: {gate}" for gate in failed]
    sentences += [f"note: {note}" for note in report.notes]
    lines = [wrap_text(sentence, "  ") for sentence in sentences]
    if report.verdict:
        lines += [""] if report.notes else []
        lines.append(wrap_text(report.verdict))
    return "\n".join(lines)


def wrap_text(sentence: str, indent: str = "") -> str:
    """Return lines of at most 80 columns; names and numbers stay whole."""
    return textwrap.fill(
        UNBREAKABLE_SPACE.sub(NO_BREAK_SPACE, sentence),
        80,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    ).replace(NO_BREAK_SPACE, " ")
