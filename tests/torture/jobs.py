"""The commands that take long, and what each leaves behind when nothing happens to it."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.torture.whole import facts, halves, hashes, sha256
from tests.torture.world import FEW, Done, World, ended

SEARCH = (
    "--backend", "tensorrt", "--budget", "0", "--by", "certainty", "--effort", "none",
    "--weight-bits", "5",
)  # fmt: skip
EVAL = ("--eval", "eval", "--labels", "labels.csv")
# What a search settles whatever the clock says: on no machine does it time this backend here.
SETTLED = ("*.onnx", "plan.json", "search.json", "trials.jsonl", "calibration.npz", "run.toml")


@dataclass(frozen=True)
class Job:
    """A command, the name of what it makes, and what is to be the same each time of that."""

    name: str
    words: tuple[str, ...]
    makes: str
    tell: Callable[[Path], dict[str, Any]]

    def args(self, place: Path) -> list[str]:
        """Return what Python is given."""
        command, *options = self.words
        images = ("--images", "images")
        out = str(place / self.makes)
        return ["-m", "qconvert", command, "net.onnx", *images, *options, "-o", out]

    def start(self, world: World, place: Path) -> subprocess.Popen[str]:
        """Start the command, with a cache and a folder for temporary files of its own."""
        temporary = place / "tmp"
        temporary.mkdir(exist_ok=True)
        return world.start(self.args(place), place / "cache", TMPDIR=str(temporary))

    def run(self, world: World, place: Path) -> Done:
        """Run the command to its end."""
        return ended(self.start(world, place))

    def facts(self, place: Path) -> dict[str, Any]:
        """Return what must come out the same each time."""
        return self.tell(place / self.makes)


def _file(path: Path) -> dict[str, Any]:
    return {path.name: sha256(path)}


def _settled(folder: Path) -> dict[str, Any]:
    return {name: each for pattern in SETTLED for name, each in hashes(folder, pattern).items()}


JOBS = (
    Job("build", ("build", *EVAL, *FEW), "run", facts),
    Job("calibrate", ("calibrate",), "c.npz", _file),
    Job("calibrate in workers", ("calibrate", "--workers", "2"), "c.npz", _file),
    Job("quantize", ("quantize",), "q.onnx", _file),
    Job("search", ("search", *EVAL, *SEARCH), "found", _settled),
)


def hit(job: Job, world: World, place: Path, seconds: float, number: int) -> Done:
    """Send a signal so many seconds after the start; Ctrl-C reaches the workers too."""
    child = job.start(world, place)
    try:
        child.wait(seconds)
    except subprocess.TimeoutExpired:
        if number != signal.SIGKILL:
            _wait_until_it_listens(child)
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            (os.killpg if number == signal.SIGINT else os.kill)(child.pid, number)
    return ended(child)


def _wait_until_it_listens(child: subprocess.Popen[str]) -> None:
    """Wait until a process has its own answer to SIGTERM; before, Python has not begun on it."""
    while child.poll() is None:
        status = Path(f"/proc/{child.pid}/status").read_text()
        if int(status.split("SigCgt:")[1].split()[0], 16) >> (signal.SIGTERM - 1) & 1:
            return
        time.sleep(0.001)


def visible_halves(job: Job, place: Path) -> list[str]:
    """Return what can be seen of the result and is not whole."""
    return halves(place / job.makes) if job.makes == "run" else []


def left_behind(place: Path) -> list[str]:
    """Return what is hidden beside the result, in it or in the cache, and temporary files.

    ONNX Runtime keeps an empty `.ses` of its own among the latter.
    """
    found = {*place.rglob(".*"), *place.glob("tmp/*")} - {place / "tmp" / ".ses"}
    return sorted(str(path.relative_to(place)) for path in found)


def orphans(place: Path, patience: float = 10.0) -> list[str]:
    """Return the processes that still work on a place when some seconds are over."""
    mark = f"QCONVERT_CACHE_DIR={place / 'cache'}".encode()
    until = time.monotonic() + patience
    while (found := list(_marked(mark))) and time.monotonic() < until:
        time.sleep(0.1)
    return found


def _marked(mark: bytes) -> list[str]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (process / "environ").read_bytes().split(b"\0"):
                found.append(f"{process.name}: {(process / 'cmdline').read_bytes()!r}")
        except OSError:  # it ended, or it is not ours
            continue
    return found
