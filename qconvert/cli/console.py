"""Terminal output: results on stdout, everything else on stderr, colour only as decoration.

Piped output is plain and as wide as it needs to be. On a narrow terminal a table drops its least
important columns; it never cuts a number.
"""

import json
import math
import os
import re
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

from qconvert.core.errors import QConvertError
from qconvert.core.sanitize import sanitize_json, sanitize_text
from qconvert.report.table import TextTable, make_columns

if TYPE_CHECKING:
    from rich.console import Console
    from rich.status import Status

    from qconvert.core.progress import Progress
    from qconvert.measure.layer_errors import LayerError
    from qconvert.quantize.plan import LayerPlan
    from qconvert.report.model import Report

# How much is printed: -2 nothing, -1 results and errors, 0 steps too, 1 and more details.
VERBOSITY = SimpleNamespace(level=0)
LOG_INTERVAL_SECONDS = 10.0
# The tables of a report that are shown.
TABLES = ("size", "latency", "gpu", "accuracy", "chain", "overview")
# No line ends between a number and its unit or interval.
UNBREAKABLE_SPACE = re.compile(r"(?<=\d) (?=(?:%|pp|ms|dB|MB|±)(?:\W|$))|(?<=±) ")
NO_BREAK_SPACE = "\u00a0"


def info(text: str, level: int = 0) -> None:
    """Write a line on stderr if the verbosity is at least `level`."""
    _write_stderr(sanitize_text(text), level)


def _write_stderr(text: str, level: int = 0) -> None:
    if level <= VERBOSITY.level:
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


def note(*texts: str) -> None:
    """Write notes about a result on stderr, each wrapped to 80 columns."""
    for text in texts:
        info("    note: " + "\n          ".join(textwrap.wrap(sanitize_text(text), 70)))


def wrap_text(sentence: str, indent: str = "") -> str:
    """Return lines of at most 80 columns; names and numbers stay whole."""
    return textwrap.fill(
        UNBREAKABLE_SPACE.sub(NO_BREAK_SPACE, sentence),
        80,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    ).replace(NO_BREAK_SPACE, " ")


def show_error(error: QConvertError) -> None:
    """Show what happened, its causes and, after a blank line, what to do."""
    lines = [f"{style_stderr('error:', '31')} {sanitize_text(str(error))}"]
    fold = textwrap.TextWrapper(80, initial_indent="  ", subsequent_indent="    ")
    fold.break_long_words = fold.break_on_hyphens = False  # names and paths stay whole
    for detail in error.details:
        lines += fold.wrap(sanitize_text(detail))
    cause = error.__cause__
    while cause is not None:
        lines.append(f"  caused by: {sanitize_text(str(cause)).strip() or type(cause).__name__}")
        cause = cause.__cause__
    if error.hint:
        lines += ["", f"{style_stderr('hint:', '36')} {sanitize_text(error.hint)}"]
    _write_stderr("\n".join(lines), level=-1)


def write(*lines: str) -> None:
    """Write a result on stdout, unless only the exit code is wanted (`-qq`)."""
    _write_stdout(sanitize_text("\n".join(lines)))


def write_json(value: object) -> None:
    """Write a result on stdout as JSON."""
    try:
        "±✓".encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        _write_stdout(json.dumps(value, indent=2))
    else:
        _write_stdout(sanitize_json(json.dumps(value, indent=2, ensure_ascii=False)))


def _write_stdout(text: str) -> None:
    PROGRESS.close()
    if VERBOSITY.level > -2:
        sys.stdout.write(text if text.endswith("\n") else text + "\n")
        sys.stdout.flush()  # detect a closed pipe here, not at exit


