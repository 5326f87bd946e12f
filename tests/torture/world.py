"""A small net, its pictures, and `qconvert build` on them in processes of their own."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import write
from tests.models import mixed
from tests.pictures import draw_folder
from tests.torture.stumble import CHANGES

STUMBLE = Path(__file__).with_name("stumble.py")
ALL = ("--backend", "cpu,tensorrt-rtx", "--precision", "fp32,fp16,int8", "--seconds", "0.05")
FEW = (
    "--backend", "cpu", "--precision", "fp32,int8", "--seconds", "0.02", "--batch-sizes", "1",
)  # fmt: skip
PATIENCE = 240
STEP = re.compile(r"^  ✓ (\w+) +(\S+)")


@dataclass(frozen=True)
class Done:
    """How a command ended and what it said."""

    code: int
    err: str

    @property
    def steps(self) -> dict[str, bool]:
        """The steps that it told to be done, and whether they had been done before."""
        lines = [(STEP.match(line), line) for line in self.err.splitlines()]
        return {
            f"{found[1]} {found[2].rstrip(':,')}": " cached, " in line
            for found, line in lines
            if found and found[1] != "load"
        }

    @property
    def said(self) -> str:
        """The sentence after `error: `, its lines joined."""
        found = re.search(r"^error: (.*?)(?:\n\n|\Z)", self.err, re.MULTILINE | re.DOTALL)
        return " ".join(found[1].split()) if found else ""


@dataclass(frozen=True)
class Stumble:
    """Before which change to the disk a build gets a signal, counted from 1; 0 is never."""

    at: int
    number: int = signal.SIGKILL
    events: Sequence[str] = CHANGES


@dataclass(frozen=True)
class World:
    """A folder with `net.onnx`, `images`, `eval` and `labels.csv`, in which commands run."""

    root: Path

    def args(self, out: Path, chosen: Sequence[str] = ALL) -> list[str]:
        """Return what `qconvert` is given."""
        pictures = ("--images", "images", "--eval", "eval", "--labels", "labels.csv")
        return ["build", "net.onnx", *pictures, *chosen, "-o", str(out)]

    def start(
        self, command: Sequence[str], cache: Path, around: Sequence[str] = (), **more: str
    ) -> subprocess.Popen[str]:
        """Start Python on a command; `around` goes before it."""
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
        chosen: Sequence[str] = ALL,
        around: Sequence[str] = (),
        **more: str,
    ) -> Done:
        """Run a build to its end."""
        command = ["-m", "qconvert", *self.args(out, chosen)]
        return ended(self.start(command, cache, around, **more))

    def stumbling(
        self,
        out: Path,
        cache: Path,
        how: Stumble,
        chosen: Sequence[str] = ALL,
    ) -> subprocess.Popen[str]:
        """Start a build that kills or stops itself right before it changes the disk again."""
        words = ["-P", str(STUMBLE), str(how.at), str(int(how.number)), ",".join(how.events)]
        return self.start([*words, *self.args(out, chosen)], cache)

    def changes(
        self, out: Path, cache: Path, chosen: Sequence[str] = ALL, events: Sequence[str] = CHANGES
    ) -> int:
        """Run a build to its end and return how often it changed the disk."""
        done = ended(self.stumbling(out, cache, Stumble(0, events=events), chosen))
        assert done.code == 0, done.err
        return int(done.err.split()[-2])


def ended(child: subprocess.Popen[str]) -> Done:
    """Wait for the end of a process."""
    with child:
        try:
            _, err = child.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            child.kill()
            raise
    return Done(child.returncode, err)


def make(root: Path) -> World:
    """Write the net, 40 pictures, and 24 with labels."""
    write(mixed(), root / "net.onnx")
    draw_folder(root / "images", 40)
    names = sorted(file.name for file in draw_folder(root / "eval", 24).iterdir())
    lines = [f"eval/{name},{number}" for number, name in enumerate(names)]
    (root / "labels.csv").write_text("\n".join(["file,label", *lines]) + "\n")
    return World(root)
