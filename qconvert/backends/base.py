"""What a backend says of itself, what it builds, and how that runs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from qconvert.backends.system_probe import Installed
from qconvert.core.errors import UsageError, first_line
from qconvert.core.tensors import Tensors
from qconvert.quantize.plan import RestPrecision
from qconvert.quantize.scheme import Scheme


@dataclass(frozen=True)
class LoadSpec:
    """How ONNX Runtime loads an engine; this tool itself loads it just so.

    `providers` take the nodes in this order, each with its options, and `entries` are settings of
    the session. With `plugin`, a module, the first provider comes from there. `packages` are what
    to install, `modules` what to import before. `integers` says that the CPU multiplies bytes, and
    must do so without overflow; `optimized` that ONNX Runtime may rewrite the graph; `captured`
    that runs are replays of the first one, on the same memory.
    """

    providers: tuple[tuple[str, Mapping[str, str]], ...]
    packages: tuple[str, ...]
    config_entries: Mapping[str, str] = field(default_factory=dict)
    modules: tuple[str, ...] = ()
    plugin: str = ""
    threads: int = 0
    integer_kernels: bool = False
    optimize_graph: bool = True
    cuda_graph: bool = False

    @property
    def provider_list(self) -> list[Any]:
        """The providers as ONNX Runtime wants them."""
        return [(name, dict(options)) for name, options in self.providers]


@dataclass(frozen=True)
class TritonSpec:
    """How Triton serves an engine.

    `file` of the engine's folder is loaded as `model.onnx` or `model.plan`. `profile` are the
    least, the best and the most images that it takes, None for any number. `parameters` are for
    Triton's ONNX Runtime. `notes` tell what must be so at the server, and cannot be set.
    """

    platform: Literal["onnxruntime_onnx", "tensorrt_plan"]
    file: str
    device: Literal["CPU", "GPU"]
    profile: tuple[int, int, int] | None = None
    parameters: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


Precision = Literal["fp32", "fp16", "bf16", "int8", "mixed"]

# Those whose graphs hold integers, and those that have one type throughout.
INTEGER: tuple[Precision, ...] = ("int8", "mixed")
FLOAT: Mapping[Precision, RestPrecision] = {"fp32": "fp32", "fp16": "fp16", "bf16": "bf16"}

# What a build says while it works: a sentence, and how much is done from 0 to 1 where it knows.
BuildProgressCallback = Callable[[str, float | None], None]


@dataclass(frozen=True)
class Availability:
    """Whether a backend builds and runs here; if not, why, and the command that mends it."""

    builds: bool
    runs: bool
    version: str = ""
    reason: str = ""
    cure: str = ""

    def __post_init__(self) -> None:
        if not (self.builds and self.runs) and not self.reason:
            raise ValueError("a backend that does not work must say why")


@dataclass(frozen=True)
class BackendRequirements:
    """What graphs a backend takes.

    `scheme` is how INT8 is written, `rests` are the precisions that can stand beside it, and
    `build_rest` the one that a build takes. Unless its builder is `typed`, which takes precisions
    as they are written, it wants graphs in float32 and is told the precision by flags. `refused`
    has the precisions that make no sense there, each with its reason. `notes` tell what running a
    graph needs on machines such as this.
    """

    scheme: Scheme | None
    rests: tuple[RestPrecision, ...] = ()
    default_rest: RestPrecision = "fp32"
    strongly_typed: bool = True
    unsupported: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Profile:
    """The batch sizes an engine takes: the least, the one it is tuned for, the most."""

    min_batch: int = 1
    opt_batch: int = 1
    max_batch: int = 8

    def __post_init__(self) -> None:
        if not 1 <= self.min_batch <= self.opt_batch <= self.max_batch:
            raise ValueError(
                f"a profile runs upward, got {self.min_batch},{self.opt_batch},{self.max_batch}"
            )


@dataclass(frozen=True)
class BuildSpec:
    """How an engine is built; `options` are the settings of the backend, by their names.

    `rest` is the precision beside INT8, None the one that the backend takes for builds. Graphs that
    carry their types say it themselves, but not those of weakly typed builds.
    """

    precision: Precision
    profile: Profile
    threads: int = 0
    options: Mapping[str, str | int | bool] = field(default_factory=dict)
    rest: RestPrecision | None = None


@dataclass(frozen=True)
class Engine:
    """What a build left in a folder.

    `files` are those that are loaded at run time, by name, the one to open first; their bytes are
    the size of the engine. `graph` is the ONNX file it was built from. `made_with` holds versions,
    devices and options: all that decides whether another machine can use it.
    """

    backend: str
    precision: Precision
    folder: Path
    graph: str
    files: tuple[str, ...]
    made_with: Mapping[str, str]
    threads: int = 0
    notes: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        """The bytes of the files that are loaded at run time."""
        return sum((self.folder / name).stat().st_size for name in self.files)


@dataclass(frozen=True)
class Coverage:
    """Which provider took how many nodes, and how many run in which precision.

    `by_precision` is None where the backend does not tell, and `unknown` says why.
    """

    by_provider: Mapping[str, int]
    by_precision: Mapping[str, int] | None = None
    unknown: str = ""


class Session(Protocol):
    """A loaded engine."""

    def run(self, feeds: Tensors) -> Tensors:
        """Run once, with all copies that takes."""
        ...

    def bind(self, feeds: Tensors) -> Callable[[], None] | None:
        """Return a call that runs once on inputs already on the device; None on the CPU."""
        ...

    def coverage(self) -> Coverage:
        """Say what really runs where."""
        ...


class Backend(Protocol):
    """A module in this folder; `tests.fake_backend` is one for tests of what stands above."""

    def probe(self, installed: Installed) -> Availability:
        """Say whether it works here."""
        ...

    def requirements(self) -> BackendRequirements:
        """Say what graphs it takes."""
        ...

    def cache_key(self, spec: BuildSpec) -> Mapping[str, str]:
        """Return all that decides a build beside the model: versions, devices, options."""
        ...

    def require_readable(self, graph: Path, spec: BuildSpec) -> None:
        """Refuse the float graph that builds begin with, if its builder cannot read it."""
        ...

    def build(
        self, graph: Path, spec: BuildSpec, folder: Path, heard: BuildProgressCallback
    ) -> Engine:
        """Build an engine of an ONNX file into a folder that is there and empty."""
        ...

    def open(self, engine: Engine) -> Session:
        """Load an engine."""
        ...

    def load_spec(self, engine: Engine) -> LoadSpec:
        """Say how ONNX Runtime loads an engine in any other program."""
        ...

    def triton_spec(self, engine: Engine) -> TritonSpec:
        """Say how Triton serves an engine, or refuse one that it cannot serve."""
        ...


T = TypeVar("T")


def read_settings(kind: type[T], spec: BuildSpec, backend: str) -> T:
    """Return a backend's settings as the build has them; refuse names and values it does not know.

    `weight_stripped` of the dataclass is called `weight-stripped` by users.
    """
    known = {_spelled(each.name): each for each in fields(kind)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for name, value in spec.options.items():
        if name not in known:
            names = ", ".join(f"`{each}`" for each in sorted(known))
            raise UsageError(
                f"the backend {backend} has no setting `{name}`", hint=f"its settings: {names}"
            )
        if type(value) is not type(known[name].default):
            wanted = type(known[name].default).__name__
            raise UsageError(
                f"`{backend}.{name}` must be of type {wanted}, got {value!r}",
                hint=f"its default is {known[name].default!r}",
            )
        values[known[name].name] = value
    try:
        return kind(**values)
    except ValueError as error:
        raise UsageError(
            f"`{backend}`: {first_line(error)}", hint="leave the setting out to take its default"
        ) from None


def settings_as_text(chosen: object, *leave_out: str) -> dict[str, str]:
    """Return settings as texts by the names users know, for recipes."""
    return {
        _spelled(each.name): str(getattr(chosen, each.name))
        for each in fields(chosen)  # type: ignore[arg-type]
        if each.name not in leave_out
    }


def _spelled(name: str) -> str:
    return name.replace("_", "-")


@dataclass(frozen=True)
class EngineVariant:
    """One engine of a run."""

    backend: str
    precision: Precision

    @property
    def name(self) -> str:
        """What its folder is called."""
        return f"{self.backend}-{self.precision}"
