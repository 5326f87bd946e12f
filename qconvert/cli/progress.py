"""Progress on stderr: the running step with its speed, and a line for each finished step."""

import os
import sys
import textwrap
import time
from typing import TYPE_CHECKING

from qconvert.cli.console import VERBOSITY, info, rich_console, style_stderr
from qconvert.core.sanitize import sanitize_text

if TYPE_CHECKING:
    from rich.status import Status

    from qconvert.core.progress import Progress

LOG_INTERVAL_SECONDS = 10.0


class ProgressDisplay:
    """Shows progress as a changing line on a terminal, as a line every few seconds in a log."""

    def __init__(self) -> None:
        self._status: Status | None = None
        self._step, self._last_done = "", 0
        self._started, self._first_done, self._last_logged = 0.0, 0, 0.0

    def __enter__(self) -> "ProgressDisplay":
        return self

    def __exit__(self, *error: object) -> None:
        self._stop_status()

    def update(self, progress: "Progress") -> None:
        """Show a running step, or a finished one and its result."""
        if progress.seconds is None:
            self._show_running(progress)
            return
        self._stop_status()
        if VERBOSITY.level < 0:
            return
        duration = f"{'cached, ' if progress.stored else ''}{progress.seconds:.1f} s"
        paragraphs = sanitize_text(progress.text).splitlines()
        first, *rest = [line for text in paragraphs for line in textwrap.wrap(text, 50)]
        head = f"  {style_stderr('✓', '32')} {progress.step:<9} {first:<50} {duration:>14}"
        sys.stderr.write("\n".join([head, *(f"    {'':<9} {line}" for line in rest)]) + "\n")
        sys.stderr.flush()

    def _show_running(self, progress: "Progress") -> None:
        now = time.monotonic()
        if progress.step != self._step or progress.done < self._last_done:
            self._step, self._first_done = progress.step, progress.done
            self._started = self._last_logged = now
        self._last_done = progress.done
        text = f"{progress.step:<9} {sanitize_text(progress.text)}{self._speed(progress, now)}"
        if sys.stderr.isatty() and not os.environ.get("QCONVERT_NO_PROGRESS"):
            if self._status is not None:
                self._status.update(f"{text} …")
            elif VERBOSITY.level >= 0:
                self._status = rich_console(stderr=True).status(f"{text} …")
                self._status.start()
        elif progress.total and now - self._last_logged >= LOG_INTERVAL_SECONDS:
            self._last_logged = now
            info(f"    {text}")

    def _speed(self, progress: "Progress", now: float) -> str:
        """Return how much is done, the speed, and the time left."""
        if not progress.total:
            return ""
        text = f" {progress.done}/{progress.total}"
        done, seconds = progress.done - self._first_done, now - self._started
        if done <= 0 or seconds <= 0:
            return text
        left = round((progress.total - progress.done) * seconds / done)
        speed = f", {done / seconds:.0f}/s" if done >= seconds else ""
        return f"{text}{speed}, {left // 60}:{left % 60:02} left"

    def _stop_status(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None
