"""Run tests as another CPU: `python -m tests.any_cpu Haswell tests/backends/test_cpu.py`.

What the tests start in separate processes runs on the CPU of this host.
"""

import os
import sys
import tempfile
from pathlib import Path

from tests.any_cpu import environment

if __name__ == "__main__":
    name, *words = sys.argv[1:]
    if reason := environment.missing(name):
        raise SystemExit(reason)
    folder = Path(tempfile.mkdtemp(prefix="qconvert-any-cpu-"))
    command = [*environment.python(name, folder), "-m", "pytest", *words]
    os.execvpe(command[0], command, environment.environment(name))
