"""What can go wrong that a user can cause or cure, and the exit code each means.

    QConvertError      3   the work failed: unreadable model, unsupported operator, failed build
    ├── GateFailed     1   the work is done, but a limit the user set is not met
    ├── UsageError     2   the command or the configuration is wrong
    └── Unavailable    4   a backend or an optional package is not available on this machine

Anything else that is raised is a bug and keeps its traceback (exit 70).
"""

import difflib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


class QConvertError(Exception):
    """What went wrong, in one sentence; `details` say where, `hint` says what to do next.

    There is no error without a hint: who raises one knows better than the user what helps.
    """

    exit_code = 3

    def __init__(self, message: str, *, hint: str, details: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.hint = hint
        self.details = tuple(details)
        # What Python prints below a traceback, for those who call functions.
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
    """The process was asked to end (SIGTERM); nobody but the boundary answers to it."""


@contextmanager
def attach_path(place: Path) -> Iterator[None]:
    """Give trouble with a write the name of the place, where the system names none."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(place)) from error


def first_line(error: BaseException, limit: int = 200) -> str:
    """Return the first line of what a library said, short enough to stand in a sentence."""
    lines = str(error).strip().splitlines()
    first = lines[0].strip().rstrip(".") if lines else type(error).__name__
    return first if len(first) <= limit else first[: limit - 1] + "…"


def did_you_mean(name: str, names: Sequence[str]) -> str:
    """Return `; did you mean ...?` where one of `names` is close enough, else nothing."""
    close = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean `{close[0]}`?" if close else ""
