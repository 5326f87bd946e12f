"""What needs what: releases of ONNX Runtime and TensorRT, CUDA, drivers and GPUs."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from qconvert.backends.system_probe import Installed

PACKAGE = "onnxruntime-gpu"


@dataclass(frozen=True)
class CudaRelease:
    """The first driver for a release of CUDA, and the oldest GPUs, by compute capability."""

    driver: int
    capability: tuple[int, int]


CUDA_RELEASES = {12: CudaRelease(525, (5, 0)), 13: CudaRelease(580, (7, 5))}


@dataclass(frozen=True)
class Release:
    """A range of published onnxruntime-gpu releases, and the libraries they link against.

    `tensorrt` is the oldest release that the provider works with. `takes_flags`: the provider
    builds weakly typed networks, for which the graph must be in float32, and the precision comes
    from `trt_fp16_enable` and the like.
    """

    since: tuple[int, ...]
    cuda: int
    tensorrt: tuple[int, ...]
    takes_flags: bool


# Newest first. Libraries were read from the NEEDED entries of the wheels' provider libraries. The
# provider of 1.31 asks for TensorRT 10.14.1 at least: the release it was compiled against. 1.27 to
# 1.31 ask TensorRT for a network without any flag, strong typing included: read from the machine
# code of 1.31, and reported as a regression of 1.27. Before, a network was strongly typed unless a
# precision flag was given, as its source says.
RELEASES = (
    Release((1, 31), cuda=13, tensorrt=(10, 14, 1), takes_flags=True),
    Release((1, 27), cuda=13, tensorrt=(10,), takes_flags=True),
    Release((1, 20), cuda=12, tensorrt=(10,), takes_flags=False),
)
NEWEST = RELEASES[0]


def numbers(version: str) -> tuple[int, ...]:
    """Return the leading numbers of a version: (10, 14, 1, 48) for 10.14.1.48.post1."""
    return tuple(map(int, re.findall(r"\d+", re.match(r"[\d.]*", version)[0])))  # type: ignore[index]


def find_release(installed: Installed) -> Release | None:
    """Return the row of the installed onnxruntime-gpu, None without one or for an older one."""
    version = numbers(installed.packages.get(PACKAGE, ""))
    return next((row for row in RELEASES if version >= row.since), None)


def loads_in_provider(installed: Installed) -> bool:
    """Whether the TensorRT provider works with this TensorRT, or only TensorRT's own runtime does."""
    release, tensorrt = find_release(installed), numbers(installed.library_version("tensorrt"))
    if release is None or not tensorrt:
        return False
    return tensorrt >= release.tensorrt and tensorrt[0] == release.tensorrt[0]


def tensorrt_requirement(release: Release) -> str:
    """Return the requirement of a release for pip: `tensorrt-cu13>=10.14.1,<11`."""
    oldest = ".".join(map(str, release.tensorrt))
    return f"tensorrt-cu{release.cuda}>={oldest},<{release.tensorrt[0] + 1}"


def cuda_of_tensorrt(packages: Mapping[str, str]) -> int:
    """Return the CUDA that the installed TensorRT is made for, as its package's name says."""
    names = (re.fullmatch(r"tensorrt-cu(\d+)(-libs|-bindings)?", name) for name in packages)
    return max((int(name[1]) for name in names if name), default=max(CUDA_RELEASES))


def why_too_old(installed: Installed, cuda: int) -> tuple[str, str]:
    """Return why the driver or all GPUs are too old for a CUDA, and the cure; empty if they are not."""
    needs = CUDA_RELEASES[cuda]
    if installed.cuda and installed.cuda[0] < cuda:
        return (
            f"the NVIDIA driver is too old for CUDA {cuda}: found {installed.driver}",
            f"install NVIDIA's driver {needs.driver} or newer on this machine; a container uses the host's",
        )
    if installed.gpus and all(gpu.capability < needs.capability for gpu in installed.gpus):
        oldest = ".".join(map(str, needs.capability))
        gpus = ", ".join(map(str, installed.gpus))
        return (
            f"CUDA {cuda} needs a GPU of compute capability {oldest} or newer: found {gpus}",
            "use another GPU, or the CPU: `--backend cpu`",
        )
    return "", ""
