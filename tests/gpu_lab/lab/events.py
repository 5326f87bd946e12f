"""What the fake libraries were asked to do, as a test reads it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

# TensorRT's names of the flags of a build, by bit.
FLAGS = {
    0: "FP16",
    1: "INT8",
    4: "REFIT",
    6: "TF32",
    7: "SPARSE_WEIGHTS",
    8: "SAFETY_SCOPE",
    9: "OBEY_PRECISION_CONSTRAINTS",
    10: "PREFER_PRECISION_CONSTRAINTS",
    13: "VERSION_COMPATIBLE",
    15: "FP8",
    17: "BF16",
    19: "STRIP_PLAN",
    20: "REFIT_IDENTICAL",
}

Shapes = Mapping[str, Sequence[Sequence[int]]]


@dataclass(frozen=True)
class Build:
    """A build of an engine; a profile holds the smallest, usual and largest shape of each input."""

    gpu: int
    flags: int
    strongly_typed: bool
    level: int
    hardware: int
    verbosity: int
    workspace: int
    timing_cache: bool
    profiles: tuple[Shapes, ...]

    @property
    def flag_names(self) -> set[str]:
        """The flags that are set."""
        return {FLAGS.get(bit, str(bit)) for bit in range(32) if self.flags >> bit & 1}


@dataclass(frozen=True)
class Deserialize:
    """Bytes were loaded: valid ones are an engine, which fits if it was built for this GPU."""

    gpu: int
    bytes: int
    valid: bool
    fits: bool


@dataclass(frozen=True)
class SetDevice:
    """A thread turned to another GPU of the machine, by the number the driver gives it."""

    gpu: int


@dataclass(frozen=True)
class TimingCache:
    """A timing cache was handed to a build; one of another GPU does not fit."""

    bytes: int
    fits: bool


@dataclass(frozen=True)
class Refit:
    """An engine got its weights."""


@dataclass(frozen=True)
class Capture:
    """A CUDA graph was recorded."""


@dataclass(frozen=True)
class Kernels:
    """TensorRT for RTX got the kernels of an engine: from its cache, or it compiled them.

    `kept`: there is a cache, which keeps them. `graph`: runs are recorded as CUDA graphs.
    """

    cached: bool
    kept: bool
    graph: bool


@dataclass(frozen=True)
class ChosenProfile:
    """A run chose a profile of its engine."""

    index: int


@dataclass(frozen=True)
class Plugins:
    """TensorRT's plugins were registered."""


@dataclass(frozen=True)
class LayerPrecision:
    """The precision of a layer was set, as TensorRT's number of the type."""

    layer: str
    type: int


@dataclass(frozen=True)
class Unanswered:
    """A function was called that no fake implements: the laboratory is incomplete."""

    object: str
    place: int


Event = (
    Build
    | Deserialize
    | SetDevice
    | TimingCache
    | Refit
    | Capture
    | Kernels
    | ChosenProfile
    | Plugins
    | LayerPrecision
    | Unanswered
)
KINDS: Mapping[str, type[Any]] = {
    "build": Build,
    "deserialize": Deserialize,
    "set_device": SetDevice,
    "timing_cache": TimingCache,
    "refit": Refit,
    "capture": Capture,
    "kernels": Kernels,
    "profile": ChosenProfile,
    "plugins": Plugins,
    "layer_precision": LayerPrecision,
    "unanswered": Unanswered,
}
T = TypeVar("T", bound=Event)


def read_log(path: Path) -> list[Event]:
    """Return the events of a log, in order."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [_event(json.loads(line)) for line in lines]


def _event(values: dict[str, Any]) -> Event:
    kind = KINDS[values["event"]]
    known = {field.name for field in fields(kind)}
    made: Event = kind(**{name: value for name, value in values.items() if name in known})
    return made
