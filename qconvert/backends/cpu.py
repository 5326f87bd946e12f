"""ONNX Runtime's CPU provider."""

import os
import platform

from qconvert.backends.base import Availability, Wants
from qconvert.backends.installed import Installed, integer_instructions
from qconvert.backends.trial import why_not
from qconvert.quantize import integer_chains
from qconvert.quantize.scheme import Scheme
from qconvert.scales import Grid

PROVIDER = "CPUExecutionProvider"
ARM = ("arm64", "aarch64")
SATURATES = (
    "this CPU multiplies bytes in 16 bits, which overflow: run the file with the session setting "
    "`session.x64quantprecision` = 1, or quantize with `--weight-bits 7`"
)


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


def wants() -> Wants:
    """Say what graphs the CPU provider takes.

    Its kernels for x86 want unsigned activations and are three times slower on signed ones; those
    for ARM want them signed.
    """
    arm = platform.machine().lower() in ARM
    scheme = Scheme(
        "cpu",
        activations=Grid(8, symmetric=False, signed=arm),
        weights=Grid(8),
        integer_bias=True,
        rules=integer_chains.RULES,
    )
    refused = {"bf16": "ONNX Runtime has no bf16 kernels for the CPU"}
    notes = () if arm or integer_instructions() else (SATURATES,)
    return Wants(scheme, ("fp32",), refused=refused, notes=notes)
