"""The progress of a job: steps that start, advance and end, reported to one callback."""

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """A running step (`seconds` is None), `done` of `total`, or a finished one and its result."""

    step: str
    text: str
    seconds: float | None = None
    stored: bool = False
    done: int = 0
    total: int = 0


ProgressCallback = Callable[[Progress], None]


def ignore_progress(progress: Progress) -> None:
    """Report nothing."""


def start_step(
    progress: ProgressCallback, step: str, text: str = ""
) -> Callable[[str, bool], None]:
    """Report that a step runs, and return a callback for its end: its result, and a cache hit."""
    started = time.perf_counter()
    if text:
        progress(Progress(step, text))

    def end(text: str, stored: bool) -> None:
        progress(Progress(step, text, time.perf_counter() - started, stored))

    return end


def share_reporter(
    progress: ProgressCallback, step: str, label: str
) -> Callable[[str, float | None], None]:
    """Return a callback for a text and the finished share of the work, None if it is unknown."""

    def report(text: str, share: float | None) -> None:
        done, total = (round(share * 100), 100) if share is not None else (0, 0)
        progress(Progress(step, f"{label}{text}", done=done, total=total))

    return report


def megabytes(size: int) -> str:
    """Write a number of bytes in MB."""
    return f"{size / 1e6:.1f} MB"
