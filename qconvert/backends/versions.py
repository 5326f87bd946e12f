"""Tables of which releases of ONNX Runtime, TensorRT, CUDA and which GPUs work together."""

from dataclasses import dataclass


@dataclass(frozen=True)
class LinkedLibraries:
    """The libraries that a range of published onnxruntime-gpu releases links against."""

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

    With `flags` it builds weakly typed networks: the precision comes from `trt_fp16_enable` and the
    like, and the graph must be in float32. Without, the types are those of the graph.
    """

    since: tuple[int, int]
    tensorrt: int
    flags: bool


# Newest first. 1.27 to 1.31 as published ask TensorRT 10 for a network without any flag, strong
# typing included: read from the machine code of 1.31, and reported as a regression of 1.27. Before,
# a network was strongly typed unless a precision flag was given: read from the provider's source.
# TensorRT 11 has strongly typed networks only.
NETWORK_TYPES = (
    NetworkTypes(since=(1, 27), tensorrt=11, flags=False),
    NetworkTypes(since=(1, 27), tensorrt=10, flags=True),
    NetworkTypes(since=(1, 20), tensorrt=10, flags=False),
)

# GPUs that run TensorRT-RTX engines, by compute capability; from 12.0 on all of them do.
RTX_CAPABILITIES = ((8, 6), (8, 9))
RTX_CAPABILITY_FLOOR = (12, 0)


def major_minor(version: str) -> tuple[int, int]:
    """Return the first two numbers of a version."""
    parts = [int(part) for part in version.split(".")[:2] if part.isdigit()]
    major, minor = [*parts, 0, 0][:2]
    return major, minor


def linked_libraries(onnxruntime_gpu: str) -> LinkedLibraries | None:
    """Return what a release links against, None for one older than the table."""
    version = major_minor(onnxruntime_gpu)
    return next((row for row in ONNXRUNTIME_GPU if version >= row.since), None)


def network_types(onnxruntime_gpu: str, tensorrt: str) -> NetworkTypes | None:
    """Return the row for a pair of releases, None if they are not known to work together."""
    runtime, major = major_minor(onnxruntime_gpu), major_minor(tensorrt)[0]
    rows = (row for row in NETWORK_TYPES if runtime >= row.since and major == row.tensorrt)
    return next(rows, None)


def is_rtx(capability: tuple[int, int]) -> bool:
    """Whether a GPU of this compute capability runs TensorRT-RTX engines."""
    return capability in RTX_CAPABILITIES or capability >= RTX_CAPABILITY_FLOOR
