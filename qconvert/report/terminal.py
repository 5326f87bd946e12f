"""What a terminal shows beside plain tables: bars, footnotes, failed gates, notes, the verdict."""

import re
import textwrap
from collections.abc import Iterator
from dataclasses import replace

from qconvert.measure.stats import summarize_latency
from qconvert.report import gates, metrics, tables
from qconvert.report.model import Report
from qconvert.report.table import TextColumn, TextTable, text_bar

WIDTH = 80

# Between a number and its unit or interval no line ends.
UNBREAKABLE_SPACE = re.compile(r"(?<=\d) (?=(?:%|pp|ms|dB|MB|±)(?:\W|$))|(?<=±) ")
NO_BREAK_SPACE = "\u00a0"


def latency_table_with_bars(report: Report) -> TextTable:
    """Return the latencies with bars: within a batch size, how long each takes of the longest."""
    sheet = tables.latency_table(report)
    took = {
        (variant.name, str(batch)): summarize_latency(found).median_ms
        for variant in report.variants
        for batch in {each.batch for each in variant.latency}
        if (found := metrics.latency_at(variant, batch, "host")) is not None
    }
    most: dict[str, float] = {}
    for (_, batch), ms in took.items():
        most[batch] = max(ms, most.get(batch, 0.0))
    rows = tuple(
        (*row, text_bar(took[row[0], row[1]] / most[row[1]]) if (row[0], row[1]) in took else "")
        for row in sheet.rows
    )
    return replace(sheet, columns=(*sheet.columns, TextColumn("time", rank=9)), rows=rows)


def closing_text(report: Report) -> str:
    """Return failed gates, then notes, then the verdict as the last line read."""
    return "\n".join(_closing_lines(report))


def wrapped_footnotes(sheet: TextTable) -> str:
    """Return the footnotes of a table, a line or more each."""
    return "\n".join(line for each in sheet.footnotes for line in wrap_text(each, "  "))


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


def _closing_lines(report: Report) -> Iterator[str]:
    for gate in report.gates:
        if not gate.passed:
            yield from wrap_text(f"gate failed: {gates.describe_gate(gate)}", "  ")
    for note in report.notes:
        yield from wrap_text(f"note: {note}", "  ")
    if report.verdict:
        yield from ("",) if report.notes else ()
        yield from wrap_text(report.verdict)
