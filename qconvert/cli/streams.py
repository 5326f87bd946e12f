"""Standard input, output and error, whatever of them whoever started this process left open."""

import contextlib
import io
import os
import sys


def open_all() -> None:
    """Give each that is closed a place where nothing is; else the next file would be in it."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # The lowest number that is free, so this one; processes started from here need it too.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    # Open for as long as the process runs.
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115
    # Under `LC_ALL=C` there is no ± or ✓ to write: better `\xb1` than no table.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def let_go() -> None:
    """Drop what cannot be written, which was told; else Python's last try would change the code."""
    try:
        sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
