"""The process boundary: standard streams, signals, and errors as messages and exit codes."""

import contextlib
import errno
import io
import logging
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from types import FrameType

import click

from qconvert.cli import console
from qconvert.core.errors import QConvertError, Terminated, UsageError

# The usual codes for a terminated process; shells and supervisors expect them.
SIGNAL_EXIT_CODES: dict[int, int] = {signal.SIGINT: 130, signal.SIGTERM: 143}

_OUT_OF_MEMORY = (
    "failed to map segment from shared object",
    "can't start new thread",
    "error return without exception set",  # an import that runs out of memory
)
_OTHER_PLACE = "or choose another location with `-o` or QCONVERT_CACHE_DIR"
# Errors of a full disk, missing rights or a bad path; other OSErrors are bugs.
_FILE_ERROR_HINTS = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), f"free some space, {_OTHER_PLACE}"),
    **dict.fromkeys((errno.EACCES, errno.EPERM), f"check the permissions, {_OTHER_PLACE}"),
    errno.ENOTDIR: "there is a file where a folder is needed",
    errno.EEXIST: "there is a file where a folder is needed",
    errno.EISDIR: "there is a folder where a file is needed",
    errno.ENOENT: "check the path; one of its folders does not exist",
    errno.EROFS: "choose a writable location with `-o` or QCONVERT_CACHE_DIR",
    errno.EFBIG: "the file size limit is too low; raise it with `ulimit -f`",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "a link points to itself; name the file or folder it should point to",
    errno.EIO: "the disk reports an error; check it",
}


def run_guarded(command: click.Command, args: Sequence[str]) -> int:
    """Run a command and return its exit code; every exception becomes a message and a code."""
    received: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        # As an exception, so that temporary folders are removed on the way out.
        received.append(number)
        raise KeyboardInterrupt if number == signal.SIGINT else Terminated

    for number in SIGNAL_EXIT_CODES:
        # `nohup` and `&` start a process with signals ignored; keep them ignored.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, stop)
    # Without a handler, log lines of libraries would mix with ours on stderr.
    logging.getLogger().addHandler(logging.NullHandler())
    try:
        with contextlib.closing(console.PROGRESS):
            result = command.main(args=list(args), prog_name="qconvert", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except (click.Abort, KeyboardInterrupt):
        received.append(signal.SIGINT)
    except Terminated:
        received.append(signal.SIGTERM)
    except SystemExit as exit_:
        # Click exits like this when our pipe is closed, and marks stdout.
        if type(sys.stdout).__name__.endswith("PacifyFlushWrapper"):
            return 0
        return _report_error(RuntimeError(f"something called sys.exit({exit_.code!r})"))
    except Exception as error:
        # A library interrupted by a signal may raise its own error.
        if not received:
            return _report_error(error)
    if received[-1] == signal.SIGINT:
        console.info("interrupted; finished steps are kept, run the same command to resume")
    return SIGNAL_EXIT_CODES[received[-1]]


def _report_error(error: Exception) -> int:
    """Print an error and return its exit code, even when no memory is left to format it."""
    try:
        if user_error := _as_user_error(error):
            console.show_error(user_error)
            return user_error.exit_code
        trace = "".join(traceback.format_exception(error))
        bug = "this is a bug in qconvert; please report it with the text above"
        console.info(f"{trace}{bug}", level=-1)
        return 70
    except MemoryError:
        text = b"error: not enough memory\n\nhint: use a larger machine, or stop other programs\n"
        os.write(2, text)
        return QConvertError.exit_code


def _as_user_error(error: Exception) -> QConvertError | None:
    """Return an error that the user can fix, or None for a bug."""
    if isinstance(error, QConvertError):
        return error
    if isinstance(error, click.ClickException):
        message = error.format_message().rstrip(".").replace("\n\t", " ")
        context = error.ctx if isinstance(error, click.UsageError) else None
        hint = f"see `{context.command_path if context else 'qconvert'} --help`"
        return UsageError(message[:1].lower() + message[1:], hint=hint)
    if (
        isinstance(error, MemoryError)
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or any(message in str(error) for message in _OUT_OF_MEMORY)
    ):
        message = "not enough memory"
        hint = "use fewer --workers or a smaller --batch, or a larger machine"
    elif isinstance(error, OSError) and error.errno in _FILE_ERROR_HINTS:
        path = error.filename2 or error.filename  # of two, the target
        message = f"`{path}`: {error.strerror}" if path else str(error.strerror)
        hint = _FILE_ERROR_HINTS[error.errno]
    elif isinstance(error, RuntimeError) and str(error).startswith("Symlink loop"):
        # `Path.resolve` reports ELOOP like this before Python 3.13.
        message, hint = str(error), _FILE_ERROR_HINTS[errno.ELOOP]
    elif isinstance(error, UnicodeEncodeError) and error.reason == "surrogates not allowed":
        before, after = error.object[: error.start], error.object[error.start :]
        line = before.rpartition("\n")[2] + after.partition("\n")[0]
        message = f"a name that is not UTF-8 cannot be written: {line.strip()}"
        hint = "rename the file or folder"
    else:
        return None
    return QConvertError(message, hint=hint)


def open_standard_streams() -> None:
    """Open closed standard streams on /dev/null; otherwise the next opened file would replace them.

    The number that `os.open` returns is the lowest free one, so it is the one that is missing.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # Child processes need it too.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    # Open for as long as the process runs.
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115
    # Under `LC_ALL=C` there is no ± or ✓: print `\xb1` rather than fail.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def flush_stdout() -> None:
    """Flush stdout, or discard what cannot be written, so that Python's exit keeps our code."""
    try:
        sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
