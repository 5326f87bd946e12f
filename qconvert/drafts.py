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

DRAFT = ".qconvert-draft-"
BENCH = ".qconvert-bench-"
ABANDONED_SECONDS = 24 * 3600


@contextmanager
def draft(folder: Path) -> Iterator[Path]:
    """Yield a new folder inside `folder`, gone when the block ends; dead ones beside it go first.

    What was made in it is renamed to its place, and so appears whole or not at all.
    """
    sweep(folder)
    with ExitStack() as stack:
        place = _new(folder, stack)
        stack.callback(shutil.rmtree, place, ignore_errors=True)
        yield place


def missing(place: Path) -> list[Path]:
    """Return a folder and those above it that are not there, the innermost first."""
    return [each for each in (place, *place.absolute().parents) if not each.exists()]


def unmake(folders: Iterable[Path]) -> None:
    """Remove folders again, as far as they are empty."""
    for each in folders:
        with contextlib.suppress(OSError):
            each.rmdir()


@contextmanager
def made(place: Path) -> Iterator[None]:
    """Make a folder and those above it; where the block fails, those that stayed empty go again."""
    new = missing(place)
    place.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        unmake(new)
        raise


@contextmanager
def temporary() -> Iterator[Path]:
    """Yield a new folder where the system wants such files; those that killed ones left go."""
    with draft(Path(tempfile.gettempdir())) as place:
        yield place


@contextmanager
def bench(folder: Path, name: str) -> Iterator[Path]:
    """Yield the folder in which long work keeps what it has; it goes when the block ends well.

    A later try finds what a killed one left, until nothing was written to it for a day. Of two
    processes at work the second has a folder of its own.
    """
    place = folder / f"{BENCH}{name}"
    with ExitStack() as stack:
        if _opened(place, stack):
            yield place
            remove(place)
        else:
            yield stack.enter_context(draft(folder))


@contextmanager
def held(folder: Path) -> Iterator[bool | None]:
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


def sweep(folder: Path) -> None:
    """Delete the drafts in a folder that no process holds, and benches left alone for a day."""
    for place in (*folder.glob(f"{DRAFT}*"), *folder.glob(f"{BENCH}*")):
        # It may go away meanwhile, or belong to somebody else.
        with contextlib.suppress(OSError), held(place) as ours:
            if ours is not False and (_is_old(place) or (ours and place.name.startswith(DRAFT))):
                shutil.rmtree(place, ignore_errors=True)


def remove(home: Path) -> None:
    """Delete a folder; renamed first, so that nobody finds it half deleted."""
    if not home.exists():
        return
    # Another process may be faster.
    with draft(home.parent) as doomed, contextlib.suppress(FileNotFoundError):
        home.rename(doomed / "work")


def _new(folder: Path, stack: ExitStack) -> Path:
    while True:
        place = Path(tempfile.mkdtemp(dir=folder, prefix=DRAFT))
        # Another process may take it for a dead one before it is held.
        with contextlib.suppress(FileNotFoundError):
            if stack.enter_context(held(place)) is not False:
                return place


def _opened(place: Path, stack: ExitStack) -> bool:
    """Make a bench if there is none, and hold it; return whether another process does."""
    while True:
        place.mkdir(exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # its owner was done with it just now
            return stack.enter_context(held(place)) is not False


def _is_old(folder: Path) -> bool:
    """Whether nothing was written to a folder for a day; what is dated ahead by one is as old."""
    ages = (abs(time.time() - path.stat().st_mtime) for path in (folder, *folder.rglob("*")))
    return min(ages) > ABANDONED_SECONDS
