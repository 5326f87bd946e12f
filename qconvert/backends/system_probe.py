"""What this machine has: packages, the NVIDIA driver, its GPUs. Nothing heavy is imported."""

import ctypes
import importlib.metadata
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import MappingProxyType

from qconvert.backends import subprocess_worker

# All of these write the module folder `onnxruntime`; the one installed last wins, half of it.
RUNTIMES = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-directml",
    "onnxruntime-openvino",
    "onnxruntime-qnn",
    "onnxruntime-training",
)

INTEGER_FLAGS = {
    "avx512_vnni": "VNNI",
    "avx_vnni": "VNNI",
    "amx_int8": "AMX",
    "asimddp": "dot product",
}
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU as the driver names it."""

    name: str
    capability: tuple[int, int]


@dataclass(frozen=True)
class Installed:
    """Facts about a machine that decide which backends work on it."""

    packages: Mapping[str, str] = field(default_factory=dict)
    driver: str = ""
    driver_error: str = ""
    gpus: tuple[Gpu, ...] = ()

    @property
    def runtimes(self) -> tuple[str, ...]:
        """Return the ONNX Runtime packages; more than one break each other."""
        return tuple(name for name in RUNTIMES if name in self.packages)

    def version(self, *names: str) -> str:
        """Return the version of the first of these packages that is installed, else nothing."""
        return next((self.packages[name] for name in names if name in self.packages), "")

    def library_version(self, product: str) -> str:
        """Return the version of an NVIDIA wheel whose name carries a CUDA version or none."""
        pattern = re.compile(rf"{product}(-cu\d+)?(-libs)?")
        found = [version for name, version in self.packages.items() if pattern.fullmatch(name)]
        return max(found, default="")


def detect() -> Installed:
    """Look at this machine."""
    driver, no_driver, gpus = _driver()
    return Installed(installed_packages(), driver, no_driver, gpus)


@cache
def installed_packages() -> Mapping[str, str]:
    """Return the versions of the packages that are installed, as they were when first asked."""
    # Each look at a distribution's metadata reads and parses its file anew.
    every = (found.metadata for found in importlib.metadata.distributions())
    return MappingProxyType(
        {
            re.sub(r"[-_.]+", "-", found["Name"]).lower(): found["Version"]
            for found in every
            if "Name" in found and "Version" in found
        }
    )


@cache
def integer_instructions() -> str:
    """Return the instructions this CPU multiplies 8-bit integers with, or nothing."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text(encoding="utf-8", errors="replace") if cpuinfo.exists() else ""
    match = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    flags = set(match[1].split()) if match else set()
    return next((name for flag, name in INTEGER_FLAGS.items() if flag in flags), "")


def _driver() -> tuple[str, str, tuple[Gpu, ...]]:
    library = "nvcuda.dll" if platform.system() == "Windows" else "libcuda.so.1"
    try:
        cuda = ctypes.CDLL(library)
    except OSError:
        return "", f"no NVIDIA driver: {library} not found", ()
    if code := cuda.cuInit(0):
        return "", f"the NVIDIA driver does not start: cuInit answers {code}", ()
    version, count = ctypes.c_int(), ctypes.c_int()
    cuda.cuDriverGetVersion(ctypes.byref(version))
    cuda.cuDeviceGetCount(ctypes.byref(count))
    gpus = tuple(_gpu(cuda, index) for index in range(count.value))
    text = f"CUDA {version.value // 1000}.{version.value % 1000 // 10}"
    return text, "" if gpus else "the NVIDIA driver finds no GPU", gpus


def _gpu(cuda: ctypes.CDLL, index: int) -> Gpu:
    device, name = ctypes.c_int(), ctypes.create_string_buffer(128)
    cuda.cuDeviceGet(ctypes.byref(device), index)
    cuda.cuDeviceGetName(name, len(name), device)
    major, minor = ctypes.c_int(), ctypes.c_int()
    cuda.cuDeviceGetAttribute(ctypes.byref(major), _CAPABILITY_MAJOR, device)
    cuda.cuDeviceGetAttribute(ctypes.byref(minor), _CAPABILITY_MINOR, device)
    return Gpu(name.value.decode(errors="replace"), (major.value, minor.value))


PROBE_TIMEOUT_SECONDS = 120

_PROBE_SCRIPT = """
import sys
import numpy, onnx, onnxruntime
from onnx import helper, TensorProto
name = sys.argv[1]
graph = helper.make_graph(
    [helper.make_node("Relu", ["x"], ["y"])], "try",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
if name not in onnxruntime.get_available_providers():
    sys.exit(f"this ONNX Runtime was built without {name}")
if hasattr(onnxruntime, "preload_dlls"):
    onnxruntime.preload_dlls()
if name == "TensorrtExecutionProvider":
    import tensorrt  # brings libnvinfer into the process, where the provider finds it
onnxruntime.disable_telemetry_events()
options = onnxruntime.SessionOptions()
options.log_severity_level = 4
if name != "CPUExecutionProvider":
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=[name])
session.disable_fallback()
if session.get_providers()[0] != name:
    sys.exit(f"{name} did not load")
out = session.run(None, {"x": numpy.array([[-1, 0, 1, 2]], numpy.float32)})[0]
if out.tolist() != [[0, 0, 1, 2]]:
    sys.exit(f"{name} computes wrong numbers: {out.tolist()}")
"""


def provider_error(provider: str) -> str:
    """Return nothing when the provider runs a network here, else the reason."""
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", _PROBE_SCRIPT, provider],
            capture_output=True,
            text=True,
            timeout=PROBE_TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"{provider} did not answer within {PROBE_TIMEOUT_SECONDS} s"
    if done.returncode == 0:
        return ""
    said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    if done.returncode < 0:
        return f"{provider} did not work: {subprocess_worker.describe_exit(done.returncode)}"
    return subprocess_worker.describe_exit(done.returncode, said)
