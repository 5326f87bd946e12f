"""What a backend says of itself: whether it works on this machine, and what graphs it wants."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from qconvert.quantize.plan import Rest
from qconvert.quantize.scheme import Scheme


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

    `scheme` is how INT8 is written, `rests` are the precisions beside it, the usual one first.
    `refused` has the precisions that make no sense there, each with its reason. `notes` tell what
    running a graph needs on machines such as this.
    """

    scheme: Scheme | None
    rests: tuple[Rest, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
