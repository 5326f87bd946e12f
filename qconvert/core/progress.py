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


ProgressCallback = Callable[[Progress], None]


def ignore_progress(progress: Progress) -> None:
    """Say nothing."""


def megabytes(size: int) -> str:
    """Write a size as people do."""
    return f"{size / 1e6:.1f} MB"
