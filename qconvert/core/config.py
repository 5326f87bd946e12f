"""Every setting, once: its type, default, limits, meaning and command line option.

A key is spelled with `-` in TOML and with `_` in Python. Pydantic validates the tables, but this
module does not import it, to keep `--help` fast.
"""

# ruff: noqa: RUF009 (`setting` returns a field)

import json
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args, get_origin, get_type_hints

from qconvert.core.formats import Precision
from qconvert.core.setting_checks import (
    Check,
    Limits,
    check_bits,
    check_channels,
    check_deviations,
    check_group,
    check_method,
    check_model_name,
    check_resize_rule,
)


def setting(default: Any, text: str, option: str = "", unset: str = "") -> Any:
    """Return a field; `option` is its flag and metavar, `unset` what applies without a value."""
    flag, _, metavar = option.partition(" ")
    metadata = {"text": text, "flag": flag, "metavar": metavar, "unset": unset}
    return field(default=default, metadata=metadata)


Switch = Annotated[bool, Limits()]
NonNegativeInt = Annotated[int, Limits(ge=0)]
PositiveInt = Annotated[int, Limits(ge=1)]
NonNegativeFloat = Annotated[float, Limits(ge=0)]
PositiveFloat = Annotated[float, Limits(gt=0)]

Backend = Literal["cpu", "cuda", "tensorrt", "tensorrt-rtx"]
Task = Literal["classify", "detect", "segment", "embed", "any"]
SizeRule = Literal["fit", "none"]
ResizeRule = Annotated[str, Check(check_resize_rule)]

IMAGE_FILES = "a folder, a list file, a CSV, or arrays (.npz, .npy)"
STORED_AS_INT8 = "; fewer than 8 are stored as INT8 and no faster"
CUDA_GRAPH = "Record a CUDA graph; shapes must be fixed"
WORKSPACE = "MiB for trying kernels; 0: all available memory"
USE_TF32 = "Let fp32 layers compute with the 10-bit mantissas of TF32, from Ampere on"


class StrictTable:
    """Base of the tables: no unknown keys, and `max_drop` is `max-drop` in TOML and JSON."""

    __pydantic_config__: ClassVar = {
        "extra": "forbid",
        "alias_generator": lambda name: name.replace("_", "-"),
    }


@dataclass(frozen=True)
class ExportConfig(StrictTable):
    """How a source is converted to one ONNX file and compared with it."""

    weights: str | None = setting(
        None,
        "Checkpoint (.pt, .pth, .safetensors) for a factory or a named network; `random` for none",
        "--weights FILE",
    )
    inputs: tuple[str, ...] = setting(
        (),
        "Input shape that the source does not define, as image:1x3x224x224",
        "--input NAME:SHAPE[:TYPE]",
    )
    batch: Literal["dynamic"] | PositiveInt | None = setting(
        None, "Batch dimension", "--batch dynamic|N", unset="as in an ONNX or pt2 file"
    )
    opset: Annotated[int, Limits(ge=18, le=26)] = setting(
        20, "Lowest ONNX opset of the result", "--opset N"
    )
    parity_inputs: Annotated[int, Limits(ge=8)] = setting(
        8, "Number of inputs on which PyTorch and ONNX are compared"
    )
    parity_tolerance: Annotated[float, Limits(gt=0, lt=1)] = setting(
        1e-3, "Largest difference, relative to the largest output", "--parity-tolerance"
    )


@dataclass(frozen=True)
class PrepareConfig(StrictTable):
    """The passes that clean the graph before anything is measured."""

    skip: tuple[str, ...] = setting(
        (), "Cleaning passes to leave out (`qconvert export` lists them)", "--skip PASS"
    )


@dataclass(frozen=True)
class PreprocessConfig(StrictTable):
    """How images become inputs; unset values follow the source and its input shape."""

    preset: Literal["imagenet", "inception", "clip", "unit", "raw"] | None = setting(
        None,
        "Mean, std and filter of a model family",
        "--preprocess",
        unset="as the source says, else imagenet",
    )
    resize: PositiveInt | tuple[int, int] | ResizeRule | None = setting(
        None,
        "Shorter side, exact size, letterbox (all of the image, with a gray border), fit or none",
        "--resize N|WxH|letterbox[:WxH]|fit|none",
        "follows the model",
    )
    crop: SizeRule | PositiveInt | None = setting(
        None, "Side of the centre crop, `fit` or `none`", "--crop N|fit|none", "follows the model"
    )
    interpolation: Literal["bilinear", "bicubic", "box"] | None = setting(
        None, "Resize filter", "--interpolation"
    )
    mean: Annotated[tuple[float, ...], Check(check_channels)] | None = setting(
        None, "Mean of pixels scaled to 0..1, 1 or 3 numbers", "--mean A[,B,C]"
    )
    std: Annotated[tuple[float, ...], Check(check_deviations)] | None = setting(
        None, "Standard deviation of pixels scaled to 0..1, 1 or 3 numbers", "--std A[,B,C]"
    )
    colours: Literal["rgb", "bgr"] | None = setting(
        None, "Order of the colour channels in the input"
    )


