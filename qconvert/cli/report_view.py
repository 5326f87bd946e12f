"""A report on the terminal: three tables, the overview, what to know, and the verdict last."""

import math
from typing import TYPE_CHECKING

from qconvert.cli import console
from qconvert.cli.console import Column, Table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from qconvert.measure.layers import Layer
    from qconvert.measure.mix import Mix
    from qconvert.report.model import Report
    from qconvert.report.sheet import Sheet


def show(report: "Report") -> None:
    """Write the report on stdout."""
    from qconvert.report import overview, tables, terminal

    three = tables.size(report), terminal.latency(report), tables.accuracy(report)
    for sheet in (*three, overview.overview(report)):
        _show(sheet)
        console.data("")
    console.data(terminal.ending(report))


def show_latencies(report: "Report") -> None:
    """Write what timing found on stdout."""
    from qconvert.report import overview, terminal

    for sheet in (terminal.latency(report), overview.timings(report)):
        _show(sheet)
        console.data("")
    console.data(terminal.ending(report))


def show_accuracies(report: "Report") -> None:
    """Write what comparing answers found on stdout."""
    from qconvert.report import tables, terminal

    _show(tables.accuracy(report))
    console.data("")
    console.data(terminal.ending(report))


def show_mix(mix: "Mix", sizes: "Mapping[str, int]") -> None:
    """Write what a search found on stdout."""
    from qconvert.report import mixing, terminal

    found = [mixing.gains(mix), mixing.path(mix)] if mix.gains else []
    for sheet in (*found, mixing.result(mix, sizes)):
        _show(sheet)
        console.data("")
    console.data("\n".join(terminal.wrapped(mix.why)))


def show_layers(found: "Sequence[Layer]") -> None:
    """Write the errors of layers on stdout, and which of them make the most."""
    from qconvert.report import layer_errors, numerals, terminal

    _show(layer_errors.layers(found))
    worst = [
        f"`{layer_errors.label(each)}` ({numerals.with_db(each.made_db or 0.0)})"
        for each in layer_errors.worst(found, 3)
    ]
    known = all(each.made_db == math.inf for each in found)
    none = "there is no error at all" if known else "which layers make an error is not known"
    told = f"most error is made by {', '.join(worst)}" if worst else none
    console.data("\n" + "\n".join(terminal.wrapped(told)))


def _show(sheet: "Sheet") -> None:
    from qconvert.report import terminal

    console.data(sheet.title)
    columns = [Column(each.title, each.justify, each.rank, each.wrap) for each in sheet.columns]
    console.data_table(Table(columns, sheet.rows))
    if sheet.footnotes:
        console.data(terminal.footnotes(sheet))
