"""Which releases fit together, as tables to read."""

from dataclasses import dataclass


@dataclass(frozen=True)
class LinkedLibraries:
    """What one range of onnxruntime-gpu releases from the package index links against."""

    since: tuple[int, int]
    tensorrt: int
    cuda: int
    cudnn: int


# Newest first. Read from the NEEDED entries of the wheels' provider libraries. The source of
# ONNX Runtime 1.27 and newer can be built against TensorRT 11; the published wheels are not.
ONNXRUNTIME_GPU = (
    LinkedLibraries(since=(1, 27), tensorrt=10, cuda=13, cudnn=9),
    LinkedLibraries(since=(1, 20), tensorrt=10, cuda=12, cudnn=9),
)


@dataclass(frozen=True)
class NetworkTypes:
    """Where the TensorRT provider of a range of onnxruntime-gpu takes the types of a network from.

    With `flags` it builds weakly typed networks: precision comes from `trt_fp16_enable` and such,
    and the graph must be in float32. Without, types are the graph's, and no flag is given.
    """

    since: tuple[int, int]
    tensorrt: int
    flags: bool


# Newest first. 1.27 to 1.31 as published ask TensorRT 10 for a network without any flag, strong
# typing included: read from the machine code of 1.31, and reported as a regression of 1.27. Before,
# a network was strongly typed unless a precision flag was given: read from the provider's source.
# TensorRT 11 knows nothing else.
NETWORK_TYPES = (
    NetworkTypes(since=(1, 27), tensorrt=11, flags=False),
    NetworkTypes(since=(1, 27), tensorrt=10, flags=True),
    NetworkTypes(since=(1, 20), tensorrt=10, flags=False),
)

# GPUs that TensorRT-RTX engines run on, by compute capability; every one from 12.0 on counts.
RTX_CAPABILITIES = ((8, 6), (8, 9))
RTX_CAPABILITY_FLOOR = (12, 0)


def major_minor(version: str) -> tuple[int, int]:
    """Return the first two numbers of a version."""
    parts = [int(part) for part in version.split(".")[:2] if part.isdigit()]
    major, minor = [*parts, 0, 0][:2]
    return major, minor


def linked_libraries(onnxruntime_gpu: str) -> LinkedLibraries | None:
    """Return what this release links against, None where it is too old to know."""
    version = major_minor(onnxruntime_gpu)
    return next((row for row in ONNXRUNTIME_GPU if version >= row.since), None)


def network_types(onnxruntime_gpu: str, tensorrt: str) -> NetworkTypes | None:
    """Return the row for a pair of releases, None for one that is not known to work."""
    runtime, major = major_minor(onnxruntime_gpu), major_minor(tensorrt)[0]
    fitting = (row for row in NETWORK_TYPES if runtime >= row.since and major == row.tensorrt)
    return next(fitting, None)


def is_rtx(capability: tuple[int, int]) -> bool:
    """Whether TensorRT-RTX engines run on a GPU of this compute capability."""
    return capability in RTX_CAPABILITIES or capability >= RTX_CAPABILITY_FLOOR
