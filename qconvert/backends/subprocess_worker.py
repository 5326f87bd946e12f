"""Run native code in a child process: a crash, or running out of memory, ends only the child."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

PACKAGE_ROOT = Path(__file__).resolve().parents[2]

# On Linux: when memory runs out, the kernel kills the child rather than the waiting parent.
OOM_PREAMBLE = """
try:
    open("/proc/self/oom_score_adj", "w").write("1000")
except OSError:
    pass
"""


@dataclass(frozen=True)
class ChildResult:
    """The exit code, output and error lines of a finished child."""

    code: int
    stdout: str
    lines: Sequence[str]

    @property
    def failure(self) -> str:
        """Why the child failed, nothing if it did not."""
        return describe_exit(self.code, self.lines) if self.code else ""


def start_python(code: str, *args: str, stderr: int = subprocess.PIPE) -> "subprocess.Popen[bytes]":
    """Start this Python on some code; files of the working folder cannot shadow modules."""
    path = os.pathsep.join(filter(None, (str(PACKAGE_ROOT), os.environ.get("PYTHONPATH"))))
    return subprocess.Popen(
        [sys.executable, "-P", "-c", OOM_PREAMBLE + code, *args],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        env={**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "ignore"},
    )


def run_python(code: str, *args: str, seconds: float) -> ChildResult:
    """Run some code to its end."""
    with start_python(code, *args) as process:
        try:
            stdout, stderr = process.communicate(timeout=seconds)
        finally:
            process.kill()
    return ChildResult(process.returncode, stdout.decode(errors="replace"), _lines(stderr))


def read_log(log: IO[bytes]) -> list[str]:
    """Return the lines of a log file that a child has written."""
    log.seek(0)
    return _lines(log.read())


def describe_exit(code: int, last_lines: Sequence[str] = ()) -> str:
    """Explain why a process failed: its signal, else its last line, else its exit code."""
    if code == -signal.SIGKILL:
        return "killed by signal 9, most likely for lack of memory"
    if code < 0:
        names = {number.value: number.name for number in signal.Signals}
        return f"signal {-code} ({names.get(-code, 'unknown')})"
    return last_lines[-1] if last_lines else f"exit code {code}"


def _lines(text: bytes) -> list[str]:
    lines = text.decode(errors="replace").splitlines()
    return [line.strip() for line in lines if line.strip()]
