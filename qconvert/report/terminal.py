"""What a terminal shows beside plain tables: bars, footnotes, failed gates, notes, the verdict."""

import re
import textwrap
from dataclasses import replace

from qconvert.measure.latency import summarize_latency
from qconvert.report import gates, tables
from qconvert.report.model import Report
from qconvert.report.table import TextColumn, TextTable, text_bar

WIDTH = 80

# No line ends between a number and its unit or interval.
UNBREAKABLE_SPACE = re.compile(r"(?<=\d) (?=(?:%|pp|ms|dB|MB|±)(?:\W|$))|(?<=±) ")
NO_BREAK_SPACE = "\u00a0"


def latency_table_with_bars(report: Report) -> TextTable:
    """Return the latencies with bars relative to the slowest at the same batch size."""
    medians = {
        (variant.name, str(latency.batch)): summarize_latency(latency).median_ms
        for variant in report.variants
        for latency in variant.latency
        if latency.where == "host" and latency.samples_ms
    }
    slowest: dict[str, float] = {}
    for (_, batch), ms in medians.items():
        slowest[batch] = max(ms, slowest.get(batch, 0.0))
    table = tables.latency_table(report)
    rows = []
    for row in table.rows:
        name, batch = row[:2]
        ms = medians.get((name, batch), 0.0)
        rows.append((*row, text_bar(ms / slowest[batch]) if ms else ""))
    return replace(table, columns=(*table.columns, TextColumn("time", rank=9)), rows=rows)


def closing_text(report: Report) -> str:
    """Return the failed gates, the notes, and the verdict as the last line."""
    lines = []
    for gate in report.gates:
        if not gate.passed:
            lines += wrap_text(f"gate failed: {gates.describe_gate(gate)}", "  ")
    for note in report.notes:
        lines += wrap_text(f"note: {note}", "  ")
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
        WIDTH,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [line.replace(NO_BREAK_SPACE, " ") for line in lines]
