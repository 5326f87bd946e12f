"""Run qconvert up to a change that it makes to the disk, and kill or stop it there.

    python -P interrupt.py NUMBER SIGNAL EVENT,EVENT ARGS...

With NUMBER 0 it runs to the end; its last line on stderr counts the changes.
"""

import os
import sys
from collections.abc import Callable

from qconvert.cli import run

CHANGES = ("os.rename", "os.mkdir", "os.rmdir", "os.remove", "open")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def changes_disk(event: str, args: tuple[object, ...]) -> bool:
    """Return whether an audit event announces a change to the disk."""
    if event != "open":
        return True
    path, _, flags = args
    return isinstance(flags, int) and bool(flags & WRITING) and not str(path).startswith("/dev/")


def interrupt_at(at: int, number: int, events: tuple[str, ...]) -> Callable[[], int]:
    """Send this process a signal right before change number `at`; return a counter of changes."""
    count = 0

    def hook(event: str, args: tuple[object, ...]) -> None:
        nonlocal count
        if event in events and changes_disk(event, args):
            count += 1
            if count == at:
                os.kill(os.getpid(), number)

    sys.addaudithook(hook)
    return lambda: count


if __name__ == "__main__":
    at, number, events, *rest = sys.argv[1:]
    count_changes = interrupt_at(int(at), int(number), tuple(events.split(",")))
    sys.argv = ["qconvert", *rest]
    try:
        run()
    finally:
        sys.stderr.write(f"{count_changes()} changes\n")
