"""The interface of a backend, and what backends share: settings, and copies of a graph."""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Literal, Protocol, TypeVar

import onnx_ir as ir
import pydantic

from qconvert.backends.cuda_runtime import BoundRun
from qconvert.backends.system_probe import Installed
from qconvert.core import onnx_io
from qconvert.core.config import QuantizeConfig
from qconvert.core.errors import QConvertError, UsageError, first_line
from qconvert.core.formats import (
    FORMATS,
    Precision,
    QuantizedFormat,
    needs_ranges,
    quantized_format,
)
from qconvert.core.scales import Grid
from qconvert.core.tensors import Tensors
from qconvert.quantize.plan import RestPrecision
from qconvert.quantize.scheme import Scheme
from qconvert.quantize.weight_only import DEFAULT_GROUP, regroup

T = TypeVar("T")

# The precisions whose graphs hold integers, and those whose graphs have one type throughout.
INTEGER: tuple[Precision, ...] = (*FORMATS, "mixed")
FLOAT: Mapping[Precision, RestPrecision] = {"fp32": "fp32", "fp16": "fp16", "bf16": "bf16"}

# A build reports what it is doing, and the fraction done where the builder knows it.
BuildProgressCallback = Callable[[str, float | None], None]

GRAPH = "model.onnx"  # the graph in the folder of an engine


@dataclass(frozen=True)
class EngineVariant:
    """One engine of a run: a backend and a precision."""

    backend: str
    precision: Precision

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"{self.backend}-{self.precision}"

    @property
    def is_quantized(self) -> bool:
        """Whether its graph holds integers."""
        return self.precision in INTEGER

    @property
    def format(self) -> QuantizedFormat:
        """The format of what it quantizes; an error for a variant that quantizes nothing."""
        name = quantized_format(self.precision)
        assert name is not None
        return name

    @property
    def needs_ranges(self) -> bool:
        """Whether a new plan of it needs the range of every tensor."""
        return needs_ranges(self.precision)


@dataclass(frozen=True)
class Availability:
    """Whether a backend builds and runs here; if not, the reason and the command that fixes it."""

    builds: bool
    runs: bool
    version: str = ""
    reason: str = ""
    cure: str = ""

    def __post_init__(self) -> None:
        if not (self.builds and self.runs) and not self.reason:
            raise ValueError("a backend that does not work must give a reason")


@dataclass(frozen=True)
class BackendRequirements:
    """The graphs that a backend accepts.

    `schemes` describe its quantized graphs by their format; `rests` lists the precisions allowed
    beside integers and `default_rest` the one that builds use. A `strongly_typed` builder computes in
    the types of the graph; any other expects float32 graphs and gets the precision as flags.
    `unsupported` maps precisions to the reason they are left out. `notes` say what running such a
    graph needs on this machine.
    """

    schemes: Mapping[QuantizedFormat, Scheme]
    rests: tuple[RestPrecision, ...] = ()
    default_rest: RestPrecision = "fp32"
    strongly_typed: bool = True
    unsupported: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def why_not(self, precision: Precision) -> str:
        """Return why the backend has no graphs of this precision; empty if it has."""
        name = quantized_format(precision)
        if name is None or name in self.schemes:
            return self.unsupported.get(precision, "")
        return self.unsupported.get(name, f"it has no kernels of {FORMATS[name].title}")


def scheme_for(
    settings: QuantizeConfig, requirements: BackendRequirements, name: QuantizedFormat = "int8"
) -> Scheme:
    """Return the scheme of a backend for a format that it takes, as the settings change it."""
    scheme = requirements.schemes[name]
    if FORMATS[name].weights_only:
        return _weight_only_scheme_for(settings, scheme)
    # Other runtimes than the CPU's add products in 32 bits, and multiply no bytes at run time.
    multiplies_bytes = scheme.integer_bias or FORMATS[name].activations == "at run time"
    is_set = settings.portable is not None and multiplies_bytes
    portable = bool(settings.portable) if is_set else scheme.portable
    activations = scheme.activations
    if settings.activation_bits < 8:
        activations = replace(activations, bits=settings.activation_bits)
    weights = Grid(settings.weight_bits)
    return replace(scheme, activations=activations, weights=weights, portable=portable)


