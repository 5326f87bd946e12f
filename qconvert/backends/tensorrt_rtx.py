"""TensorRT for RTX: engines are built anywhere, and run on RTX GPUs."""

import subprocess
import sys

from qconvert.backends.base import Availability, Wants
from qconvert.backends.installed import Installed
from qconvert.backends.tensorrt import scheme
from qconvert.backends.versions import is_rtx

PLUGIN = "onnxruntime-ep-nv-tensorrt-rtx-cu13"
EXTRA = 'pip install "qconvert[tensorrt-rtx]"'

_TRY = """
import tensorrt_rtx
assert tensorrt_rtx.Builder(tensorrt_rtx.Logger(tensorrt_rtx.Logger.ERROR))
"""


def probe(installed: Installed) -> Availability:
    """Say whether engines can be built here (no GPU needed), and whether they run here."""
    version = installed.libraries("tensorrt-rtx")
    if not version:
        reason = "tensorrt-rtx-cu13 is not installed"
        return Availability(False, False, reason=reason, cure=EXTRA)
    version = f"tensorrt-rtx {version}"
    if trouble := _why_not():
        cure = "pip install --force-reinstall tensorrt-rtx-cu13"
        return Availability(False, False, version, trouble, cure)
    reason, cure = _why_not_run(installed)
    return Availability(True, not reason, version, reason, cure)


def _why_not_run(installed: Installed) -> tuple[str, str]:
    if installed.no_driver:
        return f"{installed.no_driver}; engines run on RTX GPUs", ""
    if not any(is_rtx(gpu.capability) for gpu in installed.gpus):
        names = ", ".join(f"{gpu.name} ({_dotted(gpu.capability)})" for gpu in installed.gpus)
        return f"no RTX GPU of compute capability 8.6, 8.9 or 12: {names}", ""
    if PLUGIN not in installed.packages:
        return "the provider plugin is not installed", EXTRA
    if "onnxruntime-gpu" in installed.packages:
        cure = f"pip uninstall -y onnxruntime-gpu && {EXTRA}"
        return "the provider plugin needs plain onnxruntime, not onnxruntime-gpu", cure
    return "", ""


def _why_not() -> str:
    done = subprocess.run(
        [sys.executable, "-P", "-c", _TRY], capture_output=True, text=True, timeout=120, check=False
    )
    said = done.stderr.strip().splitlines()
    return "" if done.returncode == 0 else (said[-1] if said else f"code {done.returncode}")


def _dotted(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"


def wants() -> Wants:
    """Say what graphs TensorRT for RTX takes: the same as TensorRT."""
    note = "the support matrix of TensorRT for RTX names no INT8 convolution: measure before use"
    return Wants(scheme("tensorrt-rtx"), ("fp32", "fp16", "bf16"), build_rest="fp16", notes=(note,))
