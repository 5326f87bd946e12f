"""The one place where errors become words and exit codes."""

import contextlib
import errno
import io
import logging
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from types import FrameType

import click

from qconvert.cli import console
from qconvert.core.errors import QConvertError, Terminated, UsageError

BUG_EXIT_CODE = 70
# The last is what Python says where an import finds no memory.
_OUT_OF_MEMORY_MESSAGES = (
    "failed to map segment from shared object",
    "can't start new thread",
    "error return without exception set",
)
_OUT_OF_MEMORY_TEXT = (
    b"error: not enough memory\n\nhint: use a larger machine, or end other work on it\n"
)
# What a process that was asked to end leaves with, as shells and supervisors expect.
SIGNAL_EXIT_CODES: dict[int, int] = {signal.SIGINT: 130, signal.SIGTERM: 143}

# What the user's disk or rights can do to any write; every other OSError is a bug of ours.
_FILE_ERROR_HINTS = {
    errno.ENOSPC: "free some space, or choose another place with `-o` or QCONVERT_CACHE_DIR",
    errno.EFBIG: "a limit on the size of files is in the way (`ulimit -f`)",
    errno.EDQUOT: "free some space, or choose another place with `-o` or QCONVERT_CACHE_DIR",
    errno.EROFS: "choose a place that can be written, with `-o` or QCONVERT_CACHE_DIR",
    errno.EACCES: "check the rights, or choose another place with `-o` or QCONVERT_CACHE_DIR",
    errno.EPERM: "check the rights, or choose another place with `-o` or QCONVERT_CACHE_DIR",
    errno.ENOENT: "check the path; a folder of it is not there",
    errno.ENOTDIR: "a file stands where a folder is needed",
    errno.EEXIST: "a file stands where a folder is needed",
    errno.EISDIR: "a folder stands where a file is needed",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "a link leads to itself; name the file or folder that is meant",
    errno.EIO: "the disk does not answer as it should",
}


def run_guarded(command: click.Command, args: Sequence[str]) -> int:
    """Run a command and return its exit code; whatever is raised becomes words and a code."""
    asked = _StopSignal()
    for number in SIGNAL_EXIT_CODES:
        # What started this process may want it to ignore one, as `nohup` and `&` do.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, asked.handle)
    # Without a handler, what libraries log would appear on stderr between our own lines.
    logging.getLogger().addHandler(logging.NullHandler())
    try:
        result = command.main(args=list(args), prog_name="qconvert", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except (click.Abort, KeyboardInterrupt):
        return _exit_for_signal(signal.SIGINT)
    except Terminated:
        return _exit_for_signal(signal.SIGTERM)
    except SystemExit as left:
        # How click leaves when the reader of our pipe has seen enough; there is no better sign.
        closed = type(sys.stdout).__name__.endswith("PacifyFlushWrapper")
        return (
            0
            if closed
            else _report_error(RuntimeError(f"something called sys.exit({left.code!r})"))
        )
    except Exception as error:
        # A library into which a signal came may have made an error of its own of it.
        return _exit_for_signal(asked.number) if asked.number else _report_error(error)


@dataclass
class _StopSignal:
    """The signal that asked this process to end, if one did."""

    number: int = 0

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Leave what is being done, so that drafts are removed."""
        self.number = number
        raise KeyboardInterrupt if number == signal.SIGINT else Terminated


def _exit_for_signal(number: int) -> int:
    if number == signal.SIGINT:
        console.info("interrupted; finished steps are kept, run the same command to go on")
    return SIGNAL_EXIT_CODES[number]


def _report_error(error: Exception) -> int:
    """Say what went wrong, or less where no memory is left for that, and return the exit code."""
    try:
        return _print_error(error)
    except MemoryError:
        os.write(2, _OUT_OF_MEMORY_TEXT)
        return QConvertError.exit_code


def _print_error(error: Exception) -> int:
    known = _as_user_error(error)
    if known is not None:
        console.show_error(known)
        return known.exit_code
    console.write_stderr("".join(traceback.format_exception(error)))
    console.write_stderr("this is a bug in qconvert; please report it with the text above\n")
    return BUG_EXIT_CODE


def _as_user_error(error: Exception) -> QConvertError | None:
    """Return what the user can do something about, or None for a bug."""
    if isinstance(error, QConvertError):
        return error
    if isinstance(error, click.ClickException):
        return _as_usage_error(error)
    if _is_out_of_memory(error):
        return QConvertError(
            "not enough memory",
            hint="use fewer --workers or a smaller --batch, or a larger machine",
        )
    return _as_file_name_error(error) or _as_file_error(error)


def _as_file_error(error: Exception) -> QConvertError | None:
    """Return what the disk or the rights of the user are in the way of."""
    if isinstance(error, OSError) and error.errno in _FILE_ERROR_HINTS:
        place = error.filename2 or error.filename  # of two, the one that was written
        what = f"`{place}`: {error.strerror}" if place else str(error.strerror)
        return QConvertError(what, hint=_FILE_ERROR_HINTS[error.errno])
    return None


def _as_file_name_error(error: Exception) -> QConvertError | None:
    """Return what a name of a file can do: not be UTF-8, or lead to itself."""
    if isinstance(error, UnicodeEncodeError) and error.reason == "surrogates not allowed":
        before, after = error.object[: error.start], error.object[error.start :]
        line = before.rpartition("\n")[2] + after.partition("\n")[0]
        return QConvertError(
            f"a name that is not UTF-8 cannot be written down: {line.strip()}",
            hint="rename the file or folder",
        )
    # How `Path.resolve` says ELOOP before Python 3.13.
    if isinstance(error, RuntimeError) and str(error).startswith("Symlink loop"):
        return QConvertError(str(error), hint=_FILE_ERROR_HINTS[errno.ELOOP])
    return None


def _is_out_of_memory(error: Exception) -> bool:
    """Whether an error is one of the ways in which libraries say that no memory is left."""
    if isinstance(error, MemoryError) or (
        isinstance(error, OSError) and error.errno == errno.ENOMEM
    ):
        return True
    return any(sign in str(error) for sign in _OUT_OF_MEMORY_MESSAGES)


def _as_usage_error(error: click.ClickException) -> UsageError:
    message = error.format_message().rstrip(".")
    context = error.ctx if isinstance(error, click.UsageError) else None
    hint = f"see `{context.command_path if context else 'qconvert'} --help`"
    return UsageError(message[:1].lower() + message[1:], hint=hint)


def open_standard_streams() -> None:
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


def flush_stdout() -> None:
    """Drop what cannot be written, which was told; else Python's last try would change the code."""
    try:
        sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
