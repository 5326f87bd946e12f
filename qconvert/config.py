"""Settings as one frozen tree.

Every table is a frozen dataclass; a key is spelled with `-` in TOML and with `_` in Python. The
text beside a field is its documentation: `init`, the reference and the JSON Schema print it.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import pydantic
from pydantic import Field

from qconvert.config_backends import Cpu, Cuda, Strict, Tensorrt, TensorrtRtx
from qconvert.config_values import Channels, Deviations, Method, Nameable

Positive = Annotated[int, Field(ge=1, strict=True)]


@dataclass(frozen=True)
class Export(Strict):
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
class Prepare(Strict):
    """The passes that clean the graph before anything is measured."""

    skip: Annotated[
        tuple[str, ...], Field(description="passes to leave out, by name (see `qconvert export`)")
    ] = ()


@dataclass(frozen=True)
class Preprocessing(Strict):
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
        Channels | None, Field(description="of values scaled to 0..1; 1 or 3 numbers")
    ] = None
    std: Annotated[
        Deviations | None, Field(description="of values scaled to 0..1; 1 or 3 numbers")
    ] = None
    colours: Annotated[
        Literal["rgb", "bgr"] | None, Field(description="order in which the network takes them")
    ] = None


@dataclass(frozen=True)
class Calibration(Strict):
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
class Quantize(Strict):
    """What is rounded to integers, and how; ranges come from the calibration."""

    method: Annotated[
        Method | None,
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
class Build(Strict):
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
        tuple[Positive, Positive, Positive],
        Field(description="batch sizes of an engine: the least, the best, the most"),
    ] = (1, 8, 32)

    def __post_init__(self) -> None:
        if list(self.profile) != sorted(self.profile):
            raise ValueError("build.profile runs upward: the least, the best, the most")


@dataclass(frozen=True)
class Search(Strict):
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
class Bench(Strict):
    """How engines are timed: in turns, until the figures stand."""

    batch_sizes: Annotated[tuple[Positive, ...], Field(description="images a run")] = (1, 8)
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
class Evaluate(Strict):
    """The images that answers are compared on; none of them should be a calibration image."""

    images: Annotated[Path | None, Field(description="folder, list file, CSV, or arrays")] = None
    labels: Annotated[
        Path | None, Field(description="CSV `file,label`; without it class folders are labels")
    ] = None
    count: Annotated[Positive | None, Field(description="at most so many of them")] = None


@dataclass(frozen=True)
class Gate(Strict):
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
class Config(Strict):
    """Everything that decides a result."""

    model: Annotated[
        Nameable | None,
        Field(
            description="`m.onnx`, `net.pt2`, `pkg.mod:factory`, `timm:NAME`, `torchvision:NAME`"
        ),
    ] = None
    export: Annotated[Export, Field(description=Export.__doc__)] = field(default_factory=Export)
    preprocess: Annotated[Preprocessing, Field(description=Preprocessing.__doc__)] = field(
        default_factory=Preprocessing
    )
    calibration: Annotated[Calibration, Field(description=Calibration.__doc__)] = field(
        default_factory=Calibration
    )
    prepare: Annotated[Prepare, Field(description=Prepare.__doc__)] = field(default_factory=Prepare)
    quantize: Annotated[Quantize, Field(description=Quantize.__doc__)] = field(
        default_factory=Quantize
    )
    build: Annotated[Build, Field(description=Build.__doc__)] = field(default_factory=Build)
    cpu: Annotated[Cpu, Field(description=Cpu.__doc__)] = field(default_factory=Cpu)
    cuda: Annotated[Cuda, Field(description=Cuda.__doc__)] = field(default_factory=Cuda)
    tensorrt: Annotated[Tensorrt, Field(description=Tensorrt.__doc__)] = field(
        default_factory=Tensorrt
    )
    tensorrt_rtx: Annotated[TensorrtRtx, Field(description=TensorrtRtx.__doc__)] = field(
        default_factory=TensorrtRtx
    )
    search: Annotated[Search, Field(description=Search.__doc__)] = field(default_factory=Search)
    bench: Annotated[Bench, Field(description=Bench.__doc__)] = field(default_factory=Bench)
    evaluate: Annotated[Evaluate, Field(description=Evaluate.__doc__)] = field(
        default_factory=Evaluate
    )
    gate: Annotated[Gate, Field(description=Gate.__doc__)] = field(default_factory=Gate)


ADAPTER = pydantic.TypeAdapter(Config)
