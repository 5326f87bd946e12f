"""The progress of a run: a changing line on a terminal, plain lines in a log."""

import pytest

from qconvert.cli.console import ProgressDisplay
from qconvert.core.progress import Progress
from tests.cli.test_console import on_terminal

SCRIPT = """
from qconvert.cli.console import ProgressDisplay
from qconvert.core.progress import Progress
display = ProgressDisplay()
display.update(Progress("load", "reading net.onnx"))
display.update(Progress("load", "net.onnx, " + "a long story, " * 8 + "\\na note", 1.25))
display.update(Progress("calibrate", "images", done=4, total=16))
display.update(Progress("prepare", "done before", 0.01, stored=True))
"""


def test_finished_steps_fit_80_columns_and_show_results() -> None:
    shown = on_terminal(80, SCRIPT, QCONVERT_NO_PROGRESS="1", NO_COLOR="1")
    lines = shown.splitlines()
    assert lines[0].startswith("  ✓ load      net.onnx, a long story")
    assert lines[0].endswith("1.2 s")
    assert lines[-2].strip() == "a note"
    assert lines[-1].endswith("cached, 0.0 s")
    assert max(map(len, lines)) <= 80
    assert "reading" not in shown


def test_terminal_shows_the_running_step() -> None:
    shown = on_terminal(80, SCRIPT)
    assert "reading net.onnx" in shown
    assert "images 4/16" in shown


def test_log_has_finished_steps_and_a_line_every_few_seconds(
    capsys: pytest.CaptureFixture[str],
) -> None:
    now = 100.0
    display = ProgressDisplay(lambda: now)
    display.update(Progress("calibrate", "images", done=0, total=300))
    for done in (50, 100, 150):
        now += 6.0
        display.update(Progress("calibrate", "images", done=done, total=300))
    display.update(Progress("calibrate", "300 images", 36.0))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "    calibrate images 100/300, 8/s, 0:24 left"
    assert lines[1].startswith("  ✓ calibrate 300 images")
    assert len(lines) == 2


def test_progress_speed_restarts_with_count(capsys: pytest.CaptureFixture[str]) -> None:
    now = 100.0
    display = ProgressDisplay(lambda: now)
    for text in ("batch 1", "batch 8"):
        for done in (0, 50, 100):
            now += 11.0
            display.update(Progress("bench", text, done=done, total=100))
    lines = capsys.readouterr().err.splitlines()
    assert lines[-2:] == [
        "    bench     batch 8 50/100, 5/s, 0:11 left",
        "    bench     batch 8 100/100, 5/s, 0:00 left",
    ]
