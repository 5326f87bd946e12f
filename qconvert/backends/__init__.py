"""The backends by name: what each one requires, and whether it works on this machine."""

from importlib import import_module
from typing import cast

from qconvert.backends.base import Availability, Backend, BackendRequirements
from qconvert.backends.system_probe import Installed

# Modules are imported on use, so that one that fails to import leaves the others usable.
BACKENDS = {
    "cpu": "qconvert.backends.cpu",
    "cuda": "qconvert.backends.cuda",
    "tensorrt": "qconvert.backends.tensorrt",
    "tensorrt-rtx": "qconvert.backends.tensorrt_rtx",
}


def load(name: str) -> Backend:
    """Return a backend module; the tests type-check every module against the protocol."""
    return cast(Backend, import_module(BACKENDS[name]))


def probe(name: str, installed: Installed) -> Availability:
    """Find out whether a backend works on this machine."""
    return load(name).probe(installed)


def requirements(name: str) -> BackendRequirements:
    """Return the graphs that a backend accepts; it need not work on this machine."""
    return load(name).requirements()
