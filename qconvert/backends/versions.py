"""Which releases fit together, as tables to read."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Needs:
    """What one range of onnxruntime-gpu releases from the package index links against."""

    since: tuple[int, int]
    tensorrt: int
    cuda: int
    cudnn: int


# Newest first. Read from the NEEDED entries of the wheels' provider libraries. The source of
# ONNX Runtime 1.27 and newer can be built against TensorRT 11; the published wheels are not.
ONNXRUNTIME_GPU = (
    Needs(since=(1, 27), tensorrt=10, cuda=13, cudnn=9),
    Needs(since=(1, 20), tensorrt=10, cuda=12, cudnn=9),
)

# GPUs that TensorRT-RTX engines run on, by compute capability; every one from 12.0 on counts.
RTX_CAPABILITIES = ((8, 6), (8, 9))
RTX_CAPABILITY_FLOOR = (12, 0)


def numbers(version: str) -> tuple[int, int]:
    """Return the first two numbers of a version."""
    parts = [int(part) for part in version.split(".")[:2] if part.isdigit()]
    major, minor = [*parts, 0, 0][:2]
    return major, minor


def needs(onnxruntime_gpu: str) -> Needs | None:
    """Return what this release links against, None where it is too old to know."""
    version = numbers(onnxruntime_gpu)
    return next((row for row in ONNXRUNTIME_GPU if version >= row.since), None)


def is_rtx(capability: tuple[int, int]) -> bool:
    """Whether TensorRT-RTX engines run on a GPU of this compute capability."""
    return capability in RTX_CAPABILITIES or capability >= RTX_CAPABILITY_FLOOR
