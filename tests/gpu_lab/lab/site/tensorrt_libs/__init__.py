"""Stand in for the package `tensorrt-cu13-libs`: importing it loads the libraries."""

import ctypes
from pathlib import Path

SITE = Path(__file__).parents[1]
for folder in (SITE / "nvidia/cu13/lib", Path(__file__).parent):
    for path in sorted(folder.glob("*.so.*")):
        # One that lacks another is tried again by whoever needs it.
        try:
            ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
        except OSError:
            continue
