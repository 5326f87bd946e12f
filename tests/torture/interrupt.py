"""Runs qconvert up to a change that it makes to the disk, and there kills or stops itself.

    python -P stumble.py NUMBER SIGNAL EVENT,EVENT ARGS...

With NUMBER 0 it runs to the end; its last line on stderr says how many changes there were.
"""

import os
import sys
from collections.abc import Callable

from qconvert.cli import run

CHANGES = ("os.rename", "os.mkdir", "os.rmdir", "os.remove", "open")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def changes_disk(event: str, args: tuple[object, ...]) -> bool:
    """Return whether an audit event says that the disk is about to change."""
    if event != "open":
        return True
    path, _, flags = args
    return isinstance(flags, int) and bool(flags & WRITING) and not str(path).startswith("/dev/")


def interrupt_at(at: int, number: int, events: tuple[str, ...]) -> Callable[[], int]:
    """Send this process a signal right before its change number `at`; return what counts them."""
    seen = 0

    def hook(event: str, args: tuple[object, ...]) -> None:
        nonlocal seen
        if event in events and changes_disk(event, args):
            seen += 1
            if seen == at:
                os.kill(os.getpid(), number)

    sys.addaudithook(hook)
    return lambda: seen


if __name__ == "__main__":
    at, number, events, *rest = sys.argv[1:]
    counted = interrupt_at(int(at), int(number), tuple(events.split(",")))
    sys.argv = ["qconvert", *rest]
    try:
        run()
    finally:
        sys.stderr.write(f"{counted()} changes\n")
