"""Steps of a run: a changing line on a terminal, plain lines in a log."""

import pytest

from qconvert.cli.progress import ProgressDisplay
from qconvert.core.progress import Progress
from tests.cli.test_console import on_terminal

STEPS = """
from qconvert.cli.progress import Steps
from qconvert.core.progress import Progress
with Steps() as steps:
    steps.tell(Progress("load", "reading net.onnx"))
    steps.tell(Progress("load", "net.onnx, " + "a long story, " * 8 + "\\na note", 1.25))
    steps.tell(Progress("calibrate", "images", done=4, total=16))
    steps.tell(Progress("prepare", "done before", 0.01, stored=True))
"""


def test_steps_fit_80_columns_and_show_what_they_made() -> None:
    shown = on_terminal(80, STEPS, QCONVERT_NO_PROGRESS="1", NO_COLOR="1")
    lines = shown.splitlines()
    assert lines[0].startswith("  ✓ load      net.onnx, a long story")
    assert lines[0].endswith("1.2 s")
    assert lines[-2].strip() == "a note"
    assert lines[-1].endswith("stored, 0.0 s")
    assert max(map(len, lines)) <= 80
    assert "reading" not in shown


def test_a_terminal_sees_what_is_at_work() -> None:
    shown = on_terminal(80, STEPS)
    assert "reading net.onnx" in shown
    assert "images 4/16" in shown


def test_a_log_gets_finished_steps_and_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr("qconvert.cli.progress.time.monotonic", lambda: now)
    with ProgressDisplay() as steps:
        steps.update(Progress("calibrate", "images", done=0, total=300))
        for done in (50, 100, 150):
            now += 6.0
            steps.update(Progress("calibrate", "images", done=done, total=300))
        steps.update(Progress("calibrate", "300 images", 36.0))
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "    calibrate images 100/300, 8/s, 0:24 left"
    assert told[1].startswith("  ✓ calibrate 300 images")
    assert len(told) == 2


def test_a_count_that_begins_anew_has_a_speed_of_its_own(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr("qconvert.cli.progress.time.monotonic", lambda: now)
    with ProgressDisplay() as steps:
        for text in ("batch 1", "batch 8"):
            for done in (0, 50, 100):
                now += 11.0
                steps.update(Progress("bench", text, done=done, total=100))
    told = capsys.readouterr().err.splitlines()
    assert told[-2:] == [
        "    bench     batch 8 50/100, 5/s, 0:11 left",
        "    bench     batch 8 100/100, 5/s, 0:00 left",
    ]
