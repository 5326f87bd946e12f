"""Stand in for the package `tensorrt-cu13`, which is this line."""

from tensorrt_bindings import *  # type: ignore[import-not-found]  # noqa: F403
from tensorrt_bindings import __version__ as __version__
