"""Where networks run: what each backend needs, and whether it works here."""

from importlib import import_module
from typing import cast

from qconvert.backends.base import Availability, Backend, BackendRequirements
from qconvert.backends.system_probe import Installed

# Imported on use, so that one backend's trouble is not another's.
BACKENDS = {
    "cpu": "qconvert.backends.cpu",
    "cuda": "qconvert.backends.cuda",
    "tensorrt": "qconvert.backends.tensorrt",
    "tensorrt-rtx": "qconvert.backends.tensorrt_rtx",
}


def probe(name: str, installed: Installed) -> Availability:
    """Ask one backend whether it works on this machine."""
    found = import_module(BACKENDS[name]).probe(installed)
    assert isinstance(found, Availability)
    return found


def requirements(name: str) -> BackendRequirements:
    """Ask one backend what graphs it takes; it need not work on this machine."""
    found = import_module(BACKENDS[name]).requirements()
    assert isinstance(found, BackendRequirements)
    return found


def load(name: str) -> Backend:
    """Return a backend; that a module is one is proved where tests name all of them."""
    return cast(Backend, import_module(BACKENDS[name]))
