"""`package.module:factory`: find the user's function and call it; this runs the user's own code."""

import contextlib
import importlib
import io
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from qconvert.core.errors import QConvertError, UsageError, did_you_mean, first_line


def call(name: str) -> object:
    """Import `package.module` (the working folder first) and return what `factory()` returns."""
    function = _find(name)
    try:
        # What a factory prints belongs to the talk; stdout is for results.
        with contextlib.redirect_stdout(sys.stderr):
            return function()
    except (Exception, SystemExit) as error:
        what = f"`{name}()` raised {type(error).__name__}: {first_line(error)}"
        raise QConvertError(what, details=user_line(error), hint=_cure(error)) from None


def add_working_folder_to_path() -> None:
    """Let Python import from the working folder, where the user's own modules are."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)


def user_line(error: BaseException) -> list[str]:
    """Return the user's own line that an error came from: not one of ours, nor of a library's."""
    ours = Path(__file__).parent.parent
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.line and ours not in Path(frame.filename).parents
    ]
    own = [frame for frame in frames if "site-packages" not in frame.filename]
    return [f"{Path(frame.filename).name}:{frame.lineno}: {frame.line}" for frame in own[-1:]]


def _find(name: str) -> Callable[[], object]:
    module_name, _, attribute = name.partition(":")
    module = _import(module_name)
    found: Callable[[], object] | None = getattr(module, attribute, None)
    if found is None:
        names = [each for each in vars(module) if not each.startswith("_")]
        raise UsageError(
            f"`{module_name}` has no `{attribute}`{did_you_mean(attribute, names)}",
            hint="write `package.module:function`, where function() returns the model",
        )
    if not callable(found):
        raise UsageError(
            f"`{name}` is not a function",
            hint="write `package.module:function`, where function() returns the model",
        )
    return found


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
            hint=f"install `{error.name}`, or run in the folder it lies in",
        ) from None
    except (Exception, SystemExit) as error:
        what = f"importing `{module_name}` raised {type(error).__name__}: {first_line(error)}"
        raise QConvertError(what, details=user_line(error), hint=_cure(error)) from None


def _cure(error: BaseException) -> str:
    if isinstance(error, TypeError) and "argument" in str(error):
        return "the function must run without arguments"
    return "this is raised by the code named above, which runs as it would in Python"
