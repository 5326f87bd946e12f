"""Find and call the user's `package.module:factory`, which runs the user's own code."""

import contextlib
import importlib
import io
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from qconvert.core.errors import QConvertError, UsageError, did_you_mean, first_line

FORM_HINT = "write `package.module:function`, where function() returns the model"


def call(name: str) -> object:
    """Import `package.module`, the working folder first, and return the result of `factory()`."""
    factory = _find(name)
    try:
        # stdout is for results; what a factory prints goes to stderr.
        with contextlib.redirect_stdout(sys.stderr):
            return factory()
    except (Exception, SystemExit) as error:
        raise _user_error(f"`{name}()`", error) from None


def add_working_folder_to_path() -> None:
    """Let Python import the user's own modules from the working folder."""
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)


def user_line(error: BaseException) -> list[str]:
    """Return the line of the user's code that an error came from, as a list of at most one."""
    package = Path(__file__).parent.parent
    lines = [
        f"{Path(frame.filename).name}:{frame.lineno}: {frame.line}"
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.line
        and package not in Path(frame.filename).parents
        and "site-packages" not in frame.filename
    ]
    return lines[-1:]


def _find(name: str) -> Callable[[], object]:
    module_name, _, attribute = name.partition(":")
    module = _import(module_name)
    factory: Callable[[], object] | None = getattr(module, attribute, None)
    if factory is None:
        names = [item for item in vars(module) if not item.startswith("_")]
        raise UsageError(
            f"`{module_name}` has no `{attribute}`{did_you_mean(attribute, names)}", hint=FORM_HINT
        )
    if not callable(factory):
        raise UsageError(f"`{name}` is not a function", hint=FORM_HINT)
    return factory


def _import(module_name: str) -> object:
    add_working_folder_to_path()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(f"{error.name}.")):
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


def _user_error(action: str, error: BaseException) -> QConvertError:
    if isinstance(error, TypeError) and "argument" in str(error):
        hint = "the function must run without arguments"
    else:
        hint = "the code named above raised this, as it would in Python"
    return QConvertError(
        f"{action} raised {type(error).__name__}: {first_line(error)}",
        details=user_line(error),
        hint=hint,
    )
