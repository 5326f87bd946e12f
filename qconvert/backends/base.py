"""What a backend says of itself on this machine."""

from dataclasses import dataclass


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
