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

from tests.torture.environment import FEW, Environment, Finished, ended
from tests.torture.run_content import hashes, incomplete_parts, sha256, stable_facts

SEARCH = (
    "--backend", "tensorrt", "--budget", "0", "--by", "certainty", "--effort", "none",
    "--weight-bits", "5",
)  # fmt: skip
EVAL = ("--eval", "eval", "--labels", "labels.csv")
# What a search settles whatever the clock says: on no machine does it time this backend here.
SETTLED = ("*.onnx", "plan.json", "search.json", "trials.jsonl", "calibration.npz", "run.toml")


@dataclass(frozen=True)
class Command:
    """A command, the name of what it makes, and what is to be the same each time of that."""

    name: str
    words: tuple[str, ...]
    makes: str
    tell: Callable[[Path], dict[str, Any]]

    def args(self, folder: Path) -> list[str]:
        """Return what Python is given."""
        command, *options = self.words
        images = ("--images", "images")
        out = str(folder / self.makes)
        return ["-m", "qconvert", command, "net.onnx", *images, *options, "-o", out]

    def start(self, environment: Environment, folder: Path) -> subprocess.Popen[str]:
        """Start the command, with a cache and a folder for temporary files of its own."""
        temporary = folder / "tmp"
        temporary.mkdir(exist_ok=True)
        return environment.start(self.args(folder), folder / "cache", TMPDIR=str(temporary))

    def run(self, environment: Environment, folder: Path) -> Finished:
        """Run the command to its end."""
        return ended(self.start(environment, folder))

    def stable_facts(self, folder: Path) -> dict[str, Any]:
        """Return what must come out the same each time."""
        return self.tell(folder / self.makes)


def _file(path: Path) -> dict[str, Any]:
    return {path.name: sha256(path)}


def _stable_settings(folder: Path) -> dict[str, Any]:
    return {name: each for pattern in SETTLED for name, each in hashes(folder, pattern).items()}


COMMANDS = (
    Command("build", ("build", *EVAL, *FEW), "run", stable_facts),
    Command("calibrate", ("calibrate",), "c.npz", _file),
    Command("calibrate in workers", ("calibrate", "--workers", "2"), "c.npz", _file),
    Command("quantize", ("quantize",), "q.onnx", _file),
    Command("search", ("search", *EVAL, *SEARCH), "results", _stable_settings),
)


def run_and_signal(
    command: Command, environment: Environment, folder: Path, seconds: float, number: int
) -> Finished:
    """Send a signal so many seconds after the start; Ctrl-C reaches the workers too."""
    child = command.start(environment, folder)
    try:
        child.wait(seconds)
    except subprocess.TimeoutExpired:
        if number != signal.SIGKILL:
            _wait_for_handlers(child)
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            (os.killpg if number == signal.SIGINT else os.kill)(child.pid, number)
    return ended(child)


def _wait_for_handlers(child: subprocess.Popen[str]) -> None:
    """Wait until a process has its own answer to SIGTERM; before, Python has not begun on it."""
    while child.poll() is None:
        status = Path(f"/proc/{child.pid}/status").read_text()
        if int(status.split("SigCgt:")[1].split()[0], 16) >> (signal.SIGTERM - 1) & 1:
            return
        time.sleep(0.001)


def incomplete_files(command: Command, folder: Path) -> list[str]:
    """Return what can be seen of the result and is not whole."""
    return incomplete_parts(folder / command.makes) if command.makes == "run" else []


def leftover_files(folder: Path) -> list[str]:
    """Return what is hidden beside the result, in it or in the cache, and temporary files.

    ONNX Runtime keeps an empty `.ses` of its own among the latter.
    """
    results = {*folder.rglob(".*"), *folder.glob("tmp/*")} - {folder / "tmp" / ".ses"}
    return sorted(str(path.relative_to(folder)) for path in results)


def leftover_processes(folder: Path, patience: float = 10.0) -> list[str]:
    """Return the processes that still work on a folder when some seconds are over."""
    mark = f"QCONVERT_CACHE_DIR={folder / 'cache'}".encode()
    until = time.monotonic() + patience
    while (results := list(_processes_with(mark))) and time.monotonic() < until:
        time.sleep(0.1)
    return results


def _processes_with(mark: bytes) -> list[str]:
    results = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (process / "environ").read_bytes().split(b"\0"):
                results.append(f"{process.name}: {(process / 'cmdline').read_bytes()!r}")
        except OSError:  # it ended, or it is not ours
            continue
    return results
