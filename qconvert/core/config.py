"""Every setting, once: its type, default, limits, meaning and command line option.

The settings file, `--help`, the keyword arguments in Python, the reference and the JSON Schema all
follow from these tables (`option_table`, `config_file`). A key is spelled with `-` in TOML and with
`_` in Python. Pydantic validates the tables, but this module does not import it: `--help` must be
fast.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from qconvert.core.errors import did_you_mean

RANGE_METHODS = ("auto", "answers", "mse", "minmax", "moving-average", "entropy")
PERCENTILE_PREFIX = "percentile:"


@dataclass(frozen=True)
class Setting:
    """Annotates a setting with its meaning and with the command line option that sets it.

    `unset` says what happens without a value. Settings without an option are reached by `--set`.
    """

    text: str
    option: str = ""
    metavar: str = ""
    unset: str = ""

    @property
    def description(self) -> str:
        """The meaning, and what happens without a value."""
        return f"{self.text}; unset: {self.unset}" if self.unset else self.text

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        return {**handler(schema), "description": self.description}


@dataclass(frozen=True)
class Limits:
    """Annotates a number or switch, which is never converted from another type, with its limits."""

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    allow_inf_nan: bool | None = None

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        limits = {name: limit for name, limit in vars(self).items() if limit is not None}
        return {**handler(source), "strict": True, **limits}


@dataclass(frozen=True)
class Check:
    """Annotates a value with a function that returns it, or raises ValueError."""

    function: Callable[[Any], Any]

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.no_info_after_validator_function(self.function, handler(source))


def _check_method(name: str) -> str:
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
        raise ValueError(f"1 or 3 numbers are required, for grey or colours, not {len(numbers)}")
    return numbers


def _check_deviations(numbers: tuple[float, ...]) -> tuple[float, ...]:
    if min(_check_channels(numbers)) <= 0:
        raise ValueError("pixels are divided by these numbers: all must be above 0")
    return numbers


def _check_not_empty(values: tuple[str, ...]) -> tuple[str, ...]:
    if not values:
        raise ValueError("Input should name at least one")
    return values


def _check_model_name(text: str) -> str:
    if "\0" in text:
        raise ValueError("a file name cannot contain a zero byte")
    return text


Switch = Annotated[bool, Limits()]
NonNegativeInt = Annotated[int, Limits(ge=0)]
PositiveInt = Annotated[int, Limits(ge=1)]
NonNegativeFloat = Annotated[float, Limits(ge=0)]
PositiveFloat = Annotated[float, Limits(gt=0)]
ChannelMeans = Annotated[tuple[float, ...], Check(_check_channels)]
ChannelDeviations = Annotated[tuple[float, ...], Check(_check_deviations)]
ModelName = Annotated[str, Check(_check_model_name)]
RangeMethod = Annotated[str, Check(_check_method)]

Backend = Literal["cpu", "cuda", "tensorrt", "tensorrt-rtx"]
Precision = Literal["fp32", "fp16", "bf16", "int8", "mixed"]
FloatPrecision = Literal["fp32", "fp16", "bf16"]


class StrictTable:
    """Base of the tables: no unknown keys, and `max_drop` is `max-drop` in TOML and JSON."""

    __pydantic_config__: ClassVar = {
        "extra": "forbid",
        "alias_generator": lambda name: name.replace("_", "-"),
    }


@dataclass(frozen=True)
class ExportConfig(StrictTable):
    """Convert a source to one ONNX file and compare the two."""

    weights: Annotated[
        str | None,
        Setting(
            "Checkpoint (.pt, .pth, .safetensors) for a factory or a named network; "
            "`random` for none",
            "--weights",
            "FILE",
        ),
    ] = None
    inputs: Annotated[
        tuple[str, ...],
        Setting(
            "Input shape that the source does not define, as image:1x3x224x224",
            "--input",
            "NAME:SHAPE[:TYPE]",
        ),
    ] = ()
    batch: Annotated[
        Literal["dynamic"] | PositiveInt | None,
        Setting("Batch dimension", "--batch", "dynamic|N", unset="as in an ONNX or pt2 file"),
    ] = None
    opset: Annotated[
        int, Limits(ge=18, le=26), Setting("Lowest ONNX opset of the result", "--opset", "N")
    ] = 20
    parity_inputs: Annotated[
        int, Limits(ge=8), Setting("Number of inputs on which PyTorch and ONNX are compared")
    ] = 8
    parity_tolerance: Annotated[
        float,
        Limits(gt=0, lt=1),
        Setting("Largest difference, relative to the largest output", "--parity-tolerance"),
    ] = 1e-3


@dataclass(frozen=True)
class PrepareConfig(StrictTable):
    """The passes that clean the graph before anything is measured."""

    skip: Annotated[
        tuple[str, ...],
        Setting("Cleaning passes to leave out (`qconvert export` lists them)", "--skip", "PASS"),
    ] = ()


@dataclass(frozen=True)
class PreprocessConfig(StrictTable):
    """How images become inputs; unset values follow the source and its input shape."""

    preset: Annotated[
        Literal["imagenet", "inception", "clip", "unit", "raw"] | None,
        Setting(
            "Mean, std and filter of a model family",
            "--preprocess",
            unset="as the source says, else imagenet",
        ),
    ] = None
    resize: Annotated[
        Literal["fit", "none"] | PositiveInt | tuple[int, int] | None,
        Setting(
            "Shorter side, exact size, `fit` or `none`",
            "--resize",
            "N|WxH|fit|none",
            unset="follows the model",
        ),
    ] = None
    crop: Annotated[
        Literal["fit", "none"] | PositiveInt | None,
        Setting(
            "Side of the centre crop, `fit` or `none`",
            "--crop",
            "N|fit|none",
            unset="follows the model",
        ),
    ] = None
    interpolation: Annotated[
        Literal["bilinear", "bicubic", "box"] | None, Setting("Resize filter", "--interpolation")
    ] = None
    mean: Annotated[
        ChannelMeans | None,
        Setting("Mean of pixels scaled to 0..1, 1 or 3 numbers", "--mean", "A[,B,C]"),
    ] = None
    std: Annotated[
        ChannelDeviations | None,
        Setting("Standard deviation of pixels scaled to 0..1, 1 or 3 numbers", "--std", "A[,B,C]"),
    ] = None
    colours: Annotated[
        Literal["rgb", "bgr"] | None, Setting("Order of the colour channels in the input")
    ] = None


@dataclass(frozen=True)
class CalibrationConfig(StrictTable):
    """The images on which ranges are measured."""

    images: Annotated[
        Path | None,
        Setting(
            "Calibration images: a folder, a list file, a CSV, or arrays (.npz, .npy)",
            "--images",
            "PATH",
        ),
    ] = None
    count: Annotated[PositiveInt, Setting("Use at most N images", "--count", "N")] = 512
    seed: Annotated[NonNegativeInt, Setting("Seed of the choice where there are more images")] = 0
    max_broken: Annotated[
        NonNegativeInt | None,
        Setting(
            "Unreadable files that are skipped", "--max-broken", "N", unset="10 %, at least 10"
        ),
    ] = None
    exact: Annotated[
        Switch, Setting("Count every value instead of a sample of each image", "--exact")
    ] = False


@dataclass(frozen=True)
class QuantizeConfig(StrictTable):
    """What is quantized to integers, and how; ranges come from the calibration."""

    method: Annotated[
        RangeMethod | None,
        Setting(
            "Range method: mse, minmax, moving-average, entropy, percentile:P, answers (the "
            "smallest output error), or auto (tries them)",
            "--method",
            "NAME",
            unset="auto; mse with effort none or quick",
        ),
    ] = None
    effort: Annotated[
        Literal["none", "quick", "default", "thorough"],
        Setting(
            "Time spent on learned rounding and biases; none: round to nearest",
            "--effort",
        ),
    ] = "default"
    weight_scales: Annotated[
        Literal["mse", "minmax"], Setting("How the scales of weights are chosen")
    ] = "mse"
    weight_bits: Annotated[
        int,
        Limits(ge=5, le=8),
        Setting("Bits of weights; 7 cannot overflow on x86 without VNNI", "--weight-bits", "N"),
    ] = 8
    exclude: Annotated[
        tuple[str, ...],
        Setting("Nodes to keep in float, by name or operator", "--exclude", "GLOB"),
    ] = ()
    only: Annotated[
        tuple[str, ...], Setting("Quantize only these nodes, by name or operator", "--only", "GLOB")
    ] = ()
    keep: Annotated[
        tuple[Literal["first", "last"], ...],
        Setting("Keep the first or last layers with weights in float", "--keep", "first,last"),
    ] = ()
    rest: Annotated[
        FloatPrecision | None,
        Setting(
            "Precision of what is not INT8",
            "--rest",
            unset="fp32; engines of TensorRT: fp16",
        ),
    ] = None


@dataclass(frozen=True)
class BuildConfig(StrictTable):
    """Which engines are built: every backend in every precision that makes sense there."""

    backends: Annotated[
        tuple[Backend, ...],
        Setting(
            "Where engines run",
            "--backend",
            "NAME",
            unset="the best backend that runs here",
        ),
    ] = ()
    precisions: Annotated[
        tuple[Precision, ...],
        Check(_check_not_empty),
        Setting("Precisions of the engines", "--precision", "NAME"),
    ] = ("fp32", "fp16", "int8")
    profile: Annotated[
        tuple[PositiveInt, PositiveInt, PositiveInt],
        Setting("Smallest, best and largest batch size of an engine", "--profile", "MIN,BEST,MAX"),
    ] = (1, 8, 32)

    def __post_init__(self) -> None:
        if list(self.profile) != sorted(self.profile):
            raise ValueError("build.profile must ascend: smallest, best, largest")


@dataclass(frozen=True)
class CpuConfig(StrictTable):
    """How ONNX Runtime runs on the CPU."""

    threads: Annotated[NonNegativeInt, Setting("Threads of one run; 0: one per core")] = 0
    spinning: Annotated[
        Switch, Setting("Let idle threads spin: faster if nothing else runs on the machine")
    ] = False


@dataclass(frozen=True)
class CudaConfig(StrictTable):
    """How ONNX Runtime runs on CUDA."""

    device: Annotated[NonNegativeInt, Setting("Number of the GPU")] = 0
    cuda_graph: Annotated[Switch, Setting("Record a CUDA graph; shapes must be fixed")] = False
    allow_fallback: Annotated[
        Switch,
        Setting(
            "Let the CPU run what a provider of the GPU cannot, and list it", "--allow-fallback"
        ),
    ] = False


@dataclass(frozen=True)
class TensorrtConfig(StrictTable):
    """How TensorRT builds; the defaults are its own."""

    builder: Annotated[
        Literal["provider", "native"],
        Setting("ONNX Runtime's provider, or TensorRT itself with strict types"),
    ] = "provider"
    device: Annotated[NonNegativeInt, Setting("Number of the GPU")] = 0
    workspace: Annotated[
        NonNegativeInt, Setting("MiB for trying kernels; 0: all that is available")
    ] = 0
    level: Annotated[
        int, Limits(ge=0, le=5), Setting("Optimization level; higher levels take longer")
    ] = 3
    timing_cache: Annotated[
        str, Setting("Folder of the timing cache", unset="in the cache of qconvert")
    ] = ""
    hardware_compatible: Annotated[
        Switch, Setting("Build for newer GPUs too; slower than an engine for this GPU alone")
    ] = False
    weight_stripped: Annotated[Switch, Setting("Leave the weights out of the engine")] = False
    cuda_graph: Annotated[Switch, Setting("Record a CUDA graph; shapes must be fixed")] = False
    allow_fallback: Annotated[
        Switch, Setting("Let other providers run what TensorRT cannot", "--allow-fallback")
    ] = False


@dataclass(frozen=True)
class TensorrtRtxConfig(StrictTable):
    """How TensorRT for RTX builds."""

    more_profiles: Annotated[
        str, Setting("Batch sizes to tune for besides `build.profile`, as `1,1,1 8,8,8`")
    ] = ""
    workspace: Annotated[
        NonNegativeInt, Setting("MiB for trying kernels; 0: all that is available")
    ] = 0


@dataclass(frozen=True)
class SearchConfig(StrictTable):
    """What mixed precision may cost: the search restores as few blocks to float as that takes."""

    budget: Annotated[
        NonNegativeFloat,
        Setting("Points that a mixed-precision engine may lose against FP32", "--budget", "PP"),
    ] = 0.5
    by: Annotated[
        Literal["top-1", "agreement", "certainty"] | None,
        Setting(
            "Measure of the budget: `top-1` needs labels; `agreement` counts changed predictions; "
            "`certainty` weighs them by the probability that FP32 gives them",
            "--by",
            unset="top-1 if one image weighs no more than the budget, else certainty",
        ),
    ] = None
    max_latency: Annotated[
        PositiveFloat | None,
        Setting("Median milliseconds at the first batch size, at most", "--max-latency", "MS"),
    ] = None


@dataclass(frozen=True)
class BenchConfig(StrictTable):
    """How engines are timed: in turns, until the medians are stable."""

    batch_sizes: Annotated[
        tuple[PositiveInt, ...], Setting("Images per run while timing", "--batch-sizes", "N,N")
    ] = (1, 8)
    seconds: Annotated[
        float,
        Limits(gt=0, allow_inf_nan=False),
        Setting("Minimum seconds of timing per engine and batch size", "--seconds", "S"),
    ] = 3.0
    rounds: Annotated[int, Limits(ge=3), Setting("Minimum number of turns")] = 10


@dataclass(frozen=True)
class EvaluateConfig(StrictTable):
    """The images on which outputs are compared; none should be a calibration image."""

    images: Annotated[
        Path | None,
        Setting(
            "Evaluation images: a folder, a list file, a CSV, or arrays (.npz, .npy)",
            "--eval",
            "PATH",
        ),
    ] = None
    labels: Annotated[
        Path | None,
        Setting("CSV file,label", "--labels", "FILE", unset="class folders, if there are any"),
    ] = None
    count: Annotated[
        PositiveInt | None,
        Setting("Use at most N evaluation images", "--eval-count", "N", unset="all"),
    ] = None


@dataclass(frozen=True)
class GateConfig(StrictTable):
    """Limits that every engine but fp32 must meet; the exit code is 1 if one does not."""

    max_drop: Annotated[
        NonNegativeFloat | None,
        Setting("Percentage points of top-1 lost, at most", "--max-drop", "PP"),
    ] = None
    min_agreement: Annotated[
        Annotated[float, Limits(ge=0, le=100)] | None,
        Setting("Percent of images predicted as by FP32, at least", "--min-agreement", "PCT"),
    ] = None
    max_latency: Annotated[
        PositiveFloat | None, Setting("Median milliseconds, at most", "--max-latency", "MS")
    ] = None
    min_speedup: Annotated[
        PositiveFloat | None,
        Setting("Speedup over fp32 on the same backend, at least", "--min-speedup", "X"),
    ] = None
    max_size: Annotated[
        PositiveFloat | None, Setting("Megabytes of an engine, at most", "--max-size", "MB")
    ] = None
    allow_unmeasured: Annotated[
        Switch, Setting("Pass gates that cannot be measured here", "--allow-unmeasured")
    ] = False


@dataclass(frozen=True)
class Config(StrictTable):
    """Everything that decides a result."""

    model: Annotated[
        ModelName | None,
        Setting("`m.onnx`, `net.pt2`, `pkg.mod:factory`, `timm:NAME`, `torchvision:NAME`"),
    ] = None
    export: ExportConfig = field(default_factory=ExportConfig)
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    prepare: PrepareConfig = field(default_factory=PrepareConfig)
    quantize: QuantizeConfig = field(default_factory=QuantizeConfig)
    build: BuildConfig = field(default_factory=BuildConfig)
    cpu: CpuConfig = field(default_factory=CpuConfig)
    cuda: CudaConfig = field(default_factory=CudaConfig)
    tensorrt: TensorrtConfig = field(default_factory=TensorrtConfig)
    tensorrt_rtx: TensorrtRtxConfig = field(default_factory=TensorrtRtxConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    bench: BenchConfig = field(default_factory=BenchConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    gate: GateConfig = field(default_factory=GateConfig)
