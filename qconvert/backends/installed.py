"""What this machine has: packages, the NVIDIA driver, its GPUs. Nothing heavy is imported."""

import ctypes
import importlib.metadata
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import MappingProxyType

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
    no_driver: str = ""
    gpus: tuple[Gpu, ...] = ()

    @property
    def runtimes(self) -> tuple[str, ...]:
        """Return the ONNX Runtime packages; more than one break each other."""
        return tuple(name for name in RUNTIMES if name in self.packages)

    def version(self, *names: str) -> str:
        """Return the version of the first of these packages that is installed, else nothing."""
        return next((self.packages[name] for name in names if name in self.packages), "")

    def libraries(self, product: str) -> str:
        """Return the version of an NVIDIA wheel whose name carries a CUDA version or none."""
        pattern = re.compile(rf"{product}(-cu\d+)?(-libs)?")
        found = [version for name, version in self.packages.items() if pattern.fullmatch(name)]
        return max(found, default="")


def look() -> Installed:
    """Look at this machine."""
    driver, no_driver, gpus = _driver()
    return Installed(packages(), driver, no_driver, gpus)


@cache
def packages() -> Mapping[str, str]:
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
