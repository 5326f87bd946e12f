"""A report on the terminal: three tables, the overview, what to know, and the verdict last."""

from typing import TYPE_CHECKING

from qconvert.cli import console
from qconvert.cli.console import Column, Table

if TYPE_CHECKING:
    from qconvert.report.model import Report
    from qconvert.report.sheet import Sheet


def show(report: "Report") -> None:
    """Write the report on stdout."""
    from qconvert.report import overview, tables, terminal

    for sheet in (tables.size(report), tables.latency(report), tables.accuracy(report)):
        _show(sheet)
        console.data("")
    if report.gates:
        _show(overview.overview(report))
        console.data("")
    console.data(console.plain(terminal.ending(report)))


def _show(sheet: "Sheet") -> None:
    from qconvert.report import terminal

    console.data(sheet.title)
    columns = [Column(each.title, each.justify, each.rank, each.wrap) for each in sheet.columns]
    console.data_table(Table(columns, sheet.rows))
    if sheet.footnotes:
        console.data(console.plain(terminal.footnotes(sheet)))
