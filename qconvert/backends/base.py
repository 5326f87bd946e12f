"""What a backend says of itself, what it builds, and how that runs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from qconvert.backends.installed import Installed
from qconvert.backends.outside import Loading, Served
from qconvert.feeds import Feeds
from qconvert.quantize.plan import Rest
from qconvert.quantize.scheme import Scheme

Precision = Literal["fp32", "fp16", "bf16", "int8", "mixed"]

# Those whose graphs hold integers, and those that have one type throughout.
INTEGER: tuple[Precision, ...] = ("int8", "mixed")
FLOAT: Mapping[Precision, Rest] = {"fp32": "fp32", "fp16": "fp16", "bf16": "bf16"}

# What a build says while it works: a sentence, and how much is done from 0 to 1 where it knows.
Heard = Callable[[str, float | None], None]


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
class Wants:
    """What graphs a backend takes.

    `scheme` is how INT8 is written, `rests` are the precisions that can stand beside it, and
    `build_rest` the one that a build takes. Unless its builder is `typed`, which takes precisions
    as they are written, it wants graphs in float32 and is told the precision by flags. `refused`
    has the precisions that make no sense there, each with its reason. `notes` tell what running a
    graph needs on machines such as this.
    """

    scheme: Scheme | None
    rests: tuple[Rest, ...] = ()
    build_rest: Rest = "fp32"
    typed: bool = True
    refused: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Profile:
    """The batch sizes an engine takes: the least, the one it is tuned for, the most."""

    least: int = 1
    best: int = 1
    most: int = 8

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.best <= self.most:
            raise ValueError(f"a profile runs upward, got {self.least},{self.best},{self.most}")


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
    rest: Rest | None = None


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

    def run(self, feeds: Feeds) -> Feeds:
        """Run once, with all copies that takes."""
        ...

    def bound(self, feeds: Feeds) -> Callable[[], None] | None:
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

    def wants(self) -> Wants:
        """Say what graphs it takes."""
        ...

    def recipe(self, spec: BuildSpec) -> Mapping[str, str]:
        """Return all that decides a build beside the model: versions, devices, options."""
        ...

    def require_readable(self, graph: Path, spec: BuildSpec) -> None:
        """Refuse the float graph that builds begin with, if its builder cannot read it."""
        ...

    def build(self, graph: Path, spec: BuildSpec, folder: Path, heard: Heard) -> Engine:
        """Build an engine of an ONNX file into a folder that is there and empty."""
        ...

    def open(self, engine: Engine) -> Session:
        """Load an engine."""
        ...

    def loading(self, engine: Engine) -> Loading:
        """Say how ONNX Runtime loads an engine in any other program."""
        ...

    def served(self, engine: Engine) -> Served:
        """Say how Triton serves an engine, or refuse one that it cannot serve."""
        ...
