"""Peak memory of a fresh process that loads an ONNX file on the CPU and runs it once.

The peak is the resident memory of the whole process, which is what a machine must have; what Python
and its imports take before any model is told beside it, and not subtracted.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from qconvert.backends import subprocess_worker
from qconvert.core.tensors import Tensors

TIMEOUT_SECONDS = 300.0
BYTES_A_KB = 1024

# On Linux the high-water mark is read from the kernel's status of the process: what `getrusage`
# says there is never below what the parent held when it started the child.
_CHILD = """
import json, pathlib, re, resource, sys
import numpy, onnxruntime

def peak():
    status = pathlib.Path("/proc/self/status")
    found = re.search(r"VmHWM:\\s*(\\d+) kB", status.read_text()) if status.exists() else None
    if found:
        return int(found[1]) * 1024
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024

asked = json.loads(sys.argv[1])
before = peak()
onnxruntime.disable_telemetry_events()
options = onnxruntime.SessionOptions()
options.log_severity_level = 4
options.intra_op_num_threads = asked["threads"]
session = onnxruntime.InferenceSession(
    asked["path"], options, providers=["CPUExecutionProvider"]
)
# Ones, not zeros: memory that nobody has written to is not resident.
feeds = {name: numpy.ones(shape, dtype) for name, (shape, dtype) in asked["inputs"].items()}
session.run(None, feeds)
print(json.dumps({"bytes": peak(), "before": before}))
"""


@dataclass(frozen=True)
class PeakMemory:
    """Bytes at most, and before the model was loaded; None with the reason if not measured."""

    bytes: int | None
    before_bytes: int | None = None
    reason: str = ""

    def __post_init__(self) -> None:
        if self.bytes is None and not self.reason:
            raise ValueError("what was not measured has a reason")


def measure_peak(
    model: Path, feeds: Tensors, threads: int = 0, timeout_seconds: float = TIMEOUT_SECONDS
) -> PeakMemory:
    """Run a model once on inputs of the shapes given, in a process of its own; say what it took.

    `threads` of 0 takes one for each core.
    """
    if sys.platform == "win32":
        return PeakMemory(None, reason="Windows does not tell the peak memory of a process")
    asked = {
        # The child runs elsewhere than in a folder whose files could pass for modules.
        "path": str(model.absolute()),
        "threads": threads,
        "inputs": {name: (each.shape, each.dtype.name) for name, each in feeds.items()},
    }
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", _CHILD, json.dumps(asked)],
            capture_output=True,
            text=True,
            timeout=timeout_seconds,
            check=False,
            env={**os.environ, "PYTHONWARNINGS": "ignore"},
        )
    except subprocess.TimeoutExpired:
        return PeakMemory(None, reason=f"the model did not run within {timeout_seconds:g} s")
    if done.returncode:
        return PeakMemory(None, reason=_failure_reason(done.returncode, done.stderr))
    told = json.loads(done.stdout.splitlines()[-1])
    return PeakMemory(told["bytes"], told["before"])


def _failure_reason(code: int, stderr: str) -> str:
    if code < 0:
        return f"the model did not run in a process of its own: {subprocess_worker.describe_exit(code)}"
    said = [line.strip() for line in stderr.splitlines() if line.strip()]
    last = said[-1] if said else f"it ended with code {code}"
    if "[ONNXRuntimeError]" in last:
        # Its sentence comes behind the class, a number and a name for it.
        last = last.split(" : ", 3)[-1]
    return f"the model did not run in a process of its own: {last[:200]}"
