"""What a test session makes once, on disk, for the workers of pytest-xdist to share."""

import fcntl
from collections.abc import Callable
from pathlib import Path

# Set by a fixture of `conftest` before the first test.
_folders: list[Path] = []


def begin_session(folder: Path) -> None:
    """Keep what is shared in the folder of the session."""
    place = folder / "shared"
    place.mkdir(exist_ok=True)
    _folders[:] = [place]


def once(name: str, make: Callable[[Path], object]) -> Path:
    """Return a folder that `make` has filled, in the worker that asked first; others wait."""
    (session,) = _folders
    folder, finished = session / name, session / f"{name}.finished"
    with (session / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not finished.exists():
            folder.mkdir()
            make(folder)
            finished.touch()
    return folder
