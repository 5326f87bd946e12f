"""Run a case in a forked process, which has everything imported already."""

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
POLL_SECONDS = 0.01
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHANGES = ("os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.symlink", "os.link", "os.truncate")
OUTSIDE = "outside.txt"


@dataclass(frozen=True)
class Ended:
    """How a case ended: exit code or negative signal, output, time and memory."""

    code: int
    out: str
    err: str
    seconds: float
    peak_bytes: int
    outside: tuple[str, ...]


def run(arguments: Sequence[str], folder: Path, writable: Sequence[str]) -> Ended:
    """Run qconvert in a folder, and record what it writes outside `writable`."""
    sys.stdout.flush()
    sys.stderr.flush()
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        _run_child(arguments, folder, writable)
    peak, code = _wait(child, started)
    log = folder / "tmp" / OUTSIDE
    outside = tuple(log.read_text().splitlines()) if log.exists() else ()
    log.unlink(missing_ok=True)
    out, err = (_read_and_delete(folder / "tmp" / name) for name in ("out", "err"))
    return Ended(code, out, err, time.monotonic() - started, peak, outside)


def _wait(child: int, started: float) -> tuple[int, int]:
    """Wait for a process; kill its group when it exceeds the limits of time or memory."""
    peak = 0
    while True:
        ended, status, used = os.wait4(child, os.WNOHANG)
        if ended:
            _kill(child)
            return max(peak, used.ru_maxrss * 1024), os.waitstatus_to_exitcode(status)
        peak = max(peak, _resident(child))
        if peak > BYTES or time.monotonic() - started > SECONDS:
            _kill(child)
            os.waitpid(child, 0)
            return peak, -signal.SIGKILL
        time.sleep(POLL_SECONDS)


def _kill(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return


def _resident(process: int) -> int:
    """Return the resident bytes of a process and its children."""
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except (OSError, IndexError):
        return 0
    return pages * resource.getpagesize() + sum(_resident(int(child)) for child in children)


def _read_and_delete(path: Path) -> str:
    text = path.read_bytes().decode("utf-8", "backslashreplace")
    path.unlink()
    return text


def _run_child(arguments: Sequence[str], folder: Path, writable: Sequence[str]) -> NoReturn:
    """Run the command in this forked process and exit."""
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
    """Limit the memory: a graph may claim to need any amount."""
    status = Path("/proc/self/status").read_text()
    used = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmData"))
    limit = used * 1024 + ROOM
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def _redirect(folder: Path) -> None:
    for number, name in ((0, os.devnull), (1, "tmp/out"), (2, "tmp/err")):
        handle = os.open(folder / name, os.O_WRONLY | os.O_CREAT if number else os.O_RDONLY, 0o600)
        os.dup2(handle, number)
        os.close(handle)


def _guard(folder: Path, writable: Sequence[str]) -> None:
    """Log each change to the disk outside the folders that may be written."""
    log = os.open(folder / "tmp" / OUTSIDE, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def hook(event: str, args: tuple[Any, ...]) -> None:
        for path in _changed(event, args):
            real = os.path.realpath(path)
            if event not in ("open", "os.truncate"):
                # Removing or renaming a link does not touch its target.
                real = str(Path(path).parent.resolve() / Path(path).name)
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
    paths = [os.fsdecode(value) for value in args[:2] if not isinstance(value, int)]
    folders = [value for value in args[1:] if isinstance(value, int) and value >= 0]
    if event in ("os.remove", "os.rmdir") and folders:
        return [str(Path(f"/proc/self/fd/{folders[-1]}").readlink() / paths[0])]
    return paths[1:] if event in ("os.symlink", "os.link") else paths
