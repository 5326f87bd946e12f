"""Hidden folders to work in beside the final place, and what killed processes left of them.

Who works in a folder holds a lock on the folder itself: that leaves nothing, and goes with its
process however it ends, whatever the clock says. Where the platform or the disk has no such locks,
what nobody wrote to for a day counts as abandoned.
"""

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from qconvert.core.errors import attach_path

TEMPORARY_PREFIX = ".qconvert-draft-"
RESUMABLE_PREFIX = ".qconvert-bench-"
ABANDONED_SECONDS = 24 * 3600


@contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """Yield a new folder inside `folder`, gone when the block ends; dead ones beside it go first.

    What was made in it is renamed to its place, and so appears whole or not at all.
    """
    remove_abandoned(parent)
    with ExitStack() as stack:
        place = _new_temporary_folder(parent, stack)
        stack.callback(shutil.rmtree, place, ignore_errors=True)
        yield place


def missing_folders(folder: Path) -> list[Path]:
    """Return a folder and those above it that are not there, the innermost first."""
    return [each for each in (folder, *folder.absolute().parents) if not each.exists()]


def remove_empty_folders(folders: Iterable[Path]) -> None:
    """Remove folders again, as far as they are empty."""
    for each in folders:
        with contextlib.suppress(OSError):
            each.rmdir()


@contextmanager
def created_folder(folder: Path) -> Iterator[None]:
    """Make a folder and those above it; where the block fails, those that stayed empty go again."""
    new = missing_folders(folder)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        remove_empty_folders(new)
        raise


@contextmanager
def system_temporary_folder() -> Iterator[Path]:
    """Yield a new folder where the system wants such files; those that killed ones left go."""
    with temporary_folder(Path(tempfile.gettempdir())) as place:
        yield place


@contextmanager
def resumable_folder(parent: Path, name: str) -> Iterator[Path]:
    """Yield the folder in which long work keeps what it has; it goes when the block ends well.

    A later try finds what a killed one left, until nothing was written to it for a day. Of two
    processes at work the second has a folder of its own.
    """
    place = parent / f"{RESUMABLE_PREFIX}{name}"
    with ExitStack() as stack:
        if _lock_resumable(place, stack):
            yield place
            remove_folder(place)
        else:
            yield stack.enter_context(temporary_folder(parent))


@contextmanager
def lock_folder(folder: Path) -> Iterator[bool | None]:
    """Hold a folder; yield False where another process does, None where there are no such locks.

    Raise FileNotFoundError where the folder went away before it was held.
    """
    try:
        import fcntl
    except ModuleNotFoundError:
        yield None
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ours: bool | None = True
        except BlockingIOError:
            ours = False
        except OSError:  # as on NFS, where only files can be held
            ours = None
        if not os.path.samestat(os.fstat(handle), folder.stat()):
            raise FileNotFoundError(folder)
        yield ours
    finally:
        os.close(handle)


def remove_abandoned(folder: Path) -> None:
    """Delete the drafts in a folder that no process holds, and benches left alone for a day."""
    for place in (*folder.glob(f"{TEMPORARY_PREFIX}*"), *folder.glob(f"{RESUMABLE_PREFIX}*")):
        # It may go away meanwhile, or belong to somebody else.
        with contextlib.suppress(OSError), lock_folder(place) as ours:
            if ours is not False and (
                _is_abandoned(place) or (ours and place.name.startswith(TEMPORARY_PREFIX))
            ):
                shutil.rmtree(place, ignore_errors=True)


def remove_folder(folder: Path) -> None:
    """Delete a folder; renamed first, so that nobody finds it half deleted."""
    if not folder.exists():
        return
    # Another process may be faster.
    with temporary_folder(folder.parent) as doomed, contextlib.suppress(FileNotFoundError):
        folder.rename(doomed / "work")


def _new_temporary_folder(folder: Path, stack: ExitStack) -> Path:
    while True:
        place = Path(tempfile.mkdtemp(dir=folder, prefix=TEMPORARY_PREFIX))
        # Another process may take it for a dead one before it is held.
        with contextlib.suppress(FileNotFoundError):
            if stack.enter_context(lock_folder(place)) is not False:
                return place


def _lock_resumable(place: Path, stack: ExitStack) -> bool:
    """Make a bench if there is none, and hold it; return whether another process does."""
    while True:
        place.mkdir(exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # its owner was done with it just now
            return stack.enter_context(lock_folder(place)) is not False


def _is_abandoned(folder: Path) -> bool:
    """Whether nothing was written to a folder for a day; what is dated ahead by one is as old."""
    ages = (abs(time.time() - path.stat().st_mtime) for path in (folder, *folder.rglob("*")))
    return min(ages) > ABANDONED_SECONDS


def write_text(path: Path, text: str) -> None:
    """Write a file that appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with attach_path(path), temporary_folder(path.parent) as folder:
        draft = folder / path.name
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)


def copy_into_place(source: Path, place: Path) -> None:
    """Copy a file or folder to a place where it appears whole, in place of what was there."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with attach_path(place), temporary_folder(place.parent) as folder:
        draft = folder / "new"
        if source.is_dir():
            # Not `copytree`: it would copy the rights of the store, and its errors have no number.
            for path in (source, *sorted(source.rglob("*"))):
                target = draft / path.relative_to(source)
                if path.is_dir():
                    target.mkdir()
                else:
                    shutil.copyfile(path, target)
        else:
            shutil.copyfile(source, draft)
        if place.is_dir():
            place.rename(folder / "old")
        draft.replace(place)