def _weight_only_scheme_for(settings: QuantizeConfig, scheme: Scheme) -> Scheme:
    """Return a weight-only scheme with the group and the zero points of the settings."""
    group = settings.group or DEFAULT_GROUP
    grid = scheme.weights
    if settings.zero_points is not None:
        symmetric = not settings.zero_points
        grid = Grid(grid.bits, symmetric=symmetric, signed=symmetric)
    return regroup(scheme, grid, None if group == "channel" else int(group))


@dataclass(frozen=True)
class Profile:
    """The range of batch sizes that an engine supports, and the one it is optimized for."""

    min_batch: int = 1
    opt_batch: int = 1
    max_batch: int = 8

    def __post_init__(self) -> None:
        if not 1 <= self.min_batch <= self.opt_batch <= self.max_batch:
            raise ValueError(f"the batch sizes of a profile must ascend, got {self}")

    def __str__(self) -> str:
        return f"{self.min_batch},{self.opt_batch},{self.max_batch}"


def choose_profile(profiles: Sequence[Profile], batch: int) -> int | None:
    """Return the number of the profile that is tuned closest to a batch; None if none takes it."""
    fitting = [
        (abs(profile.opt_batch - batch), profile.max_batch - profile.min_batch, number)
        for number, profile in enumerate(profiles)
        if profile.min_batch <= batch <= profile.max_batch
    ]
    return min(fitting)[-1] if fitting else None


@dataclass(frozen=True)
class BuildSpec:
    """How to build an engine.

    `options` are the settings of the backend, by the names users write. `rest` is the precision
    beside INT8, None for the default of the backend; only weakly typed builds need it, other graphs
    carry their types.
    """

    precision: Precision
    profile: Profile
    threads: int = 0
    options: Mapping[str, str | int | bool] = field(default_factory=dict)
    rest: RestPrecision | None = None


@dataclass(frozen=True)
class Engine:
    """The result of a build, in a folder.

    `files` are loaded at run time, the one to open first; their bytes are the size of the engine.
    `graph` is the ONNX file it was built from. `made_with` holds versions, devices and options:
    everything that decides whether another machine can use the engine.
    """

    backend: str
    precision: Precision
    folder: Path
    graph: str
    files: tuple[str, ...]
    made_with: Mapping[str, str]
    threads: int = 0
    notes: tuple[str, ...] = ()
    build_seconds: float = 0.0

    @property
    def bytes(self) -> int:
        """The size of the files loaded at run time."""
        return sum((self.folder / name).stat().st_size for name in self.files)


@dataclass(frozen=True)
class LoadSpec:
    """How ONNX Runtime loads an engine, in this tool and in any other program.

    `providers` claim nodes in this order, each with its options; the first one comes from the module
    `plugin` if there is one. `config_entries` configure the session. Install `packages` and import
    `modules` first. `may_saturate`: some x86 CPUs need a setting to multiply the weights exactly.
    `optimize_graph`: ONNX Runtime may rewrite the graph. `cuda_graph`: runs replay the first one,
    on the same memory. `device` is the number of the GPU among those of a plugin. An engine with
    several `profiles` takes the number of one at each run, as the entry `profile_entry`.
    `kernel_cache` is the option for a folder in which the provider keeps what it compiles when it
    loads an engine for the first time; it needs a folder that can be written.
    """

    providers: tuple[tuple[str, Mapping[str, str]], ...]
    packages: tuple[str, ...]
    config_entries: Mapping[str, str] = field(default_factory=dict)
    modules: tuple[str, ...] = ()
    plugin: str = ""
    threads: int = 0
    may_saturate: bool = False
    optimize_graph: bool = True
    cuda_graph: bool = False
    device: int = 0
    profiles: tuple[Profile, ...] = ()
    profile_entry: str = ""
    kernel_cache: str = ""


