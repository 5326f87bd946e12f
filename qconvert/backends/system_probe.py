"""Detect what this machine has (packages, NVIDIA driver, GPUs) without importing anything heavy."""

import ctypes
import importlib.metadata
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
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

# What the fake driver of tests/gpu_lab calls its devices; reports say that they are none.
SIMULATED_GPU = "Simulated GPU"


# How TensorRT, CUDA and ONNX Runtime's allocator say that the memory of a GPU is full.
FULL_GPU = re.compile("out ?of ?memory|failed to allocate memory", re.IGNORECASE)


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU as the driver names it."""

    name: str
    capability: tuple[int, int]

    def __str__(self) -> str:
        return f"{self.name} {self.capability[0]}.{self.capability[1]}"


@dataclass(frozen=True)
class Installed:
    """Everything about a machine that decides which backends work on it.

    `driver` is the release of NVIDIA's driver in words, `cuda` the newest CUDA that it runs.
    """

    packages: Mapping[str, str] = field(default_factory=dict)
    driver: str = ""
    driver_error: str = ""
    gpus: tuple[Gpu, ...] = ()
    cuda: tuple[int, ...] = ()

    @property
    def runtimes(self) -> tuple[str, ...]:
        """The ONNX Runtime packages; more than one is a conflict."""
        return tuple(name for name in RUNTIMES if name in self.packages)

    def gpu(self, device: int) -> Gpu | None:
        """Return a GPU by its number."""
        return self.gpus[device] if device < len(self.gpus) else None

    def library_version(self, product: str) -> str:
        """Return the version of an NVIDIA wheel, whose name may end in a CUDA version."""
        pattern = re.compile(rf"{product}(-cu\d+)?(-libs|-bindings)?")
        versions = [version for name, version in self.packages.items() if pattern.fullmatch(name)]
        return max(versions, default="")


def detect() -> Installed:
    """Detect what this machine has: packages, the driver and its CUDA, GPUs."""
    packages = installed_packages()
    library = "nvcuda.dll" if platform.system() == "Windows" else "libcuda.so.1"
    try:
        cuda = ctypes.CDLL(library)
    except OSError:
        return Installed(packages, "", f"no NVIDIA driver: {library} not found")
    if code := cuda.cuInit(0):
        text = ctypes.c_char_p()
        cuda.cuGetErrorString(code, ctypes.byref(text))
        reason = f" ({text.value.decode(errors='replace')})" if text.value else ""
        return Installed(
            packages, "", f"the NVIDIA driver does not start: cuInit returns {code}{reason}"
        )
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
    newest = (version.value // 1000, version.value % 1000 // 10)
    driver = f"CUDA {newest[0]}.{newest[1]}"
    if release := _driver_release():
        driver = f"{release} ({driver})"
    error = "" if gpus else "the NVIDIA driver finds no GPU"
    return Installed(packages, driver, error, tuple(gpus), newest)


def _driver_release() -> str:
    """Return the release of NVIDIA's driver as NVML knows it, such as 580.95.05, or nothing."""
    release = ctypes.create_string_buffer(80)
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
        if nvml.nvmlInit_v2() or nvml.nvmlSystemGetDriverVersion(release, len(release)):
            return ""
    except (OSError, AttributeError):
        return ""
    return release.value.decode(errors="replace")


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


def provider_error(provider: str, install: str) -> tuple[str, str]:
    """Run a tiny network on a provider in a child process; return why that failed, and the cure.

    A driver or a library that does not fit can crash the process.
    """
    job = "qconvert.backends.ort:prove_provider"
    reason, _ = subprocess_worker.why_it_fails(job, provider, product=provider)
    reason = reason.removeprefix(f"{provider} cannot load `probe.onnx`: ")
    if FULL_GPU.search(reason):
        install = "`nvidia-smi` shows what uses the memory of the GPU: end some of it"
    return reason, install if reason else ""
