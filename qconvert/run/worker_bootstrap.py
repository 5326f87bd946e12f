"""How a worker process begins; light, so that what can fail at the start fails in here."""

import importlib
import multiprocessing
import os
import threading
from typing import Any

FAILED = 3

shared: Any = None


def start_worker(module: str, given: Any) -> None:
    """Import what the work needs, and end when the parent does: a killed one tells nobody.

    What is `given` is `shared` from then on. Without the memory for the imports a worker ends
    without a word; its parent has one for it.
    """
    global shared  # noqa: PLW0603 - what a process is given at its start has no other place
    shared = given
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        importlib.import_module(module)
    except (ImportError, MemoryError, OSError):
        os._exit(FAILED)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(FAILED)