@dataclass(frozen=True)
class CalibrationConfig(StrictTable):
    """The images on which ranges are measured."""

    images: Path | None = setting(None, f"Calibration images: {IMAGE_FILES}", "--images PATH")
    count: PositiveInt = setting(512, "Use at most N images", "--count N")
    seed: NonNegativeInt = setting(0, "Seed for choosing images if there are more than `count`")
    max_broken: NonNegativeInt | None = setting(
        None, "Unreadable files to skip before giving up", "--max-broken N", "10 %, at least 10"
    )
    exact: Switch = setting(False, "Count every value instead of a sample of each image", "--exact")


@dataclass(frozen=True)
class QuantizeConfig(StrictTable):
    """What is quantized to integers, and how; ranges come from the calibration."""

    method: Annotated[str, Check(check_method)] | None = setting(
        None,
        "Range method: mse, minmax, moving-average, entropy, percentile:P, answers (the smallest "
        "output error), or auto (tries them)",
        "--method NAME",
        "auto; mse with effort none or quick",
    )
    effort: Literal["none", "quick", "default", "thorough", "train"] = setting(
        "default",
        "Time spent on learned rounding and biases; none: round to nearest; train: as thorough, "
        "then train the quantized graph, with PyTorch",
        "--effort",
    )
    training_steps: PositiveInt = setting(
        2500, "Steps of training over all blocks, of 8 images each", "--training-steps N"
    )
    weight_scales: Literal["mse", "minmax"] = setting("mse", "How the scales of weights are chosen")
    weight_bits: Annotated[int, Limits(le=8), Check(check_bits)] = setting(
        8, f"Bits of weights, 4 to 8{STORED_AS_INT8}", "--weight-bits N"
    )
    activation_bits: Annotated[int, Limits(le=8), Check(check_bits)] = setting(
        8, f"Bits of activations, 4 to 8{STORED_AS_INT8}", "--activation-bits N"
    )
    group: Literal["channel"] | Annotated[int, Limits(ge=1), Check(check_group)] | None = setting(
        None,
        "Inputs that share a scale in weight-only formats: 32, 64, 128 or channel (all)",
        "--group N|channel",
        unset="64",
    )
    zero_points: Switch | None = setting(
        None,
        "Give each group of a weight-only format a zero point too",
        "--zero-points/--no-zero-points",
        "yes for int4-weights of cpu",
    )
    portable: Switch | None = setting(
        None,
        "Limit pairs of weights, so that x86 without VNNI computes the same answers",
        "--portable/--no-portable",
        "yes for cpu on x86",
    )
    exclude: tuple[str, ...] = setting(
        (), "Nodes to keep in float, by name or operator", "--exclude GLOB"
    )
    only: tuple[str, ...] = setting(
        (), "Quantize only these nodes, by name or operator", "--only GLOB"
    )
    keep: tuple[Literal["first", "last"], ...] = setting(
        (), "Keep the first or last layers with weights in float", "--keep first,last"
    )
    rest: Literal["fp32", "fp16", "bf16"] | None = setting(
        None, "Precision of what is not INT8", "--rest", unset="fp32; engines of TensorRT: fp16"
    )


@dataclass(frozen=True)
class BuildConfig(StrictTable):
    """Which engines are built: every backend in every precision that it supports."""

    backends: tuple[Backend, ...] = setting(
        (), "Where engines run", "--backend NAME", "the best backend that runs here"
    )
    precisions: tuple[Precision, ...] = setting(
        (),
        "Precisions of the engines",
        "--precision NAME",
        "fp32, fp16, int8; for networks of products int8-dynamic too, without images in its place",
    )
    profile: tuple[PositiveInt, PositiveInt, PositiveInt] = setting(
        (1, 8, 32), "Smallest, best and largest batch of an engine", "--profile MIN,BEST,MAX"
    )

    def __post_init__(self) -> None:
        if list(self.profile) != sorted(self.profile):
            raise ValueError("build.profile must ascend: smallest, best, largest")


@dataclass(frozen=True)
class CpuConfig(StrictTable):
    """How ONNX Runtime runs on the CPU."""

    threads: NonNegativeInt = setting(0, "Threads of one run; 0: one per core")
    spinning: Switch = setting(
        False, "Let idle threads spin: faster if nothing else runs on the machine"
    )


