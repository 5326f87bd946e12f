"""Run native code in a child process, so that a crash or lack of memory ends only the child."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
    """The exit code and output of a finished child; `failure` is empty if it did not fail."""

    code: int
    stdout: str
    error_lines: Sequence[str]
    failure: str


@dataclass(frozen=True)
class Child:
    """A running child, killed when its block ends."""

    process: "subprocess.Popen[bytes]"
    stdin: IO[bytes]
    stdout: IO[bytes]
    log: IO[bytes]

    def error_lines(self) -> list[str]:
        """Return the lines that the child has written to stderr."""
        self.log.seek(0)
        lines = self.log.read().decode(errors="replace").splitlines()
        return [line.strip() for line in lines if line.strip()]


@contextmanager
def start_python(code: str, *args: str) -> Iterator[Child]:
    """Start this Python on some code; files of the working folder cannot shadow modules."""
    path = os.pathsep.join(filter(None, (str(PACKAGE_ROOT), os.environ.get("PYTHONPATH"))))
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(
            [sys.executable, "-P", "-c", OOM_PREAMBLE + code, *args],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env={**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "ignore"},
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield Child(process, process.stdin, process.stdout, log)
        finally:
            process.kill()


def run_python(code: str, *args: str, seconds: float, stdin: bytes = b"") -> ChildResult:
    """Run some code to its end."""
    with start_python(code, *args) as child:
        stdout, _ = child.process.communicate(stdin, timeout=seconds)
        status, lines = child.process.returncode, child.error_lines()
    failure = describe_exit(status, lines) if status else ""
    return ChildResult(status, stdout.decode(errors="replace"), lines, failure)


def describe_exit(code: int, last_lines: Sequence[str] = ()) -> str:
    """Explain why a process failed: its signal, else its last line, else its exit code."""
    if code == -signal.SIGKILL:
        return "killed by signal 9, most likely because memory ran out"
    if code < 0:
        names = {number.value: number.name for number in signal.Signals}
        return f"signal {-code} ({names.get(-code, 'unknown')})"
    return last_lines[-1] if last_lines else f"exit code {code}"
