"""The long-running commands, how to interrupt them, and what they leave behind."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.torture.environment import FEW, Environment, Finished, wait_for
from tests.torture.run_content import hashes, incomplete_parts, sha256, stable_facts

SEARCH = (
    "--backend", "tensorrt", "--budget", "0", "--by", "certainty", "--effort", "none",
    "--weight-bits", "5",
)  # fmt: skip
EVAL = ("--eval", "eval", "--labels", "labels.csv")
# The files of a search that do not depend on timing: this backend is never timed here.
SETTLED = ("*.onnx", "plan.json", "search.json", "trials.jsonl", "calibration.npz", "run.toml")


@dataclass(frozen=True)
class Command:
    """A command, the name of its output, and a summary of the output that must be reproducible."""

    name: str
    words: tuple[str, ...]
    output: str
    summarize: Callable[[Path], dict[str, Any]]

    def args(self, folder: Path) -> list[str]:
        """Return the arguments for the Python interpreter."""
        command, *options = self.words
        images = ("--images", "images")
        out = str(folder / self.output)
        return ["-m", "qconvert", command, "net.onnx", *images, *options, "-o", out]

    def start(self, environment: Environment, folder: Path) -> subprocess.Popen[str]:
        """Start the command with its own cache and its own folder for temporary files."""
        temporary = folder / "tmp"
        temporary.mkdir(exist_ok=True)
        return environment.start(self.args(folder), folder / "cache", TMPDIR=str(temporary))

    def run(self, environment: Environment, folder: Path) -> Finished:
        """Run the command to its end."""
        return wait_for(self.start(environment, folder))

    def stable_facts(self, folder: Path) -> dict[str, Any]:
        """Return the facts about the output that must be the same after every run."""
        return self.summarize(folder / self.output)


def _file(path: Path) -> dict[str, Any]:
    return {path.name: sha256(path)}


def _stable_settings(folder: Path) -> dict[str, Any]:
    return {name: digest for pattern in SETTLED for name, digest in hashes(folder, pattern).items()}


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
    """Send a signal some seconds after the start; Ctrl-C reaches the workers too."""
    child = command.start(environment, folder)
    try:
        child.wait(seconds)
    except subprocess.TimeoutExpired:
        if number != signal.SIGKILL:
            _wait_for_handlers(child)
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            (os.killpg if number == signal.SIGINT else os.kill)(child.pid, number)
    return wait_for(child)


def _wait_for_handlers(child: subprocess.Popen[str]) -> None:
    """Wait until a process has installed its SIGTERM handler, so that qconvert has started."""
    while child.poll() is None:
        status = Path(f"/proc/{child.pid}/status").read_text()
        if int(status.split("SigCgt:")[1].split()[0], 16) >> (signal.SIGTERM - 1) & 1:
            return
        time.sleep(0.001)


def incomplete_files(command: Command, folder: Path) -> list[str]:
    """Return the visible parts of the output that are incomplete."""
    return incomplete_parts(folder / command.output) if command.output == "run" else []


def leftover_files(folder: Path) -> list[str]:
    """Return hidden files beside the output, in it and in the cache, and temporary files.

    ONNX Runtime leaves an empty `.ses` among the temporary files, which does not count.
    """
    paths = {*folder.rglob(".*"), *folder.glob("tmp/*")} - {folder / "tmp" / ".ses"}
    return sorted(str(path.relative_to(folder)) for path in paths)


def leftover_processes(folder: Path, seconds: float = 10.0) -> list[str]:
    """Return the processes that still work on a folder after some seconds."""
    mark = f"QCONVERT_CACHE_DIR={folder / 'cache'}".encode()
    deadline = time.monotonic() + seconds
    while (processes := list(_processes_with(mark))) and time.monotonic() < deadline:
        time.sleep(0.1)
    return processes


def _processes_with(mark: bytes) -> list[str]:
    descriptions = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (process / "environ").read_bytes().split(b"\0"):
                descriptions.append(f"{process.name}: {(process / 'cmdline').read_bytes()!r}")
        except OSError:  # the process has ended, or belongs to another user
            continue
    return descriptions