@dataclass(frozen=True)
class CudaConfig(StrictTable):
    """How ONNX Runtime runs on CUDA; the defaults are those of ONNX Runtime."""

    device: NonNegativeInt = setting(0, "Number of the GPU")
    cuda_graph: Switch = setting(False, CUDA_GRAPH)
    prefer_nhwc: Switch = setting(False, "Run convolutions in the layout of Tensor Cores, NHWC")
    use_tf32: Switch = setting(True, USE_TF32)
    gpu_mem_limit: NonNegativeInt = setting(0, "MiB that a session may allocate; 0: no limit")
    allow_fallback: Switch = setting(
        False, "Let the CPU run nodes that a GPU provider cannot, and list them", "--allow-fallback"
    )


@dataclass(frozen=True)
class TensorrtConfig(StrictTable):
    """How TensorRT builds; the defaults are those of TensorRT."""

    builder: Literal["native", "provider"] = setting(
        "native", "TensorRT itself, with the types of the graph, or ONNX Runtime's provider"
    )
    device: NonNegativeInt = setting(0, "Number of the GPU")
    workspace: NonNegativeInt = setting(0, WORKSPACE)
    level: Annotated[int, Limits(ge=0, le=5)] = setting(
        3, "Optimization level; higher levels take longer"
    )
    timing_cache: str = setting("", "Folder of the timing cache", unset="in the cache of qconvert")
    hardware_compatible: Switch = setting(
        False, "Build for newer GPUs too; slower than an engine for this GPU alone"
    )
    weight_stripped: Switch = setting(
        False, "Leave the weights out of the engine, which takes them from the graph when it loads"
    )
    use_tf32: Switch = setting(True, USE_TF32)
    cuda_graph: Switch = setting(False, CUDA_GRAPH)
    allow_fallback: Switch = setting(
        False,
        "Let other providers run nodes that TensorRT cannot; needs the builder `provider`",
        "--allow-fallback",
    )


@dataclass(frozen=True)
class TensorrtRtxConfig(StrictTable):
    """How TensorRT for RTX builds, and how ONNX Runtime loads its engines."""

    device: NonNegativeInt = setting(0, "Number of the GPU")
    more_profiles: str = setting(
        "", "Batch sizes to tune for besides `build.profile`, as `1,1,1 8,8,8`"
    )
    workspace: NonNegativeInt = setting(0, WORKSPACE)
    runtime_cache: str = setting(
        "",
        "Folder of the kernels that the GPU compiles when it first loads an engine",
        unset="in the cache of qconvert; in packages, the folder `kernels` of the package",
    )
    cuda_graph: Switch = setting(False, CUDA_GRAPH)


@dataclass(frozen=True)
class SearchConfig(StrictTable):
    """What mixed precision may cost; the search keeps few blocks in float."""

    budget: NonNegativeFloat = setting(
        0.5, "Points that a mixed-precision engine may lose against FP32", "--budget PP"
    )
    by: Literal["top-1", "agreement", "certainty", "metric"] | None = setting(
        None,
        "Measure of the budget: `top-1` needs labels; `agreement` counts changed predictions; "
        "`certainty` weighs them by the FP32 probability that they lose; `metric` is that of "
        "another task, such as mAP",
        "--by",
        unset="top-1 if one image weighs no more than the budget, else certainty; of other tasks "
        "metric with truth, else agreement",
    )
    max_latency: PositiveFloat | None = setting(
        None, "Median milliseconds at the first batch size, at most", "--max-latency MS"
    )
    by_latency: Switch = setting(
        True, "On the CPU, also keep blocks in float that run faster so, as timed on this machine"
    )


@dataclass(frozen=True)
class BenchConfig(StrictTable):
    """How engines are timed: in interleaved rounds until medians are stable."""

    batch_sizes: tuple[PositiveInt, ...] = setting(
        (1, 8), "Images per run while timing", "--batch-sizes N,N"
    )
    seconds: Annotated[float, Limits(gt=0, allow_inf_nan=False)] = setting(
        3.0, "Minimum seconds of timing per engine and batch size", "--seconds S"
    )
    rounds: Annotated[int, Limits(ge=3)] = setting(10, "Minimum number of rounds")
    streams: PositiveInt = setting(2, "Runs at once on a GPU while its throughput is measured")