def write_table(table: TextTable) -> None:
    """Write a table on stdout: all columns when piped, those that fit on a terminal."""
    from rich import box
    from rich.cells import cell_len
    from rich.table import Table
    from rich.text import Text

    console = rich_console()
    columns = table.columns
    rows = [[sanitize_text(cell) for cell in row] for row in table.rows]
    # Below these widths a cell would be cut, or a word where the column may wrap.
    widths = []
    for i, column in enumerate(columns):
        texts = [column.title, *(row[i] for row in rows)]
        pieces = [word for text in texts for word in text.split()] if column.wrap else texts
        widths.append(max(map(cell_len, pieces), default=0))
    shown = list(range(len(columns)))
    while len(shown) > 1 and sum(widths[i] + 3 for i in shown) > console.width + 3:
        shown.remove(max(shown, key=lambda i: (columns[i].rank, i)))
    drawn = Table(box=box.Box("    \n    \n ── \n" + 5 * "    \n"), pad_edge=False, show_edge=False)
    for i in shown:
        drawn.add_column(columns[i].title, justify=columns[i].justify, min_width=widths[i])
    for row in rows:
        drawn.add_row(*(Text(row[i]) for i in shown))
    with console.capture() as captured:
        console.print(drawn, crop=False)
    _write_stdout("\n".join(line.rstrip() for line in captured.get().splitlines()))


def finish(
    report: "Report", *, as_json: bool, tables: Sequence[str] = TABLES, page: Path | None = None
) -> None:
    """Print a report, as JSON or in tables; then fail with exit code 1 if a gate failed."""
    from qconvert.report import gates, json_file

    if as_json:
        write_json(json_file.to_json(report))
    else:
        show_report(report, tables)
    if page is not None:
        info(f"report: {page}")
    gates.require_passed(report, shown=not as_json)


def show_report(report: "Report", names: Sequence[str] = TABLES) -> None:
    """Print tables of a report, then its failed gates, notes and verdict."""
    from qconvert.report import tables
    from qconvert.report.chain import chain_table

    makers: dict[str, Callable[[Report], TextTable]] = {
        "size": tables.size_table,
        "latency": partial(tables.latency_table, bars=True),
        "gpu": tables.gpu_table,
        "chain": chain_table,
        "timing": tables.timing_table,
        "accuracy": tables.accuracy_table,
        "overview": tables.overview_table,
    }
    print_tables(*(table for name in names if (table := makers[name](report)).rows))
    write(closing_text(report))


def closing_text(report: "Report") -> str:
    """Return the failed gates, the notes, and the verdict as the last line."""
    from qconvert.report import gates

    failed = [gates.describe_gate(gate) for gate in report.gates if not gate.passed]
    lines = [wrap_text(f"gate failed: {gate}", "  ") for gate in failed]
    lines += [wrap_text(f"note: {note}", "  ") for note in report.notes]
    if report.verdict:
        lines += [""] if report.notes else []
        lines.append(wrap_text(report.verdict))
    return "\n".join(lines)


def show_layer_errors(layers: "Sequence[LayerError]") -> None:
    """Print the errors of layers, and the layers that make the largest."""
    from qconvert.core import number_format
    from qconvert.measure import layer_errors
    from qconvert.report import tables

    worst = [
        f"`{layer_errors.layer_label(layer)}` ({number_format.with_db(layer.made_db or 0.0)})"
        for layer in layer_errors.worst_layers(layers, 3)
    ]
    if worst:
        summary = f"the largest errors are made by {', '.join(worst)}"
    elif all(layer.made_db == math.inf for layer in layers):
        summary = "there is no error"
    else:
        summary = "it is unknown which layers make an error"
    print_tables(tables.layer_table(layers))
    write(wrap_text(summary))


def print_tables(*tables: TextTable) -> None:
    """Print tables, each with its title and footnotes."""
    for table in tables:
        write(table.title)
        write_table(table)
        for note in table.footnotes:
            write(wrap_text(note, "  "))
        write("")


