"""The errors that a user can cause or fix; any other is a bug and keeps its traceback (exit 70)."""

import difflib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


class QConvertError(Exception):
    """What went wrong, in one sentence; `details` say where, `hint` says what to do next."""

    exit_code = 3

    def __init__(self, message: str, *, hint: str, details: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.hint = hint
        self.details = tuple(details)
        # Python prints notes below a traceback.
        for text in (*self.details, f"hint: {hint}"):
            self.add_note(text)


class GateFailed(QConvertError):
    """The work is done, but a limit the user set is not met."""

    exit_code = 1


class UsageError(QConvertError):
    """The command or the configuration is wrong; nothing was started."""

    exit_code = 2


class Unavailable(QConvertError):
    """A backend or an optional package is not available on this machine."""

    exit_code = 4


class Terminated(BaseException):
    """The process was terminated (SIGTERM); only the error boundary catches it."""


@contextmanager
def attach_path(path: Path) -> Iterator[None]:
    """Add a path to an OSError of the block that names no file."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def first_line(error: BaseException, limit: int = 200) -> str:
    """Return the first line of an error's message, short enough to stand in a sentence."""
    lines = str(error).strip().splitlines()
    line = lines[0].strip().rstrip(".") if lines else type(error).__name__
    return line if len(line) <= limit else line[: limit - 1] + "…"


def did_you_mean(name: str, names: Sequence[str]) -> str:
    """Return `; did you mean ...?` if one of `names` is similar, else nothing."""
    similar = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean `{similar[0]}`?" if similar else ""
