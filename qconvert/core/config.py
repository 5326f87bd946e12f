"""Settings as one frozen tree.

Every table is a frozen dataclass; a key is spelled with `-` in TOML and with `_` in Python. The
text beside a field is its documentation: `init`, the reference and the JSON Schema print it.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import pydantic
from pydantic import Field

from qconvert.core.errors import did_you_mean

RANGE_METHODS = ("auto", "answers", "mse", "minmax", "moving-average", "entropy")
PERCENTILE_PREFIX = "percentile:"


def _check_method(name: str) -> str:
    """Refuse what is no range method, before any image is read."""
    if name in RANGE_METHODS:
        return name
    if not name.startswith(PERCENTILE_PREFIX):
        known = (*RANGE_METHODS, f"{PERCENTILE_PREFIX}99.99")
        raise ValueError(f"there is no range method `{name}`{did_you_mean(name, known)}")
    try:
        percent = float(name.removeprefix(PERCENTILE_PREFIX))
    except ValueError:
        percent = 0.0
    if not 50 < percent <= 100:
        raise ValueError(f"`{name}` needs a number above 50 and up to 100")
    return name


def _check_channels(numbers: tuple[float, ...]) -> tuple[float, ...]:
    if len(numbers) not in (1, 3) or not all(map(math.isfinite, numbers)):
        raise ValueError(f"1 or 3 numbers are needed, for grey or for colours, not {len(numbers)}")
    return numbers


def _check_deviations(numbers: tuple[float, ...]) -> tuple[float, ...]:
    if min(_check_channels(numbers)) <= 0:
        raise ValueError("pixels are divided by it: all numbers are above 0")
    return numbers


def _check_model_name(text: str) -> str:
    if "\0" in text:
        raise ValueError("no file has a name with a zero byte")
    return text


ChannelMeans = Annotated[tuple[float, ...], pydantic.AfterValidator(_check_channels)]
ChannelDeviations = Annotated[tuple[float, ...], pydantic.AfterValidator(_check_deviations)]
ModelName = Annotated[str, pydantic.AfterValidator(_check_model_name)]
RangeMethod = Annotated[str, pydantic.AfterValidator(_check_method)]


class StrictTable:
    """Refuse unknown keys; spell `max_drop` as `max-drop` in TOML and JSON."""

    __pydantic_config__ = pydantic.ConfigDict(
        extra="forbid",
        alias_generator=lambda name: name.replace("_", "-"),
    )


@dataclass(frozen=True)
class CpuConfig(StrictTable):
    """How ONNX Runtime runs on the CPU."""

    threads: Annotated[
        int, Field(ge=0, strict=True, description="for one run; 0 is one for each core")
    ] = 0
    spinning: Annotated[
        bool,
        Field(strict=True, description="idle threads spin: faster where nothing else runs"),
    ] = False


@dataclass(frozen=True)
class CudaConfig(StrictTable):
    """How ONNX Runtime runs on CUDA."""

    device: Annotated[int, Field(ge=0, strict=True, description="number of the GPU")] = 0
    cuda_graph: Annotated[
        bool, Field(strict=True, description="record the calls once; shapes must be fixed")
    ] = False
    allow_fallback: Annotated[
        bool, Field(strict=True, description="let the CPU run what CUDA cannot")
    ] = False


@dataclass(frozen=True)
class TensorrtConfig(StrictTable):
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
class TensorrtRtxConfig(StrictTable):
    """How TensorRT for RTX builds."""

    more_profiles: Annotated[
        str, Field(description="batch sizes to tune for beside `build.profile`, as `1,1,1 8,8,8`")
    ] = ""
    workspace: Annotated[
        int, Field(ge=0, strict=True, description="MiB for trying kernels; 0 is all there is")
    ] = 0


PositiveInt = Annotated[int, Field(ge=1, strict=True)]


@dataclass(frozen=True)
class ExportConfig(StrictTable):
    """From a source to one ONNX file, checked against the source."""

    weights: Annotated[
        str | None,
        Field(description="checkpoint for the source (.pt or .safetensors), or `random`"),
    ] = None
    inputs: Annotated[
        tuple[str, ...],
        Field(description="shapes the source does not say, as `name:1x3x224x224[:float32]`"),
    ] = ()
    batch: Annotated[
        Literal["dynamic"] | Annotated[int, Field(ge=1, strict=True)] | None,
        Field(description="`dynamic` or a number; unset keeps what an ONNX or pt2 file says"),
    ] = None
    opset: Annotated[
        int, Field(ge=18, le=26, strict=True, description="lowest ONNX opset of the result")
    ] = 20
    parity_inputs: Annotated[
        int, Field(ge=8, strict=True, description="inputs on which PyTorch and ONNX must agree")
    ] = 8
    parity_tolerance: Annotated[
        float,
        Field(
            gt=0,
            lt=1,
            strict=True,
            description="largest difference, relative to the largest output",
        ),
    ] = 1e-3


@dataclass(frozen=True)
class PrepareConfig(StrictTable):
    """The passes that clean the graph before anything is measured."""

    skip: Annotated[
        tuple[str, ...], Field(description="passes to leave out, by name (see `qconvert export`)")
    ] = ()


@dataclass(frozen=True)
class PreprocessConfig(StrictTable):
    """What is done to a picture; what is not said here follows the source and its input."""

    preset: Annotated[
        Literal["imagenet", "inception", "clip", "unit", "raw"] | None,
        Field(description="mean, std and filter of a family; `imagenet` if nothing says more"),
    ] = None
    resize: Annotated[
        Literal["fit", "none"] | Annotated[int, Field(ge=1, strict=True)] | tuple[int, int] | None,
        Field(description="length of the shorter side, `[width, height]`, or `none`"),
    ] = None
    crop: Annotated[
        Literal["fit", "none"] | Annotated[int, Field(ge=1, strict=True)] | None,
        Field(description="side of the centre crop, or `none`"),
    ] = None
    interpolation: Annotated[
        Literal["bilinear", "bicubic", "box"] | None, Field(description="filter of the resize")
    ] = None
    mean: Annotated[
        ChannelMeans | None, Field(description="of values scaled to 0..1; 1 or 3 numbers")
    ] = None
    std: Annotated[
        ChannelDeviations | None, Field(description="of values scaled to 0..1; 1 or 3 numbers")
    ] = None
    colours: Annotated[
        Literal["rgb", "bgr"] | None, Field(description="order in which the network takes them")
    ] = None


@dataclass(frozen=True)
class CalibrationConfig(StrictTable):
    """The images that ranges are measured on."""

    images: Annotated[
        Path | None, Field(description="folder, list file, CSV, or arrays (.npz, .npy)")
    ] = None
    count: Annotated[int, Field(ge=1, strict=True, description="at most so many of them")] = 512
    seed: Annotated[
        int, Field(ge=0, strict=True, description="which of them, where there are more")
    ] = 0
    max_broken: Annotated[
        Annotated[int, Field(ge=0, strict=True)] | None,
        Field(description="unreadable files to put up with; unset: 10 %, at least 10"),
    ] = None
    exact: Annotated[
        bool, Field(strict=True, description="count every value instead of some thousands an image")
    ] = False


@dataclass(frozen=True)
class QuantizeConfig(StrictTable):
    """What is rounded to integers, and how; ranges come from the calibration."""

    method: Annotated[
        RangeMethod | None,
        Field(
            description="how ranges are chosen: `mse`, `minmax`, `moving-average`, `entropy`, "
            "`percentile:99.99`, `answers`, or `auto` to try them; unset: `auto`, or `mse` with "
            "an effort of `none` or `quick`"
        ),
    ] = None
    effort: Annotated[
        Literal["none", "quick", "default", "thorough"],
        Field(description="how long weights and biases are learned; `none`: nearest integers"),
    ] = "default"
    weight_scales: Annotated[
        Literal["mse", "minmax"], Field(description="how the scales of weights are chosen")
    ] = "mse"
    weight_bits: Annotated[
        int, Field(ge=5, le=8, strict=True, description="7 keeps x86 without VNNI from overflowing")
    ] = 8
    exclude: Annotated[
        tuple[str, ...], Field(description="nodes to leave in float: names or operators, as globs")
    ] = ()
    only: Annotated[
        tuple[str, ...], Field(description="quantize nothing but these nodes, as globs")
    ] = ()
    keep: Annotated[
        tuple[Literal["first", "last"], ...],
        Field(description="leave the first or the last layers with weights in float"),
    ] = ()
    rest: Annotated[
        Literal["fp32", "fp16", "bf16"] | None,
        Field(description="precision of what is not INT8; unset: fp32"),
    ] = None


@dataclass(frozen=True)
class BuildConfig(StrictTable):
    """Which engines are built: every backend in every precision that makes sense there."""

    backends: Annotated[
        tuple[Literal["cpu", "cuda", "tensorrt", "tensorrt-rtx"], ...],
        Field(description="where engines run; empty: the best backend that runs here"),
    ] = ()
    precisions: Annotated[
        tuple[Literal["fp32", "fp16", "bf16", "int8", "mixed"], ...],
        Field(min_length=1, description="in which precisions"),
    ] = ("fp32", "fp16", "int8")
    profile: Annotated[
        tuple[PositiveInt, PositiveInt, PositiveInt],
        Field(description="batch sizes of an engine: the least, the best, the most"),
    ] = (1, 8, 32)

    def __post_init__(self) -> None:
        if list(self.profile) != sorted(self.profile):
            raise ValueError("build.profile runs upward: the least, the best, the most")


@dataclass(frozen=True)
class SearchConfig(StrictTable):
    """What mixed precision may cost: the search lifts as little out of INT8 as that takes."""

    budget: Annotated[
        float, Field(ge=0, strict=False, description="points that answers may lose against FP32")
    ] = 0.5
    by: Annotated[
        Literal["top-1", "agreement", "certainty"] | None,
        Field(
            description="points of what: `top-1` needs labels; `agreement` counts changed answers, "
            "`certainty` weighs them by the probability that FP32 gives up; unset: `top-1` where "
            "one image weighs no more than the budget, else `certainty`"
        ),
    ] = None
    max_latency: Annotated[
        float | None, Field(gt=0, description="milliseconds of a run at the first batch size")
    ] = None


@dataclass(frozen=True)
class BenchConfig(StrictTable):
    """How engines are timed: in turns, until the figures stand."""

    batch_sizes: Annotated[tuple[PositiveInt, ...], Field(description="images a run")] = (1, 8)
    seconds: Annotated[
        float,
        Field(
            gt=0,
            strict=False,
            allow_inf_nan=False,
            description="at least so long for each engine and batch",
        ),
    ] = 3.0
    rounds: Annotated[int, Field(ge=3, strict=True, description="at least so many turns")] = 10


@dataclass(frozen=True)
class EvaluateConfig(StrictTable):
    """The images that answers are compared on; none of them should be a calibration image."""

    images: Annotated[Path | None, Field(description="folder, list file, CSV, or arrays")] = None
    labels: Annotated[
        Path | None, Field(description="CSV `file,label`; without it class folders are labels")
    ] = None
    count: Annotated[PositiveInt | None, Field(description="at most so many of them")] = None


@dataclass(frozen=True)
class GateConfig(StrictTable):
    """Limits that every engine but fp32 must keep, or the exit code is 1."""

    max_drop: Annotated[
        float | None, Field(ge=0, description="percentage points of top-1 that may be lost")
    ] = None
    min_agreement: Annotated[
        float | None, Field(ge=0, le=100, description="percent of images answered as by FP32")
    ] = None
    max_latency: Annotated[float | None, Field(gt=0, description="milliseconds, median")] = None
    min_speedup: Annotated[float | None, Field(gt=0, description="times fp32 there")] = None
    max_size: Annotated[float | None, Field(gt=0, description="megabytes of an engine")] = None
    allow_unmeasured: Annotated[
        bool, Field(strict=True, description="let pass what cannot be measured here")
    ] = False


@dataclass(frozen=True)
class Config(StrictTable):
    """Everything that decides a result."""

    model: Annotated[
        ModelName | None,
        Field(
            description="`m.onnx`, `net.pt2`, `pkg.mod:factory`, `timm:NAME`, `torchvision:NAME`"
        ),
    ] = None
    export: Annotated[ExportConfig, Field(description=ExportConfig.__doc__)] = field(
        default_factory=ExportConfig
    )
    preprocess: Annotated[PreprocessConfig, Field(description=PreprocessConfig.__doc__)] = field(
        default_factory=PreprocessConfig
    )
    calibration: Annotated[CalibrationConfig, Field(description=CalibrationConfig.__doc__)] = field(
        default_factory=CalibrationConfig
    )
    prepare: Annotated[PrepareConfig, Field(description=PrepareConfig.__doc__)] = field(
        default_factory=PrepareConfig
    )
    quantize: Annotated[QuantizeConfig, Field(description=QuantizeConfig.__doc__)] = field(
        default_factory=QuantizeConfig
    )
    build: Annotated[BuildConfig, Field(description=BuildConfig.__doc__)] = field(
        default_factory=BuildConfig
    )
    cpu: Annotated[CpuConfig, Field(description=CpuConfig.__doc__)] = field(
        default_factory=CpuConfig
    )
    cuda: Annotated[CudaConfig, Field(description=CudaConfig.__doc__)] = field(
        default_factory=CudaConfig
    )
    tensorrt: Annotated[TensorrtConfig, Field(description=TensorrtConfig.__doc__)] = field(
        default_factory=TensorrtConfig
    )
    tensorrt_rtx: Annotated[TensorrtRtxConfig, Field(description=TensorrtRtxConfig.__doc__)] = (
        field(default_factory=TensorrtRtxConfig)
    )
    search: Annotated[SearchConfig, Field(description=SearchConfig.__doc__)] = field(
        default_factory=SearchConfig
    )
    bench: Annotated[BenchConfig, Field(description=BenchConfig.__doc__)] = field(
        default_factory=BenchConfig
    )
    evaluate: Annotated[EvaluateConfig, Field(description=EvaluateConfig.__doc__)] = field(
        default_factory=EvaluateConfig
    )
    gate: Annotated[GateConfig, Field(description=GateConfig.__doc__)] = field(
        default_factory=GateConfig
    )


CONFIG_ADAPTER = pydantic.TypeAdapter(Config)
