"""A case in a process of its own: a copy of this one, which has everything imported already."""

import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

SECONDS = 30.0
BYTES = 2 * 2**30
ROOM = BYTES - 2**28
LOOK_SECONDS = 0.01
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHANGES = ("os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.symlink", "os.link", "os.truncate")
OUTSIDE = "outside.txt"


@dataclass(frozen=True)
class Ended:
    """How a case ended: its exit code, or the signal that it died of, and what it took."""

    code: int
    out: str
    err: str
    seconds: float
    peak_bytes: int
    outside: tuple[str, ...]


def run(arguments: Sequence[str], folder: Path, writable: Sequence[str]) -> Ended:
    """Run qconvert in a folder; what it writes elsewhere than in `writable` is told."""
    sys.stdout.flush()
    sys.stderr.flush()
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        _become(arguments, folder, writable)
    peak, code = _watched(child, started)
    strange = folder / "tmp" / OUTSIDE
    outside = tuple(strange.read_text().splitlines()) if strange.exists() else ()
    strange.unlink(missing_ok=True)
    out, err = (_said(folder / "tmp" / name) for name in ("out", "err"))
    return Ended(code, out, err, time.monotonic() - started, peak, outside)


def _watched(child: int, started: float) -> tuple[int, int]:
    """Wait for a process; end it, and all it started, when it takes too long or too much."""
    peak = 0
    while True:
        ended, status, used = os.wait4(child, os.WNOHANG)
        if ended:
            _end(child)
            return max(peak, used.ru_maxrss * 1024), os.waitstatus_to_exitcode(status)
        peak = max(peak, _resident(child))
        if peak > BYTES or time.monotonic() - started > SECONDS:
            _end(child)
            os.waitpid(child, 0)
            return peak, -signal.SIGKILL
        time.sleep(LOOK_SECONDS)


def _end(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return


def _resident(process: int) -> int:
    """Return the bytes that a process and those below it hold."""
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
        below = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except (OSError, IndexError):
        return 0
    return pages * resource.getpagesize() + sum(_resident(int(each)) for each in below)


def _said(path: Path) -> str:
    text = path.read_bytes().decode("utf-8", "backslashreplace")
    path.unlink()
    return text


def _become(arguments: Sequence[str], folder: Path, writable: Sequence[str]) -> NoReturn:
    """Be a qconvert that was started in a folder; this returns to nobody."""
    code = 99
    try:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        _limit_memory()
        _redirect(folder)
        os.chdir(folder)
        os.environ |= {"QCONVERT_CACHE_DIR": str(folder / "store"), "TMPDIR": str(folder / "tmp")}
        import tempfile

        tempfile.tempdir = None
        _guard(folder, [str(folder / name) for name in writable])
        from qconvert.cli import main
        from qconvert.cli.error_boundary import run_guarded

        sys.argv = ["qconvert", *arguments]
        code = run_guarded(main, arguments)
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _limit_memory() -> None:
    """Let there be no more memory than a case may take: a graph may well say it needs more."""
    status = Path("/proc/self/status").read_text()
    held = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmData"))
    room = held * 1024 + ROOM
    resource.setrlimit(resource.RLIMIT_DATA, (room, room))


def _redirect(folder: Path) -> None:
    for number, name in ((0, os.devnull), (1, "tmp/out"), (2, "tmp/err")):
        handle = os.open(folder / name, os.O_WRONLY | os.O_CREAT if number else os.O_RDONLY, 0o600)
        os.dup2(handle, number)
        os.close(handle)


def _guard(folder: Path, writable: Sequence[str]) -> None:
    """Note every change to the disk that is not below the places that may be written."""
    log = os.open(folder / "tmp" / OUTSIDE, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def hook(event: str, args: tuple[Any, ...]) -> None:
        for place in _changed(event, args):
            real = os.path.realpath(place)
            if event not in ("open", "os.truncate"):
                # Not what a link leads to is removed or renamed, but the link.
                real = str(Path(place).parent.resolve() / Path(place).name)
            if not real.startswith((*writable, "/dev/")):
                os.write(log, f"{event} {real!r}\n".encode())

    sys.addaudithook(hook)


def _changed(event: str, args: tuple[Any, ...]) -> list[str]:
    """Return the paths that an audit event is about to change."""
    if event == "open":
        path, _, flags = args
        writes = isinstance(flags, int) and flags & WRITING
        return [os.fsdecode(path)] if writes and not isinstance(path, int) else []
    if event not in CHANGES:
        return []
    paths = [os.fsdecode(each) for each in args[:2] if not isinstance(each, int)]
    held = [each for each in args[1:] if isinstance(each, int) and each >= 0]
    if event in ("os.remove", "os.rmdir") and held:
        return [str(Path(f"/proc/self/fd/{held[-1]}").readlink() / paths[0])]
    return paths[1:] if event in ("os.symlink", "os.link") else paths
