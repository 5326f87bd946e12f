"""Atomic writes of files and folders, and the temporary folders that they need.

A process holds a lock on its temporary folder. The lock ends with the process, so abandoned folders
are recognized at once. Without such locks, a folder is abandoned after a day without writes.
"""

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from qconvert.core.errors import attach_path

TEMPORARY_PREFIX = ".qconvert-temporary-"
RESUMABLE_PREFIX = ".qconvert-resumable-"
ABANDONED_SECONDS = 24 * 3600


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file that appears complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with attach_path(path), temporary_folder(path.parent) as folder:
        (folder / path.name).write_bytes(content)
        (folder / path.name).replace(path)


def write_text(path: Path, text: str) -> None:
    """Write a file that appears complete or not at all."""
    write_bytes(path, text.encode())


def copy_into_place(source: Path, target: Path) -> None:
    """Copy a file or folder to `target`, where it appears complete and replaces what was there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with attach_path(target), temporary_folder(target.parent) as folder:
        new = folder / "new"
        # Not `copytree`: it copies the permissions too, and its errors have no error number.
        for path in (source, *sorted(source.rglob("*"))):
            if path.is_dir():
                (new / path.relative_to(source)).mkdir()
            else:
                shutil.copyfile(path, new / path.relative_to(source))
        if target.is_dir():
            target.rename(folder / "old")
        new.replace(target)


@contextmanager
def temporary_folder(parent: Path | None = None) -> Iterator[Path]:
    """Yield a new folder in `parent`, or in the system's temporary folder, removed at the end.

    What is built in it is renamed to its final path, and so appears complete or not at all.
    """
    parent = parent or Path(tempfile.gettempdir())
    remove_abandoned(parent)
    with ExitStack() as stack:
        while True:
            folder = Path(tempfile.mkdtemp(dir=parent, prefix=TEMPORARY_PREFIX))
            # Until it is locked, another process may consider it abandoned.
            with contextlib.suppress(FileNotFoundError):
                if stack.enter_context(lock_folder(folder)) is not False:
                    break
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        yield folder


@contextmanager
def resumable_folder(parent: Path, name: str) -> Iterator[Path]:
    """Yield the folder in which long work keeps its state; it is removed when the block succeeds.

    A later attempt finds the state of a killed one, until nothing is written to it for a day. While
    another process holds the folder, a temporary one takes its place.
    """
    folder = parent / f"{RESUMABLE_PREFIX}{name}"
    with ExitStack() as stack:
        while True:
            folder.mkdir(exist_ok=True)
            with contextlib.suppress(FileNotFoundError):  # its owner has just removed it
                is_ours = stack.enter_context(lock_folder(folder)) is not False
                break
        if is_ours:
            yield folder
            remove_folder(folder)
        else:
            yield stack.enter_context(temporary_folder(parent))


@contextmanager
def created_folder(folder: Path) -> Iterator[None]:
    """Create a folder and its parents; if the block fails, remove those that are still empty."""
    new = [path for path in (folder, *folder.absolute().parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for path in new:
            with contextlib.suppress(OSError):
                path.rmdir()
        raise


@contextmanager
def lock_folder(folder: Path) -> Iterator[bool | None]:
    """Lock a folder; yield False if another process holds it, None if locks are not supported.

    Raise FileNotFoundError if the folder disappears before it is locked.
    """
    try:
        import fcntl
    except ModuleNotFoundError:
        yield None
        return
    handle = os.open(folder, os.O_RDONLY)
    locked: bool | None = True
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            locked = False
        except OSError:  # NFS locks only files
            locked = None
        if not os.path.samestat(os.fstat(handle), folder.stat()):
            raise FileNotFoundError(folder)
        yield locked
    finally:
        os.close(handle)


def remove_abandoned(parent: Path) -> None:
    """Remove temporary folders that no process holds, and resumable ones unused for a day."""
    for folder in (*parent.glob(f"{TEMPORARY_PREFIX}*"), *parent.glob(f"{RESUMABLE_PREFIX}*")):
        # It may disappear meanwhile, or belong to another user.
        with contextlib.suppress(OSError), lock_folder(folder) as locked:
            if locked is False:
                continue
            # A date far in the future counts as old too.
            times = [path.stat().st_mtime for path in (folder, *folder.rglob("*"))]
            is_old = min(abs(time.time() - written) for written in times) > ABANDONED_SECONDS
            if is_old or (locked and folder.name.startswith(TEMPORARY_PREFIX)):
                shutil.rmtree(folder, ignore_errors=True)


def remove_folder(folder: Path) -> None:
    """Delete a folder; it is renamed first, so that no process sees it half deleted."""
    # Another process may be faster.
    with contextlib.suppress(FileNotFoundError), temporary_folder(folder.parent) as doomed:
        folder.rename(doomed / "old")
