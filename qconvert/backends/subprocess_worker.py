"""Run native code in a child process, so that a crash or lack of memory ends only the child."""

import json
import os
import pickle
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import IO, Any

from qconvert.core import atomic, errors
from qconvert.core.errors import QConvertError

# What a job reports while it works: a text, and the fraction done where that is known.
Report = Callable[[str, float | None], None]

PROBE_SECONDS = 120

PACKAGE_ROOT = Path(__file__).resolve().parents[2]

# Jobs that did not fail when `why_it_fails` tried them in this process.
_worked: set[tuple[object, ...]] = set()

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
        text = self.log.read().decode(errors="replace")
        lines = re.sub(r"\x1b\[[\d;]*m", "", text).splitlines()  # without colours
        return [line.strip() for line in lines if line.strip()]


@contextmanager
def start_python(
    code: str, *args: str, folder: Path | None = None, variables: Mapping[str, str] | None = None
) -> Iterator[Child]:
    """Start this Python on some code; files of the working folder cannot shadow modules."""
    folders = (str(PACKAGE_ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep))
    path = os.pathsep.join(str(Path(name).absolute()) for name in folders if name)
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(
            [sys.executable, "-P", "-c", OOM_PREAMBLE + code, *args],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "ignore", **(variables or {})},
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


def call(
    job: str,
    *args: object,
    product: str,
    report: Report = lambda text, fraction: None,
    variables: Mapping[str, str] | None = None,
    seconds: float | None = None,
) -> Any:
    """Return what a function gives in a child process, as JSON holds it.

    `job` is `module:function`, called as `function(*args, report)` in an empty folder of its own,
    so that libraries leave nothing in the user's. An error for the user is raised here again; a
    crash becomes one that names `product`. An exception of `report`, such as Ctrl-C, ends the child.
    """
    code = "from qconvert.backends.subprocess_worker import run_job; run_job()"
    failure: Exception | None = None
    result: Any = None
    with (
        atomic.temporary_folder() as folder,
        start_python(code, folder=folder, variables=variables) as child,
    ):
        timer = threading.Timer(seconds or 0, child.process.kill)
        if seconds:
            timer.start()
        child.stdin.write(pickle.dumps((job, args)))
        child.stdin.close()
        for line in child.stdout:
            match json.loads(line):
                case ["report", text, fraction]:
                    report(text, fraction)
                case ["result", value]:
                    result = value
                case ["error", kind, message, details, hint]:
                    failure = getattr(errors, kind)(message, details=details, hint=hint)
                case ["os error", number, message, path]:
                    failure = OSError(number, message, path)
        status, lines = child.process.wait(), child.error_lines()
        expired = timer.finished.is_set()
        timer.cancel()
    if failure is not None:
        raise failure
    if expired:
        raise QConvertError(
            f"{product} did not finish within {seconds:.0f} s", hint="try again on an idle machine"
        )
    if status > 0:
        raise RuntimeError("\n".join(lines) or f"{product} failed with exit code {status}")
    if status < 0:
        raise QConvertError(
            f"{product} crashed on this graph: {describe_exit(status)}",
            details=lines[-3:],
            hint="leave parts of the graph in float with `--exclude`, or try another backend",
        )
    return result


def why_it_fails(job: str, *args: object, product: str) -> tuple[str, str]:
    """Return why a job fails in a child process and what to do, both empty if it does not fail.

    What worked once is not tried again in this process: starting a child takes a core for a second.
    What failed is, since the user may have cured it.
    """
    if (job, *args) in _worked:
        return "", ""
    try:
        call(job, *args, product=product, seconds=PROBE_SECONDS)
    except QConvertError as error:
        return str(error), error.hint
    except (OSError, RuntimeError) as error:  # a package does not import, as the last line says
        return str(error).splitlines()[-1], ""
    _worked.add((job, *args))
    return "", ""


def run_job() -> None:
    """Do the job requested on stdin, and report on stdout, one JSON list per line."""
    # Output of libraries goes to stderr, so that it does not mix with the messages.
    stdout = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def send(*message: object) -> None:
        stdout.write(json.dumps(message) + "\n")
        stdout.flush()

    job, args = pickle.load(sys.stdin.buffer)  # noqa: S301, the parent wrote it
    module, _, function = job.partition(":")
    try:
        run = getattr(import_module(module), function)
        send("result", run(*args, lambda text, fraction: send("report", text, fraction)))
    except QConvertError as error:
        send("error", type(error).__name__, str(error), error.details, error.hint)
    except OSError as error:
        if error.errno is None:  # from ctypes: a library, which the traceback names
            raise
        send("os error", error.errno, error.strerror, error.filename)


def log_of_child() -> str:
    """Return what this child process has written to stderr so far, which is a file."""
    return os.pread(2, os.fstat(2).st_size, 0).decode(errors="replace")
