"""What a job says while it works."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """A step at work (`seconds` is None), `done` of `total`, or one that ended and what it made."""

    step: str
    text: str
    seconds: float | None = None
    stored: bool = False
    done: int = 0
    total: int = 0


Tell = Callable[[Progress], None]


def silent(progress: Progress) -> None:
    """Say nothing."""
