"""Every exit code has one meaning, and errors are readable messages."""

import io
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from qconvert.cli.error_boundary import run_guarded
from qconvert.core.errors import GateFailed, QConvertError, Terminated, Unavailable, UsageError
from tests.conftest import Outcome


def raising(error: BaseException) -> click.Command:
    @click.command()
    def command() -> None:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (GateFailed("too slow", hint="fix it"), 1),
        (UsageError("wrong option", hint="fix it"), 2),
        (click.UsageError("No such option"), 2),
        (QConvertError("no such operator", hint="fix it"), 3),
        (MemoryError(), 3),
        (OSError(12, "Cannot allocate memory"), 3),
        (RuntimeError("can't start new thread"), 3),
        (SystemError("error return without exception set"), 3),
        (ImportError("x.so: failed to map segment from shared object"), 3),
        (OSError(28, "No space left on device", "/out/x.onnx"), 3),
        (RuntimeError("Symlink loop from '/out/x.onnx'"), 3),
        (OSError(40, "Too many levels of symbolic links", "/out/x.onnx"), 3),
        (UnicodeEncodeError("utf-8", "a\nb = '\udcff'", 7, 8, "surrogates not allowed"), 3),
        (Unavailable("no GPU", hint="fix it"), 4),
        (KeyboardInterrupt(), 130),
        (click.Abort(), 130),
        (Terminated(), 143),
        (SystemExit(0), 70),
    ],
)
def test_exception_maps_to_its_exit_code_without_traceback(
    error: BaseException, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_guarded(raising(error), []) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert code == 70 or "Traceback" not in captured.err


def test_bug_exits_with_70_and_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_guarded(raising(ZeroDivisionError("oops")), []) == 70
    message = capsys.readouterr().err
    assert "Traceback" in message
    assert "ZeroDivisionError: oops" in message
    assert message.endswith("this is a bug in qconvert; please report it with the text above\n")


def test_out_of_memory_while_reporting_prints_a_short_error(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class FullMemory(io.StringIO):
        def write(self, text: str) -> int:
            raise MemoryError

    monkeypatch.setattr(sys, "stderr", FullMemory())
    assert run_guarded(raising(ZeroDivisionError("oops")), []) == 3
    assert capfd.readouterr().err.startswith("error: not enough memory\n\nhint: ")


def test_error_shows_details_causes_and_hint(capsys: pytest.CaptureFixture[str]) -> None:
    error = QConvertError("it broke", details=["line 3: x", "line 4: y"], hint="fix it")
    error.__cause__ = OSError("libnvinfer.so.10: cannot open")
    assert run_guarded(raising(error), []) == 3
    assert capsys.readouterr().err == (
        "error: it broke\n"
        "  line 3: x\n"
        "  line 4: y\n"
        "  caused by: libnvinfer.so.10: cannot open\n"
        "\n"
        "hint: fix it\n"
    )


def test_control_characters_in_errors_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    run_guarded(raising(QConvertError("`a\x1b[2Jb` is bad", hint="no\x07")), [])
    message = capsys.readouterr().err
    assert message == "error: `a\\x1b[2Jb` is bad\n\nhint: no\\x07\n"


def test_unknown_option_error_points_to_help(qconvert: Callable[..., Outcome]) -> None:
    outcome = qconvert("export", "--opsett", "3")
    assert outcome.code == 2
    assert outcome.err.startswith("error: no such option '--opsett'")
    assert outcome.err.endswith("hint: see `qconvert export --help`\n")


def test_quiet_prints_errors_and_qq_prints_nothing(
    qconvert: Callable[..., Outcome], tiny: Path
) -> None:
    assert qconvert("export", "none.onnx", "-q").err.startswith("error: ")
    assert qconvert("export", "none.onnx", "-qq") == Outcome(2, "", "")
    assert qconvert("export", tiny, "-q", "-o", "x.onnx") == Outcome(0, "", "")
    assert Path("x.onnx").exists()


SLEEPER = """
import sys, time
from qconvert.cli.error_boundary import run_guarded
import click

@click.command()
def command():
    print("ready", flush=True)
    time.sleep(60)

sys.exit(run_guarded(command, []))
"""


@pytest.mark.parametrize(
    ("sent", "code", "expected"),
    [(signal.SIGINT, 130, "interrupted; finished steps are kept"), (signal.SIGTERM, 143, "")],
)
def test_signal_ends_a_process_with_its_code(
    sent: signal.Signals, code: int, expected: str
) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", SLEEPER], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    time.sleep(0.2)  # until it sleeps inside the command
    child.send_signal(sent)
    _, stderr = child.communicate(timeout=30)
    assert child.returncode == code
    assert expected in stderr
    assert "Traceback" not in stderr


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_library_error_caused_by_signal_is_not_a_bug(
    sent: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    @click.command()
    def command() -> None:
        try:
            signal.raise_signal(sent)
        except BaseException:
            raise ImportError("initialization failed") from None  # as native modules do

    assert run_guarded(command, []) == 128 + sent
    assert "bug" not in capsys.readouterr().err


def test_ignored_signal_stays_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert run_guarded(raising(SystemExit(0)), []) == 70
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.slow
def test_closed_stdout_pipe_is_not_an_error(tiny: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as closed:
        process = subprocess.run(
            [sys.executable, "-m", "qconvert", "inspect", str(tiny)],
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (process.returncode, process.stderr) == (0, "")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "code"),
    [
        ("cache >&-", 0),
        ("cache 2>&-", 0),
        ("cache <&- >&- 2>&-", 0),
        ("inspect none.onnx 2>&-", 2),
        ("inspect none.onnx <&- >&- 2>&-", 2),
        ("--help >/dev/full", 3),
    ],
)
def test_closed_or_full_streams_keep_the_exit_code(more: str, code: int) -> None:
    if "/dev/full" in more and not Path("/dev/full").exists():
        pytest.skip("only Linux has /dev/full")
    line = f"{shlex.quote(sys.executable)} -m qconvert {more}"
    process = subprocess.run(line, shell=True, capture_output=True, text=True, check=False)
    assert process.returncode == code, process.stderr
    assert "Traceback" not in process.stderr
    assert "Exception ignored" not in process.stderr
