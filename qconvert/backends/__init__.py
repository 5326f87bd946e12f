"""The backends by name: what each one requires, and whether it works on this machine."""

from importlib import import_module
from typing import cast

from qconvert.backends.base import Availability, Backend, BackendRequirements
from qconvert.backends.system_probe import Installed

# A module is imported on use: one that does not import leaves the other backends usable.
BACKENDS = {
    "cpu": "qconvert.backends.cpu",
    "cuda": "qconvert.backends.cuda",
    "tensorrt": "qconvert.backends.tensorrt",
    "tensorrt-rtx": "qconvert.backends.tensorrt_rtx",
}


def load(name: str) -> Backend:
    """Return a backend. Type checkers prove in the tests that every module is one."""
    return cast(Backend, import_module(BACKENDS[name]))


def probe(name: str, installed: Installed) -> Availability:
    """Find out whether a backend works on this machine."""
    return load(name).probe(installed)


def requirements(name: str) -> BackendRequirements:
    """Return which graphs a backend takes; it need not work on this machine."""
    return load(name).requirements()
