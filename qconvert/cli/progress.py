"""The steps of a run on stderr: one at work, with its speed, and a line for each that is done."""

import os
import sys
import textwrap
import time
from types import TracebackType
from typing import TYPE_CHECKING

from qconvert.cli.console import VERBOSITY, info, stderr_console, style_stderr
from qconvert.core.sanitize import sanitize_text

if TYPE_CHECKING:
    from rich.status import Status

    from qconvert.core.progress import Progress

TEXT_WIDTH, DURATION_WIDTH = 50, 14
LOG_INTERVAL_SECONDS = 10.0


class ProgressDisplay:
    """Shows progress: on a terminal a line that changes, in a log a line every few seconds."""

    def __init__(self) -> None:
        self._status: Status | None = None
        self._step, self._since, self._first = "", 0.0, 0
        self._told, self._done_before = 0.0, 0

    def __enter__(self) -> "ProgressDisplay":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    def update(self, progress: "Progress") -> None:
        """Show a step at work, or one that is done and what it made."""
        if progress.seconds is None:
            self._at_work(progress)
            return
        self._stop()
        if VERBOSITY.level >= 0:
            self._done(progress, progress.seconds)

    def _done(self, progress: "Progress", seconds: float) -> None:
        took = f"stored, {seconds:.1f} s" if progress.stored else f"{seconds:.1f} s"
        lines = sanitize_text(progress.text).splitlines()
        first, *more = [line for each in lines for line in textwrap.wrap(each, TEXT_WIDTH)]
        mark = style_stderr("✓", "32")
        shown = f"  {mark} {progress.step:<9} {first:<{TEXT_WIDTH}} {took:>{DURATION_WIDTH}}"
        sys.stderr.write("\n".join([shown, *(f"    {'':<9} {line}" for line in more)]) + "\n")
        sys.stderr.flush()

    def _at_work(self, progress: "Progress") -> None:
        now = time.monotonic()
        if progress.step != self._step or progress.done < self._done_before:
            self._step, self._since, self._first = progress.step, now, progress.done
            self._told = now
        self._done_before = progress.done
        text = f"{progress.step:<9} {sanitize_text(progress.text)}{self._speed(progress, now)}"
        if sys.stderr.isatty() and not os.environ.get("QCONVERT_NO_PROGRESS"):
            self._show(f"{text} …")
        elif progress.total and now - self._told >= LOG_INTERVAL_SECONDS:
            self._told = now
            info(f"    {text}")

    def _speed(self, progress: "Progress", now: float) -> str:
        """Return how much is done, how fast, and how long the rest takes."""
        if not progress.total:
            return ""
        text = f" {progress.done}/{progress.total}"
        made, seconds = progress.done - self._first, now - self._since
        if made <= 0 or seconds <= 0:
            return text
        left = round((progress.total - progress.done) * seconds / made)
        speed = f", {made / seconds:.0f}/s" if made >= seconds else ""
        return f"{text}{speed}, {left // 60}:{left % 60:02} left"

    def _show(self, text: str) -> None:
        if VERBOSITY.level < 0:
            return
        if self._status is None:
            self._status = stderr_console().status(text)
            self._status.start()
        else:
            self._status.update(text)

    def _stop(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None
