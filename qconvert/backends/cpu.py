"""ONNX Runtime's CPU provider."""

import os

from qconvert.backends.base import Availability
from qconvert.backends.installed import Installed, integer_instructions
from qconvert.backends.trial import why_not

PROVIDER = "CPUExecutionProvider"


def probe(installed: Installed) -> Availability:
    """Say whether the CPU provider runs here."""
    if not installed.runtimes:
        reason = "onnxruntime is not installed"
        return Availability(False, False, reason=reason, cure='pip install "qconvert[cpu]"')
    name = installed.runtimes[0]
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    integer = integer_instructions()
    parts = [f"{name} {installed.packages[name]}", f"{threads} threads", integer]
    version = ", ".join(part for part in parts if part)
    if trouble := why_not(PROVIDER):
        cure = f"pip install --force-reinstall {name}"
        return Availability(False, False, version, trouble, cure)
    return Availability(True, True, version)
