"""The start of a worker process; a light module whose imports need little memory."""

import importlib
import multiprocessing
import os
import threading
from typing import Any

FAILED = 3

shared: Any = None


def start_worker(module: str, value: Any) -> None:
    """Import the worker's module, keep `value` as `shared`, and end when the parent ends."""
    global shared  # noqa: PLW0603 - process-wide state set at start-up
    shared = value
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        importlib.import_module(module)
    except (ImportError, MemoryError, OSError):  # too little memory, which the parent reports
        os._exit(FAILED)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(FAILED)
