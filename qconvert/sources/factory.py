"""`package.module:factory`: find the user's function and call it; this runs the user's own code."""

import contextlib
import importlib
import io
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from qconvert.config_errors import near
from qconvert.errors import QConvertError, UsageError, reason


def build(name: str) -> object:
    """Import `package.module` (the working folder first) and return what `factory()` returns."""
    function = _find(name)
    try:
        # What a factory prints belongs to the talk; stdout is for results.
        with contextlib.redirect_stdout(sys.stderr):
            return function()
    except (Exception, SystemExit) as error:
        raise _raised(f"`{name}()` raised {type(error).__name__}: {reason(error)}", error) from None


def _find(name: str) -> Callable[[], object]:
    module_name, _, attribute = name.partition(":")
    module = _import(module_name)
    found: Callable[[], object] | None = getattr(module, attribute, None)
    if found is None:
        names = [each for each in vars(module) if not each.startswith("_")]
        raise UsageError(
            f"`{module_name}` has no `{attribute}`{near(attribute, names)}",
            hint="write `package.module:function`, where function() returns the model",
        )
    if not callable(found):
        raise UsageError(
            f"`{name}` is not a function",
            hint="write `package.module:function`, where function() returns the model",
        )
    return found


def _import(module_name: str) -> object:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise UsageError(
                f"there is no module `{module_name}` here",
                hint="modules are looked up in the current folder and among installed packages",
            ) from None
        raise _raised(f"importing `{module_name}` failed: {reason(error)}", error) from None
    except (Exception, SystemExit) as error:
        what = f"importing `{module_name}` raised {type(error).__name__}: {reason(error)}"
        raise _raised(what, error) from None


def _raised(what: str, error: BaseException) -> QConvertError:
    """Point at the user's own line, not at ours."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.line]
    own = [
        frame
        for frame in frames
        if Path(__file__).parent.parent not in Path(frame.filename).parents
    ]
    where = [f"{Path(frame.filename).name}:{frame.lineno}: {frame.line}" for frame in own[-1:]]
    return QConvertError(what, details=where, hint="the function must run without arguments")
