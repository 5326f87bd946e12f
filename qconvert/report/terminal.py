"""Terminal text beside the tables: footnotes, failed gates, notes, the verdict."""

import re
import textwrap

from qconvert.report import gates
from qconvert.report.model import Report
from qconvert.report.table import TextTable

# No line ends between a number and its unit or interval.
UNBREAKABLE_SPACE = re.compile(r"(?<=\d) (?=(?:%|pp|ms|dB|MB|±)(?:\W|$))|(?<=±) ")
NO_BREAK_SPACE = "\u00a0"


def closing_text(report: Report) -> str:
    """Return the failed gates, the notes, and the verdict as the last line."""
    failed = [gates.describe_gate(gate) for gate in report.gates if not gate.passed]
    sentences = [f"gate failed: {gate}" for gate in failed]
    sentences += [f"note: {note}" for note in report.notes]
    lines = [line for sentence in sentences for line in wrap_text(sentence, "  ")]
    if report.verdict:
        lines += [""] if report.notes else []
        lines += wrap_text(report.verdict)
    return "\n".join(lines)


def wrapped_footnotes(table: TextTable) -> str:
    """Return the footnotes of a table as lines of text."""
    return "\n".join(line for note in table.footnotes for line in wrap_text(note, "  "))


def wrap_text(sentence: str, indent: str = "") -> list[str]:
    """Return lines of at most 80 columns; names and numbers stay whole."""
    lines = textwrap.wrap(
        UNBREAKABLE_SPACE.sub(NO_BREAK_SPACE, sentence),
        80,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [line.replace(NO_BREAK_SPACE, " ") for line in lines]
