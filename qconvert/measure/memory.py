"""Measure the peak memory of a fresh process that loads an ONNX file on the CPU and runs it once.

The peak is the resident memory of the whole process, which is what a machine must have; the memory
of Python and its imports before the model is loaded stands beside it, and is not subtracted.
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from qconvert.backends import subprocess_worker
from qconvert.backends.base import Coverage
from qconvert.core.tensors import Tensors

# On Linux the high-water mark is read from `/proc`: what `getrusage` reports there is never below
# what the parent held when it started the child.
_CHILD = """
import json, pathlib, re, resource, sys
import numpy, onnxruntime

def peak():
    status = pathlib.Path("/proc/self/status")
    mark = re.search(r"VmHWM:\\s*(\\d+) kB", status.read_text()) if status.exists() else None
    if mark:
        return int(mark[1]) * 1024
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024

request = json.loads(sys.argv[1])
before = peak()
onnxruntime.disable_telemetry_events()
options = onnxruntime.SessionOptions()
options.log_severity_level = 4
options.intra_op_num_threads = request["threads"]
session = onnxruntime.InferenceSession(
    request["path"], options, providers=["CPUExecutionProvider"]
)
# Ones, not zeros: memory that nobody has written to is not resident.
feeds = {name: numpy.ones(shape, dtype) for name, (shape, dtype) in request["inputs"].items()}
session.run(None, feeds)
print(json.dumps({"bytes": peak(), "before": before}))
"""


@dataclass(frozen=True)
class PeakMemory:
    """The peak, and the memory before the model was loaded; None with the reason if unmeasured."""

    bytes: int | None
    before_bytes: int | None = None
    reason: str = ""


@dataclass(frozen=True)
class Footprint:
    """Where the nodes of an engine run, and the memory of a process that loads and runs it."""

    coverage: Coverage
    peak: PeakMemory


def measure_peak(
    model: Path, feeds: Tensors, threads: int = 0, timeout_seconds: float = 300.0
) -> PeakMemory:
    """Return the peak of a process that runs a model once, on ones; 0 threads are one per core."""
    if sys.platform == "win32":
        return PeakMemory(None, reason="Windows does not report the peak memory of a process")
    request = {
        "path": str(model.absolute()),
        "threads": threads,
        "inputs": {name: (array.shape, array.dtype.name) for name, array in feeds.items()},
    }
    try:
        child = subprocess_worker.run_python(_CHILD, json.dumps(request), seconds=timeout_seconds)
    except subprocess.TimeoutExpired:
        return PeakMemory(None, reason=f"the model did not run within {timeout_seconds:g} s")
    if problem := child.failure:
        if "[ONNXRuntimeError]" in problem:
            # The message follows the class, a number and a name for it.
            problem = problem.split(" : ", 3)[-1]
        reason = f"the model did not run in a process of its own: {problem[:200]}"
        return PeakMemory(None, reason=reason)
    result = json.loads(child.stdout.splitlines()[-1])
    return PeakMemory(result["bytes"], result["before"])