@dataclass(frozen=True)
class TritonSpec:
    """How Triton serves an engine.

    Triton loads `file` of the engine's folder as `model.onnx` or `model.plan`. `profile` holds the
    minimum, optimal and maximum batch, None if any batch works. `parameters` configure Triton's
    ONNX Runtime. `notes` state requirements of the server that no setting can express.
    """

    platform: Literal["onnxruntime_onnx", "tensorrt_plan"]
    file: str
    device: Literal["CPU", "GPU"]
    profile: tuple[int, int, int] | None = None
    parameters: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Coverage:
    """How many nodes each provider runs, and how many run in each precision.

    `by_precision` is None if the backend does not report it; `unknown` gives the reason.
    """

    by_provider: Mapping[str, int]
    by_precision: Mapping[str, int] | None = None
    unknown: str = ""


class Session(Protocol):
    """A loaded engine."""

    def run(self, feeds: Tensors) -> Tensors:
        """Run once, with all copies to and from the device."""

    def bind(self, feeds: Tensors) -> "BoundRun | None":
        """Put inputs on the GPU and return the run on them; None where none is bound."""

    def coverage(self) -> Coverage:
        """Return which provider and which precision run the nodes."""


class Backend(Protocol):
    """A module of this folder; `tests.fake_backend` stands in for one in tests."""

    def probe(self, installed: Installed) -> Availability:
        """Find out whether the backend works here."""

    def requirements(self) -> BackendRequirements:
        """Return the graphs that the backend accepts."""

    def cache_key(self, spec: BuildSpec) -> Mapping[str, str]:
        """Return everything that decides a build beside the model: versions, devices, options."""

    def require_readable(self, graph: Path, spec: BuildSpec) -> None:
        """Refuse the float graph that a build starts from if it cannot have this precision."""

    def build(
        self, graph: Path, spec: BuildSpec, folder: Path, progress: BuildProgressCallback
    ) -> Engine:
        """Build the engine of an ONNX file in an empty folder."""

    def open(self, engine: Engine) -> Session:
        """Load an engine."""

    def load_spec(self, engine: Engine) -> LoadSpec:
        """Return how ONNX Runtime loads an engine."""

    def triton_spec(self, engine: Engine) -> TritonSpec:
        """Return how Triton serves an engine; refuse one that it cannot serve."""


def read_settings(kind: type[T], source: BuildSpec | Engine, backend: str) -> T:
    """Read the settings of a backend: the options of a build, strictly, or text in `made_with`."""
    adapter: pydantic.TypeAdapter[T] = pydantic.TypeAdapter(kind)
    try:
        if isinstance(source, BuildSpec):
            return adapter.validate_python(dict(source.options))
        names = {setting.name.replace("_", "-") for setting in fields(kind)}  # type: ignore[arg-type]
        texts = {name: text for name, text in source.made_with.items() if name in names}
        return adapter.validate_strings(texts)
    except pydantic.ValidationError as error:
        problem = error.errors(include_url=False)[0]
        name = ".".join(str(part) for part in problem["loc"])
        raise UsageError(
            f"`{backend}.{name}`: {problem['msg']}, got {problem['input']!r}",
            hint="leave the setting out to use its default",
        ) from None


def settings_as_text(settings: object, *leave_out: str) -> dict[str, str]:
    """Return settings as text, by the names users write, for cache keys and `made_with`."""
    return {
        setting.name.replace("_", "-"): str(getattr(settings, setting.name))
        for setting in fields(settings)  # type: ignore[arg-type]
        if setting.name not in leave_out
    }


def copy_graph(path: Path, folder: Path) -> tuple[ir.Model, tuple[str, ...]]:
    """Copy an ONNX file to `model.onnx`; return the model and the files: two above 2 GB."""
    model = onnx_io.load(path)
    with explain_write_errors(folder):
        if any(isinstance(tensor, ir.ExternalTensor) for tensor in onnx_io.all_tensors(model)):
            onnx_io.save(model, folder / GRAPH)  # the data file is named after the new ONNX file
        else:
            shutil.copyfile(path, folder / GRAPH)
    return model, tuple(file.name for file in onnx_io.model_files(folder / GRAPH))


@contextmanager
def explain_write_errors(folder: Path) -> Iterator[None]:
    """Turn an OSError into an error that names the folder and the remedy."""
    try:
        yield
    except OSError as error:
        raise QConvertError(
            f"`{folder}` cannot be written: {error.strerror or first_line(error)}",
            hint="free some space there, or choose another location with `-o`",
        ) from None
