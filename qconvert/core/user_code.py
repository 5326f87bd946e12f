"""Functions of the user, named `package.module:function`: import and call them."""

import contextlib
import hashlib
import importlib
import io
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from qconvert.core.errors import QConvertError, UsageError, did_you_mean, first_line


def import_function(source: str, returns: str) -> Callable[..., Any]:
    """Import a function, from the working folder first; `returns` says in a hint what it is for."""
    module_name, _, name = source.partition(":")
    add_working_folder_to_path()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and f"{module_name}.".startswith(f"{error.name}."):
            raise UsageError(
                f"there is no module `{module_name}` here",
                hint="modules are looked up in the current folder and among installed packages",
            ) from None
        raise QConvertError(
            f"importing `{module_name}` failed: {first_line(error)}",
            details=user_line(error),
            hint=f"install `{error.name}`, or run in the folder that contains it",
        ) from None
    except (Exception, SystemExit) as error:
        raise _user_error(f"importing `{module_name}`", error) from None
    function = getattr(module, name, None)
    if not callable(function):
        names = [item for item in vars(module) if not item.startswith("_")]
        missing = f"`{module_name}` has no `{name}`{did_you_mean(name, names)}"
        raise UsageError(
            missing if function is None else f"`{source}` is not a function",
            hint=f"write `package.module:function`, where {returns}",
        )
    return function  # type: ignore[no-any-return]


def call_function(source: str, function: Callable[..., Any], *arguments: object) -> Any:
    """Return what the function of this name returns; what it prints goes to stderr."""
    try:
        # stdout is for results.
        with contextlib.redirect_stdout(sys.stderr):
            return function(*arguments)
    except (Exception, SystemExit) as error:
        raise _user_error(f"`{source}()`", error, len(arguments)) from None


def file_hash(sources: Mapping[str, str]) -> str:
    """Return a hash of the files that define these functions; for hints, what each is for."""
    digest = hashlib.sha256()
    for source, returns in sources.items():
        import_function(source, returns)
        file = getattr(sys.modules[source.partition(":")[0]], "__file__", None)
        digest.update(Path(file).read_bytes() if file else source.encode())
    return digest.hexdigest()


def add_working_folder_to_path() -> None:
    """Let Python import the user's own modules from the working folder."""
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)


def user_line(error: BaseException) -> list[str]:
    """Return the line of the user's code that an error came from, as a list of at most one."""
    package = Path(__file__).parent.parent
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = Path(frame.filename)
        if frame.line and package not in file.parents and "site-packages" not in frame.filename:
            return [f"{file.name}:{frame.lineno}: {frame.line}"]
    return []


def _user_error(action: str, error: BaseException, arguments: int = 0) -> QConvertError:
    hint = "fix the code named above; it fails in Python in the same way"
    if isinstance(error, TypeError) and "argument" in str(error):
        count = f"with {arguments} arguments" if arguments else "without arguments"
        hint = f"the function must run {count}"
    return QConvertError(
        f"{action} raised {type(error).__name__}: {first_line(error)}",
        details=user_line(error),
        hint=hint,
    )
