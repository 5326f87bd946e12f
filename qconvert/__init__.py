"""From a trained image model to the fastest engine that still gives the right predictions.

`import qconvert` is cheap: `qconvert.api` is imported when one of its names is first used.
`docs/python.md` shows them at work.
"""

# ruff: noqa: F403, F405 (only type checkers see the names of `api`)

import sys
from types import ModuleType
from typing import TYPE_CHECKING

from qconvert.core.errors import GateFailed, QConvertError, Unavailable, UsageError

if TYPE_CHECKING:
    from qconvert.api import *
else:  # type checkers would accept any name

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module `{__name__}` has no attribute `{name}`")
        from qconvert import api

        return getattr(api, name)


__version__ = "0.1.0"

__all__ = ["GateFailed", "QConvertError", "Unavailable", "UsageError"]
__all__ += ["Calibration", "Exported", "OpenEngine", "Packed", "Progress", "Quantized", "Report"]
__all__ += ["Run", "SearchSummary"]
__all__ += ["bench", "build", "calibrate", "evaluate", "export", "package", "quantize", "resume"]
__all__ += ["open_engine", "open_run", "search", "tune"]


class _Package(ModuleType):
    """Keeps `quantize`, `package` and others callable despite subpackages of the same names."""

    def __setattr__(self, name: str, value: object) -> None:
        # Python sets a package's submodules as its attributes when they are imported.
        if not (isinstance(value, ModuleType) and name in __all__):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
