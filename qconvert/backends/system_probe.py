"""Detect what this machine has (packages, NVIDIA driver, GPUs) without importing anything heavy."""

import ctypes
import importlib.metadata
import platform
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import MappingProxyType

from qconvert.backends import subprocess_worker

# All of these write the module folder `onnxruntime`; two of them overwrite each other's files.
RUNTIMES = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-directml",
    "onnxruntime-openvino",
    "onnxruntime-qnn",
    "onnxruntime-training",
)

# Flags of /proc/cpuinfo, and the instructions for 8-bit integers that they announce.
INTEGER_FLAGS = {
    "avx512_vnni": "VNNI",
    "avx_vnni": "VNNI",
    "amx_int8": "AMX",
    "asimddp": "dot product",
}

# What the fake driver of tests/gpu_lab calls its devices; reports say that they are none.
SIMULATED_GPU = "Simulated GPU"

PROBE_TIMEOUT_SECONDS = 120

_PROBE_SCRIPT = """
import sys
import numpy, onnx.parser, onnxruntime
name = sys.argv[1]
model = onnx.parser.parse_model(
    '<ir_version: 10, opset_import: ["": 20]> '
    'probe (float[1, 4] x) => (float[1, 4] y) { y = Relu (x) }'
)
if name not in onnxruntime.get_available_providers():
    sys.exit(f"this ONNX Runtime was built without {name}")
if hasattr(onnxruntime, "preload_dlls"):
    onnxruntime.preload_dlls()
if name == "TensorrtExecutionProvider":
    import tensorrt  # loads libnvinfer, which the provider then finds
onnxruntime.disable_telemetry_events()
options = onnxruntime.SessionOptions()
options.log_severity_level = 4
if name != "CPUExecutionProvider":
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=[name])
session.disable_fallback()
if session.get_providers()[0] != name:
    sys.exit(f"{name} did not load")
output = session.run(None, {"x": numpy.array([[-1, 0, 1, 2]], numpy.float32)})[0]
if output.tolist() != [[0, 0, 1, 2]]:
    sys.exit(f"{name} computes wrong numbers: {output.tolist()}")
"""


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU as the driver names it."""

    name: str
    capability: tuple[int, int]

    def __str__(self) -> str:
        return f"{self.name} {self.capability[0]}.{self.capability[1]}"


@dataclass(frozen=True)
class Installed:
    """Everything about a machine that decides which backends work on it."""

    packages: Mapping[str, str] = field(default_factory=dict)
    driver: str = ""
    driver_error: str = ""
    gpus: tuple[Gpu, ...] = ()

    @property
    def runtimes(self) -> tuple[str, ...]:
        """The ONNX Runtime packages; more than one is a conflict."""
        return tuple(name for name in RUNTIMES if name in self.packages)

    def library_version(self, product: str) -> str:
        """Return the version of an NVIDIA wheel, whose name may end in a CUDA version."""
        pattern = re.compile(rf"{product}(-cu\d+)?(-libs)?")
        versions = [version for name, version in self.packages.items() if pattern.fullmatch(name)]
        return max(versions, default="")


def detect() -> Installed:
    """Detect what this machine has: packages, the CUDA version of the driver, GPUs."""
    packages = installed_packages()
    library = "nvcuda.dll" if platform.system() == "Windows" else "libcuda.so.1"
    try:
        cuda = ctypes.CDLL(library)
    except OSError:
        return Installed(packages, "", f"no NVIDIA driver: {library} not found")
    if code := cuda.cuInit(0):
        return Installed(packages, "", f"the NVIDIA driver does not start: cuInit returns {code}")
    version, count = ctypes.c_int(), ctypes.c_int()
    cuda.cuDriverGetVersion(ctypes.byref(version))
    cuda.cuDeviceGetCount(ctypes.byref(count))
    gpus = []
    for index in range(count.value):
        device, name = ctypes.c_int(), ctypes.create_string_buffer(128)
        cuda.cuDeviceGet(ctypes.byref(device), index)
        cuda.cuDeviceGetName(name, len(name), device)
        major, minor = ctypes.c_int(), ctypes.c_int()
        # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
        cuda.cuDeviceGetAttribute(ctypes.byref(major), 75, device)
        cuda.cuDeviceGetAttribute(ctypes.byref(minor), 76, device)
        gpus.append(Gpu(name.value.decode(errors="replace"), (major.value, minor.value)))
    driver = f"CUDA {version.value // 1000}.{version.value % 1000 // 10}"
    return Installed(
        packages, driver, "" if gpus else "the NVIDIA driver finds no GPU", tuple(gpus)
    )


@cache
def installed_packages() -> Mapping[str, str]:
    """Return the versions of all installed packages, read once in a process."""
    # Every access to the metadata of a distribution reads and parses its file anew.
    packages = (package.metadata for package in importlib.metadata.distributions())
    return MappingProxyType(
        {
            re.sub(r"[-_.]+", "-", metadata["Name"]).lower(): metadata["Version"]
            for metadata in packages
            if "Name" in metadata and "Version" in metadata
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


def provider_error(provider: str) -> str:
    """Run a tiny network on a provider in a child process; return why that failed, or nothing.

    A driver or a library that does not fit can crash the process.
    """
    try:
        child = subprocess_worker.run_python(_PROBE_SCRIPT, provider, seconds=PROBE_TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        return f"{provider} did not finish within {PROBE_TIMEOUT_SECONDS} s"
    return f"{provider} crashed: {child.failure}" if child.code < 0 else child.failure
