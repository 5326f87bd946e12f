"""Settings that belong to one backend each; backends know them by the same names."""

from dataclasses import dataclass
from typing import Annotated, Literal

import pydantic
from pydantic import Field


class Strict:
    """Refuse unknown keys; spell `max_drop` as `max-drop` in TOML and JSON."""

    __pydantic_config__ = pydantic.ConfigDict(
        extra="forbid",
        alias_generator=lambda name: name.replace("_", "-"),
    )


@dataclass(frozen=True)
class Cpu(Strict):
    """How ONNX Runtime runs on the CPU."""

    threads: Annotated[
        int, Field(ge=0, strict=True, description="for one run; 0 is one for each core")
    ] = 0
    spinning: Annotated[
        bool,
        Field(strict=True, description="idle threads spin: faster where nothing else runs"),
    ] = False


@dataclass(frozen=True)
class Cuda(Strict):
    """How ONNX Runtime runs on CUDA."""

    device: Annotated[int, Field(ge=0, strict=True, description="number of the GPU")] = 0
    cuda_graph: Annotated[
        bool, Field(strict=True, description="record the calls once; shapes must be fixed")
    ] = False
    allow_fallback: Annotated[
        bool, Field(strict=True, description="let the CPU run what CUDA cannot")
    ] = False


@dataclass(frozen=True)
class Tensorrt(Strict):
    """How TensorRT builds; the defaults are its own."""

    builder: Annotated[
        Literal["provider", "native"],
        Field(description="ONNX Runtime's provider, or TensorRT itself with strict types"),
    ] = "provider"
    device: Annotated[int, Field(ge=0, strict=True, description="number of the GPU")] = 0
    workspace: Annotated[
        int, Field(ge=0, strict=True, description="MiB for trying kernels; 0 is all there is")
    ] = 0
    level: Annotated[
        int, Field(ge=0, le=5, strict=True, description="of optimization; more takes longer")
    ] = 3
    timing_cache: Annotated[
        str, Field(description="folder for timings of kernels; unset: in the store")
    ] = ""
    hardware_compatible: Annotated[
        bool, Field(strict=True, description="also for newer GPUs than this one; slower")
    ] = False
    weight_stripped: Annotated[
        bool, Field(strict=True, description="leave the weights out of the engine")
    ] = False
    cuda_graph: Annotated[
        bool, Field(strict=True, description="record the calls once; shapes must be fixed")
    ] = False
    allow_fallback: Annotated[
        bool, Field(strict=True, description="let other providers run what TensorRT cannot")
    ] = False


@dataclass(frozen=True)
class TensorrtRtx(Strict):
    """How TensorRT for RTX builds."""

    more_profiles: Annotated[
        str, Field(description="batch sizes to tune for beside `build.profile`, as `1,1,1 8,8,8`")
    ] = ""
    workspace: Annotated[
        int, Field(ge=0, strict=True, description="MiB for trying kernels; 0 is all there is")
    ] = 0