def show_coverage(layers: "Mapping[str, LayerPlan]", precision: str = "int8") -> None:
    """Print a row per operator, the most frequent first, and why nodes are not quantized."""
    rows = []
    for operator, count in Counter(layer.op for layer in layers.values()).most_common():
        nodes = {name: layer for name, layer in layers.items() if layer.op == operator}
        reasons = Counter(layer.left for layer in nodes.values() if layer.left)
        # The most frequent reason first; a single node is named.
        why = [
            f"{left if left > 1 else next(n for n in nodes if nodes[n].left == reason)}: {reason}"
            for reason, left in reasons.most_common()
        ]
        if len(why) > 3:
            why[3:] = [f"and {len(why) - 3} more reasons"]
        why = why or list(dict.fromkeys(layer.note for layer in nodes.values() if layer.note))
        in_float = reasons.total()
        rows.append([operator, f"{count}", f"{count - in_float}", f"{in_float}", "; ".join(why)])
    columns = make_columns("l r r r w", "operator", "nodes", precision, "left", "why")
    write_table(TextTable(columns, rows))


def model_file_json(path: Path) -> dict[str, object]:
    """Return path, files, size and hash of a written ONNX model, external data included."""
    from qconvert.core import onnx_io
    from qconvert.core.cache import file_sha256

    files, size = list(map(str, onnx_io.model_files(path))), onnx_io.saved_bytes(path)
    return {"model": str(path), "files": files, "bytes": size, "sha256": file_sha256(path)}


def rich_console(*, stderr: bool = False) -> "Console":
    """Return a console of stdout or stderr."""
    from rich.console import Console

    # Rich assumes 80 columns for a pipe; a pipe needs all of them.
    width = None if stderr or sys.stdout.isatty() else 100_000
    return Console(stderr=stderr, width=width, highlight=False, markup=False, emoji=False)


def style_stderr(text: str, code: str) -> str:
    """Colour text for stderr if it is a terminal and NO_COLOR is unset."""
    use_colour = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
    return f"\x1b[1;{code}m{text}\x1b[0m" if use_colour else text


class ProgressDisplay:
    """Shows the running step: a changing line on a terminal, a line every few seconds in a log."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._status: Status | None = None
        self._step, self._last_done = "", 0
        self._started, self._first_done, self._last_logged = 0.0, 0, 0.0

    def close(self) -> None:
        """Remove the changing line."""
        if self._status is not None:
            self._status.stop()
            self._status = None

    def update(self, progress: "Progress") -> None:
        """Show a running step, or a line for a finished one and its result."""
        if progress.seconds is not None:
            self.close()
            duration = f"{'cached, ' if progress.stored else ''}{progress.seconds:.1f} s"
            paragraphs = sanitize_text(progress.text).splitlines()
            first, *rest = [line for text in paragraphs for line in textwrap.wrap(text, 50)]
            head = f"  {style_stderr('✓', '32')} {progress.step:<9} {first:<50} {duration:>14}"
            _write_stderr("\n".join([head, *(f"    {'':<9} {line}" for line in rest)]))
            return
        now = self._clock()
        if progress.step != self._step or progress.done < self._last_done:
            self._step, self._first_done = progress.step, progress.done
            self._started = self._last_logged = now
        self._last_done = progress.done
        text = f"{progress.step:<9} {sanitize_text(progress.text)}"
        if progress.total:
            text += f" {progress.done}/{progress.total}"
            done, seconds = progress.done - self._first_done, now - self._started
            if done > 0 and seconds > 0:
                left = round((progress.total - progress.done) * seconds / done)
                speed = f", {done / seconds:.0f}/s" if done >= seconds else ""
                text += f"{speed}, {left // 60}:{left % 60:02} left"
        if sys.stderr.isatty() and not os.environ.get("QCONVERT_NO_PROGRESS"):
            if self._status is not None:
                self._status.update(f"{text} …")
            elif VERBOSITY.level >= 0:
                self._status = rich_console(stderr=True).status(f"{text} …")
                self._status.start()
        elif progress.total and now - self._last_logged >= LOG_INTERVAL_SECONDS:
            self._last_logged = now
            info(f"    {text}")


PROGRESS = ProgressDisplay()