@dataclass(frozen=True)
class EvaluateConfig(StrictTable):
    """The images on which outputs are compared; none should be a calibration image."""

    images: Path | None = setting(None, f"Evaluation images: {IMAGE_FILES}", "--eval PATH")
    labels: Path | None = setting(
        None,
        "What the images show: a CSV of file,label; COCO's JSON; a folder of YOLO's .txt, VOC's "
        ".xml or masks as .png",
        "--labels PATH",
        unset="class folders, labels.csv, annotations.json, labels/, Annotations/ or masks/ beside "
        "the images",
    )
    count: PositiveInt | None = setting(
        None, "Use at most N evaluation images", "--eval-count N", unset="all"
    )
    task: Task | None = setting(
        None,
        "What the outputs are: classes of images, boxes, classes of pixels, vectors, or anything",
        "--task",
        unset="by the truth, then by the outputs",
    )
    decode: str = setting(
        "",
        "How outputs become boxes or masks: boxes, yolo, detr, ssd, centers, mask, or your own "
        "package.module:function",
        "--decode NAME",
        unset="the first of these that fits",
    )
    metric: str = setting(
        "",
        "A metric of your own: package.module:function of all predictions and truths, which "
        "returns named numbers; gates and searches take the first",
        "--metric NAME",
    )


@dataclass(frozen=True)
class GateConfig(StrictTable):
    """Limits that every engine but fp32 must meet; the exit code is 1 if one does not."""

    max_drop: NonNegativeFloat | None = setting(
        None, "Percentage points of top-1, mAP, mean IoU or recall@1 lost, at most", "--max-drop PP"
    )
    min_agreement: Annotated[float, Limits(ge=0, le=100)] | None = setting(
        None,
        "Percent of predictions (images, boxes or pixels) that are FP32's, at least",
        "--min-agreement PCT",
    )
    max_latency: PositiveFloat | None = setting(
        None, "Median milliseconds, at most", "--max-latency MS"
    )
    min_speedup: PositiveFloat | None = setting(
        None, "Speedup over fp32 on the same backend, at least", "--min-speedup X"
    )
    max_size: PositiveFloat | None = setting(
        None, "Megabytes of an engine, at most", "--max-size MB"
    )
    allow_unmeasured: Switch = setting(
        False, "Pass gates that cannot be measured here", "--allow-unmeasured"
    )


@dataclass(frozen=True)
class Config(StrictTable):
    """Everything that decides a result."""

    model: Annotated[str, Check(check_model_name)] | None = setting(
        None, "`m.onnx`, `net.pt2`, `pkg.mod:factory`, `timm:NAME`, `torchvision:NAME`"
    )
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


@dataclass(frozen=True)
class Option:
    """One setting in the flat table: its bare type, its default, and what `setting` says of it."""

    table: str
    key: str
    type: Any
    default: Any
    text: str
    flag: str
    metavar: str
    unset: str

    @property
    def description(self) -> str:
        """The meaning, and what happens without a value."""
        return f"{self.text}; unset: {self.unset}" if self.unset else self.text

    @property
    def keyword(self) -> str:
        """The argument of the same meaning in Python: the option's name, plural for lists."""
        name = self.flag.partition("/")[0].lstrip("-")
        return (self.key if self.is_list else name).replace("-", "_")

    @property
    def is_list(self) -> bool:
        """Whether any number of words may be given."""
        args = get_args(self.type)
        return (
            get_origin(self.type) is tuple
            and args[-1] is ...
            and (args[0] is str or get_origin(args[0]) is Literal)
        )


@cache
def option_table() -> dict[str, Option]:
    """Return every setting by its dotted key, in the order of the settings file."""
    options: dict[str, Option] = {}
    tables: list[tuple[str, type]] = [("", Config)]
    for table, table_type in tables:
        hints = get_type_hints(table_type)
        for entry in fields(table_type):
            key, hint = entry.name.replace("_", "-"), hints[entry.name]
            if entry.metadata:
                option = Option(table, key, hint, entry.default, **entry.metadata)
                options[f"{table}.{key}".lstrip(".")] = option
            else:
                tables.append((key, hint))
    return options


def keyword_settings() -> dict[str, str]:
    """Return the dotted key that each keyword argument of the Python functions sets."""
    options = option_table().items()
    return {option.keyword: path for path, option in options if option.flag}


def keys_at(path: tuple[str, ...]) -> list[str]:
    """Return the keys of the table at `path`; none where that is no table."""
    options = option_table().values()
    if not path:
        return list(dict.fromkeys(option.table or option.key for option in options))
    return [option.key for option in options if (option.table,) == path]


def literals(hint: Any) -> tuple[str, ...]:
    """Return the words that a type allows, also as one member of a union or item of a list."""
    if get_origin(hint) is Literal:
        return get_args(hint)
    return tuple(word for arg in get_args(hint) for word in literals(arg))


def type_name(hint: Any) -> str:
    """Return a type in words: `int`, `"dynamic" or int`, or `list of str`."""
    args = [arg for arg in get_args(hint) if arg is not type(None)]
    if get_origin(hint) is Literal:
        return " or ".join(json.dumps(word) for word in args)
    if get_origin(hint) is tuple:
        return f"list of {type_name(args[0])}"
    return " or ".join(map(type_name, args)) if args else str(hint.__name__)
