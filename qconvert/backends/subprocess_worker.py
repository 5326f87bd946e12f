"""Work that may take its process down, done by a child: native code that reads a stranger's graph.

A crash, or want of memory, then ends the child alone, and is told in one sentence.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

PACKAGE_ROOT = Path(__file__).resolve().parents[2]

# On Linux: when memory runs out, it is the child that the kernel ends, not what waits for it.
OOM_PREAMBLE = """
try:
    open("/proc/self/oom_score_adj", "w").write("1000")
except OSError:
    pass
"""


def start_python(code: str, *args: str, stderr: int = subprocess.PIPE) -> subprocess.Popen[bytes]:
    """Start this Python on some code; files of the working folder cannot pass for modules."""
    path = os.pathsep.join(filter(None, (str(PACKAGE_ROOT), os.environ.get("PYTHONPATH"))))
    return subprocess.Popen(
        [sys.executable, "-P", "-c", OOM_PREAMBLE + code, *args],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        env={**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "ignore"},
    )


def describe_exit(code: int, said: Sequence[str] = ()) -> str:
    """Say how a process ended that did not do its work; `said` are its last lines."""
    if code == -signal.SIGKILL:
        return "it was ended by signal 9, most likely for want of memory"
    if code < 0:
        names = {each.value: each.name for each in signal.Signals}
        return f"it crashed with signal {-code} ({names.get(-code, 'unknown')})"
    return said[-1] if said else f"it ended with code {code}"
