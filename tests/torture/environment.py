"""A small network, its images, and `qconvert build` on them in separate processes."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import write
from tests.image_files import draw_images
from tests.models import mixed
from tests.torture.interrupt import CHANGES

INTERRUPT = Path(__file__).with_name("interrupt.py")
ALL = ("--backend", "cpu,tensorrt-rtx", "--precision", "fp32,fp16,int8", "--seconds", "0.05")
FEW = (
    "--backend", "cpu", "--precision", "fp32,int8", "--seconds", "0.02", "--batch-sizes", "1",
)  # fmt: skip
TIMEOUT = 240
STEP = re.compile(r"^  ✓ (\w+) +(\S+)")


@dataclass(frozen=True)
class Finished:
    """The exit code of a command and its output on stderr."""

    code: int
    err: str

    @property
    def steps(self) -> dict[str, bool]:
        """The finished steps that the command printed, and whether each came from the cache."""
        lines = [(STEP.match(line), line) for line in self.err.splitlines()]
        return {
            f"{match[1]} {match[2].rstrip(':,')}": " cached, " in line
            for match, line in lines
            if match and match[1] != "load"
        }

    @property
    def error_message(self) -> str:
        """The message after `error: `, with its lines joined."""
        match = re.search(r"^error: (.*?)(?:\n\n|\Z)", self.err, re.MULTILINE | re.DOTALL)
        return " ".join(match[1].split()) if match else ""


@dataclass(frozen=True)
class Interruption:
    """The change to the disk, counted from 1, before which a build gets a signal; 0 is never."""

    at: int
    number: int = signal.SIGKILL
    events: Sequence[str] = CHANGES


@dataclass(frozen=True)
class Environment:
    """A folder with `net.onnx`, `images`, `eval` and `labels.csv`, in which commands run."""

    root: Path

    def args(self, out: Path, options: Sequence[str] = ALL) -> list[str]:
        """Return the arguments of `qconvert build`."""
        images = ("--images", "images", "--eval", "eval", "--labels", "labels.csv")
        return ["build", "net.onnx", *images, *options, "-o", str(out)]

    def start(
        self, command: Sequence[str], cache: Path, around: Sequence[str] = (), **more: str
    ) -> subprocess.Popen[str]:
        """Start Python on a command; the words in `around` go before it."""
        quiet = {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONUTF8": "1"}
        return subprocess.Popen(
            [*around, sys.executable, *command],
            cwd=self.root,
            env={**os.environ, **quiet, "QCONVERT_CACHE_DIR": str(cache), **more},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # so that a Ctrl-C can be sent to it and its workers alone
        )

    def build(
        self,
        out: Path,
        cache: Path,
        options: Sequence[str] = ALL,
        around: Sequence[str] = (),
        **more: str,
    ) -> Finished:
        """Run a build to its end."""
        command = ["-m", "qconvert", *self.args(out, options)]
        return wait_for(self.start(command, cache, around, **more))

    def start_interrupted(
        self, out: Path, cache: Path, interruption: Interruption, options: Sequence[str] = ALL
    ) -> subprocess.Popen[str]:
        """Start a build that kills or stops itself right before it changes the disk again."""
        words = [
            "-P",
            str(INTERRUPT),
            str(interruption.at),
            str(int(interruption.number)),
            ",".join(interruption.events),
        ]
        return self.start([*words, *self.args(out, options)], cache)

    def changes(
        self, out: Path, cache: Path, options: Sequence[str] = ALL, events: Sequence[str] = CHANGES
    ) -> int:
        """Run a build to its end and return how often it changed the disk."""
        outcome = wait_for(
            self.start_interrupted(out, cache, Interruption(0, events=events), options)
        )
        assert outcome.code == 0, outcome.err
        return int(outcome.err.split()[-2])


def wait_for(child: subprocess.Popen[str]) -> Finished:
    """Wait for the end of a process."""
    with child:
        try:
            _, err = child.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            child.kill()
            raise
    return Finished(child.returncode, err)


def make(root: Path) -> Environment:
    """Write the network, 40 images to calibrate on, and 24 labelled ones to evaluate on."""
    write(mixed(), root / "net.onnx")
    draw_images(root / "images", 40)
    names = sorted(file.name for file in draw_images(root / "eval", 24).iterdir())
    lines = [f"eval/{name},{number}" for number, name in enumerate(names)]
    (root / "labels.csv").write_text("\n".join(["file,label", *lines]) + "\n")
    return Environment(root)
