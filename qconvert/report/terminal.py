"""What a terminal shows beside plain tables: bars, footnotes, failed gates, notes, the verdict."""

import re
import textwrap
from collections.abc import Iterator
from dataclasses import replace

from qconvert.measure.stats import stats
from qconvert.report import figures, gates, tables
from qconvert.report.layer_errors import bar
from qconvert.report.model import Report
from qconvert.report.sheet import Column, Sheet

WIDTH = 80

# Between a number and its unit or interval no line ends.
TOGETHER = re.compile(r"(?<=\d) (?=(?:%|pp|ms|dB|MB|±)(?:\W|$))|(?<=±) ")
STUCK = "\u00a0"


def latency(report: Report) -> Sheet:
    """Return the latencies with bars: within a batch size, how long each takes of the longest."""
    sheet = tables.latency(report)
    took = {
        (variant.name, str(batch)): stats(found).median_ms
        for variant in report.variants
        for batch in {each.batch for each in variant.latency}
        if (found := figures.timed(variant, batch, "host")) is not None
    }
    most: dict[str, float] = {}
    for (_, batch), ms in took.items():
        most[batch] = max(ms, most.get(batch, 0.0))
    rows = tuple(
        (*row, bar(took[row[0], row[1]] / most[row[1]]) if (row[0], row[1]) in took else "")
        for row in sheet.rows
    )
    return replace(sheet, columns=(*sheet.columns, Column("time", rank=9)), rows=rows)


def ending(report: Report) -> str:
    """Return failed gates, then notes, then the verdict as the last line read."""
    return "\n".join(_ending(report))


def footnotes(sheet: Sheet) -> str:
    """Return the footnotes of a table, a line or more each."""
    return "\n".join(line for each in sheet.footnotes for line in wrapped(each, "  "))


def wrapped(sentence: str, indent: str = "") -> list[str]:
    """Return lines of at most 80 columns; names and numbers stay whole."""
    lines = textwrap.wrap(
        TOGETHER.sub(STUCK, sentence),
        WIDTH,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [line.replace(STUCK, " ") for line in lines]


def _ending(report: Report) -> Iterator[str]:
    for gate in report.gates:
        if not gate.passed:
            yield from wrapped(f"gate failed: {gates.sentence(gate)}", "  ")
    for note in report.notes:
        yield from wrapped(f"note: {note}", "  ")
    if report.verdict:
        yield from ("",) if report.notes else ()
        yield from wrapped(report.verdict)
