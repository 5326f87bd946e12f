"""What a person sees: stdout is data, stderr is talk; colour adds and never carries.

Piped output is plain and as wide as it needs to be. On a terminal that is too narrow a table drops
its least important columns; it never cuts a number.
"""

import json
import os
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from qconvert.core.errors import QConvertError
from qconvert.core.sanitize import sanitize_json, sanitize_text
from qconvert.report.table import TextTable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as RichTable

PIPE_WIDTH = 100_000
COLUMN_GAP = 3


@dataclass
class Verbosity:
    """How much the user wants to hear: -2 nothing, -1 errors, 0 steps, 1 and more: details."""

    level: int = 0


VERBOSITY = Verbosity()


def info(text: str, level: int = 0) -> None:
    """Talk on stderr, unless the user wants less."""
    if level <= VERBOSITY.level:
        sys.stderr.write(sanitize_text(text) + "\n")
        sys.stderr.flush()


def note(text: str) -> None:
    """Tell something that a user should know about a result, wrapped to 80 columns."""
    first, *more = textwrap.wrap(sanitize_text(text), 70)
    info("\n".join([f"    note: {first}", *(f"          {line}" for line in more)]))


def write_stderr(text: str) -> None:
    """Write on stderr even when `-q` was asked for; only `-qq` silences it."""
    if VERBOSITY.level > -2:
        sys.stderr.write(sanitize_text(text))
        sys.stderr.flush()


def show_error(problem: QConvertError) -> None:
    """Show what happened, its causes, and after a blank line what to do."""
    lines = [f"{style_stderr('error:', '31')} {sanitize_text(str(problem))}"]
    lines += [
        line for detail in map(sanitize_text, problem.details) for line in _wrap_detail(detail)
    ]
    cause = problem.__cause__
    while cause is not None:
        lines += [f"  caused by: {sanitize_text(str(cause)).strip() or type(cause).__name__}"]
        cause = cause.__cause__
    if problem.hint:
        lines += ["", f"{style_stderr('hint:', '36')} {sanitize_text(problem.hint)}"]
    if VERBOSITY.level > -2:
        sys.stderr.write("\n".join(lines) + "\n")


def _wrap_detail(text: str) -> list[str]:
    """Return a detail as lines of at most 80 columns; what is no sentence has no words to wrap."""
    return textwrap.wrap(
        text,
        80,
        initial_indent="  ",
        subsequent_indent="    ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def write(text: str) -> None:
    """Write a result on stdout, unless the user wants the exit code alone."""
    _write_stdout(sanitize_text(text))


def write_json(value: object) -> None:
    """Write a result on stdout as JSON."""
    try:
        "±✓".encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        _write_stdout(json.dumps(value, indent=2))
    else:
        _write_stdout(sanitize_json(json.dumps(value, indent=2, ensure_ascii=False)))


def _write_stdout(text: str) -> None:
    if VERBOSITY.level <= -2:
        return
    sys.stdout.write(text if text.endswith("\n") else text + "\n")
    sys.stdout.flush()  # here, where a reader that went away is noticed, not at exit


def write_table(table: TextTable) -> None:
    """Write a table on stdout: all columns when piped, those that fit on a terminal."""
    out = _stdout_console()
    columns = list(range(len(table.columns)))
    while (
        sum(_min_width(table, index) + COLUMN_GAP for index in columns) - COLUMN_GAP > out.width
        and columns[1:]
    ):
        columns.remove(max(columns, key=lambda index: (table.columns[index].rank, index)))
    drawn = _rich_table(table, columns)
    with out.capture() as captured:
        out.print(drawn, crop=False)
    _write_stdout("\n".join(line.rstrip() for line in captured.get().splitlines()))


def _rich_table(table: TextTable, columns: Sequence[int]) -> "RichTable":
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    drawn = RichTable(box=box.Box("    \n    \n ── \n" + 5 * "    \n"), pad_edge=False)
    drawn.show_edge = False
    for index in columns:
        column = table.columns[index]
        least = _min_width(table, index)
        drawn.add_column(column.title, justify=column.justify, min_width=least)
    for row in table.rows:
        drawn.add_row(*(Text(sanitize_text(row[index])) for index in columns))
    return drawn


def _min_width(table: TextTable, index: int) -> int:
    """Return the width below which a column would cut a cell, or a word where it may wrap."""
    from rich.cells import cell_len

    column = table.columns[index]
    cells = [column.title, *(sanitize_text(row[index]) for row in table.rows)]
    pieces = [word for cell in cells for word in cell.split()] if column.wrap else cells
    return max(map(cell_len, pieces), default=0)


@cache
def _stdout_console() -> "Console":
    from rich.console import Console

    # Rich takes 80 columns for a pipe; whoever reads a pipe wants all of it.
    width = None if sys.stdout.isatty() else PIPE_WIDTH
    return Console(width=width, highlight=False, markup=False, emoji=False)


@cache
def stderr_console() -> "Console":
    """Return the console of stderr, made once."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, markup=False, emoji=False)


def style_stderr(text: str, code: str) -> str:
    """Colour talk for a terminal that wants it."""
    colour = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
    return f"\x1b[1;{code}m{text}\x1b[0m" if colour else text
