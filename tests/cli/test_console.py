"""Tables never cut numbers, and drop columns on a narrow terminal."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path

import pytest

from qconvert.cli import console
from qconvert.core.sanitize import sanitize_text
from qconvert.report.table import TextColumn, TextTable

TABLE = TextTable(
    [
        TextColumn("variant"),
        TextColumn("p50 ms", "right"),
        TextColumn("images/s", "right", rank=1),
        TextColumn("a long explanation", rank=2),
    ],
    [
        ["int8 cpu", "1234.56 ± 0.01", "123456", "because of this and of that, at some length"],
        ["fp32 cpu", "2.40 ± 0.12", "1", "nothing"],
    ],
)

SCRIPT = """
import sys
from tests.cli.test_console import TABLE
from qconvert.cli import console
console.write_table(TABLE)
"""


def on_terminal(columns: int, script: str, **environment: str) -> str:
    """Run a script on a real pseudo-terminal of this width and return its output."""
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=child,
        stderr=child,
        cwd=Path(__file__).resolve().parents[2],
        env={
            **{name: os.environ[name] for name in os.environ.keys() - {"COLUMNS", "NO_COLOR"}},
            "TERM": "xterm",
            **environment,
        },
    )
    os.close(child)
    shown = b""
    while True:
        try:
            piece = os.read(parent, 4096)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        shown += piece
    os.close(parent)
    assert process.wait() == 0, shown
    return shown.decode().replace("\r\n", "\n")


@pytest.mark.parametrize(
    ("columns", "titles"),
    [
        (120, ["variant", "p50 ms", "images/s", "a long explanation"]),
        (60, ["variant", "p50 ms", "images/s"]),
        (30, ["variant", "p50 ms"]),
    ],
)
def test_table_on_a_narrow_terminal_drops_columns_and_cuts_no_number(
    columns: int, titles: list[str]
) -> None:
    shown = re.sub(r"\x1b\[[0-9;]*m", "", on_terminal(columns, SCRIPT))
    header = shown.splitlines()[0]
    assert [column.title for column in TABLE.columns if column.title in header] == titles
    assert "1234.56 ± 0.01" in shown
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= columns


def test_piped_table_has_every_column_and_no_colour(capsys: pytest.CaptureFixture[str]) -> None:
    console.write_table(TABLE)
    shown = capsys.readouterr().out
    assert "because of this and of that, at some length" in shown
    assert "\x1b" not in shown
    assert all(line == line.rstrip() for line in shown.splitlines())


ERROR = """
from qconvert.cli import console
from qconvert.core.errors import QConvertError
console.show_error(QConvertError("bad", hint="fix it"))
"""


def test_error_is_coloured_on_a_terminal_unless_no_color_is_set() -> None:
    assert "\x1b[1;31merror:\x1b[0m bad" in on_terminal(80, ERROR)
    assert on_terminal(80, ERROR, NO_COLOR="1") == "error: bad\n\nhint: fix it\n"


def test_json_output_keeps_unicode(capsys: pytest.CaptureFixture[str]) -> None:
    console.write_json({"Δ": [1, None]})
    assert capsys.readouterr().out == '{\n  "Δ": [\n    1,\n    null\n  ]\n}\n'


def test_control_characters_are_escaped(qconvert: Callable[..., object]) -> None:
    assert sanitize_text("a\x1b[31mb\tc\nd") == "a\\x1b[31mb\\x09c\nd"
