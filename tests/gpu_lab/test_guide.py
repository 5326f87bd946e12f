"""The outputs that docs/guides/gpu-host.md shows are those of its commands in the laboratory.

Before a command, a comment says what the machine is: fields of `Script`, a library that it is
`without`, or the release of TensorRT. Of the output, `...` stands for any lines; times and other
measured numbers may differ, as may spaces and the mark of the fastest engine.
"""

import json
import os
import pty
import re
import shlex
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from qconvert.core.cache import Cache
from qconvert.demo import generator
from qconvert.demo.demo_files import NETWORK, PROOF_IMAGES, prepare_demo
from tests.docs import reader_project
from tests.docs.commands import ROOT
from tests.gpu_lab.conftest import Machines
from tests.gpu_lab.lab.environment import Host
from tests.gpu_lab.lab.script import Script

PAGE = ROOT / "docs/guides/gpu-host.md"
BLOCK = re.compile(
    r"<!-- simulated: (\{.*\}) -->\n```sh\n(.*)\n```\n\n```text\n(.*?)```", re.DOTALL
)
# Numbers that the clock decides: decimals, and what has one of these units.
MEASURED = re.compile(r"\d+(\.\d+)?(e[+-]?\d+)?(?= s\b| KB\b|/s\b)|(?<![\d.])\d+\.\d+(?![\d.])")


@dataclass(frozen=True)
class Block:
    """A command of the page, the machine it is for, and the output that the page shows."""

    machine: dict[str, Any]
    command: str
    shown: str

    @property
    def fails(self) -> bool:
        """Whether a build of the page ends with an error on this machine."""
        return bool(self.machine) and " build " in self.command


def blocks() -> list[Block]:
    """Return the blocks of the page in its order."""
    found = []
    for part in re.split(r"(?=<!-- simulated: )", PAGE.read_text(encoding="utf-8"))[1:]:
        match = BLOCK.match(part)
        assert match, part.splitlines()[:3]
        found.append(Block(json.loads(match[1]), match[2], match[3]))
    return found


@dataclass
class Reader:
    """Someone who follows the page: one project, in which healthy commands run in order."""

    machines: Machines
    root: Path
    finished: dict[int, str] = field(default_factory=dict)

    def read(self, number: int) -> str:
        """Return the output of a block, after those that it goes on from."""
        block = blocks()[number]
        if block.fails:
            return self._run(block, self._project(f"fault-{number}"))
        for index, other in enumerate(blocks()[: number + 1]):
            is_needed = index == number or (" build " in other.command and not other.fails)
            if is_needed and index not in self.finished:
                self.finished[index] = self._run(other, self._project("project"))
        return self.finished[number]

    def _project(self, name: str) -> Path:
        folder = self.root / name
        if not folder.is_dir():
            generator.write_images(folder / "calib_data", generator.CALIBRATION_SEED, 32)
            generator.write_images(folder / "val", generator.EVALUATION_SEED, 40)
            (folder / "model.onnx").write_bytes(NETWORK.read_bytes())
            settings = reader_project.SETTINGS.replace('backends = ["cpu"]', "")
            (folder / "qconvert.toml").write_text(settings)
        return folder

    def _run(self, block: Block, folder: Path) -> str:
        """Return what a terminal of 80 columns shows."""
        values = dict(block.machine)
        options = {"without": values.pop("without", "")}
        if release := values.pop("tensorrt_version", ""):
            options["tensorrt"] = release
        machine = self.machines.gpu(**options)
        environment = {"QCONVERT_CACHE_DIR": str(folder / ".store"), "COLUMNS": "80"}
        host = Host(machine, Script(**values), environment | {"NO_COLOR": "1", "TERM": "xterm"})
        name, *args = shlex.split(block.command)
        assert name == "qconvert"
        if "--prove" in args:
            place, store = folder / "qconvert-proof/demo", Cache(folder / ".store")
            prepare_demo(place, store, lambda _: None, PROOF_IMAGES)
        terminal, side = pty.openpty()
        with (folder / "stderr.txt").open("w+", encoding="utf-8") as stderr:
            process = subprocess.Popen(
                [machine / "bin/python", "-P", "-m", "qconvert", *args],
                cwd=folder,
                env=host.variables(folder / ".log"),
                stdin=subprocess.DEVNULL,
                stdout=side,
                stderr=stderr,
            )
            os.close(side)
            out = _read_all(terminal)
            process.wait(timeout=60)
            stderr.seek(0)
            err = stderr.read()
        assert "Traceback" not in err
        # Steps come before the results, and the path of the report behind them.
        steps, _, report = err.partition("report: ")
        return steps + out + (f"report: {report}" if report else "")


def _read_all(terminal: int) -> str:
    """Return everything that is written to a terminal, until its other side closes."""
    written = b""
    while True:
        try:
            part = os.read(terminal, 65536)
        except OSError:  # how Linux says that no process holds the other side
            part = b""
        if not part:
            os.close(terminal)
            return written.decode().replace("\r\n", "\n")
        written += part


def simplified(text: str) -> list[str]:
    """Return lines without what differs from run to run or from terminal to terminal."""
    text = re.sub(r"\x1b\[[\d;]*m", "", text)
    lines = []
    for line in text.splitlines():
        # A step of an earlier command may come from the cache.
        line = re.sub(r'"/[^"]*\[', '"CHECKOUT[', line.replace("cached, ", ""))  # noqa: PLW2901
        line = re.sub(r"[█▏▎▍▌▋▊▉◆]|\btime$", "", re.sub("─+", "─", line))  # noqa: PLW2901
        line = re.sub(r"\d+ threads?", "threads", line)  # noqa: PLW2901
        line = re.sub("^INT8 on CPU .*", "INT8 on CPU", line)  # noqa: PLW2901
        # Wide numbers may drop columns of a table of measurements.
        is_measured = "±" in line or "median ms" in line or "GPU ms" in line
        line = line.split()[0] if is_measured else MEASURED.sub("N", line)  # noqa: PLW2901
        lines.append(re.sub(r"\s+", " ", line).strip())
    return lines


def matches(shown: str, output: str) -> bool:
    """Whether a page shows an output."""
    parts = (
        r"(.*\n)*?" if line == "..." else re.escape(line) + r"\n" for line in simplified(shown)
    )
    return re.fullmatch("".join(parts), "\n".join([*simplified(output), ""])) is not None


@pytest.fixture(scope="module")
def reader(machines: Machines, tmp_path_factory: pytest.TempPathFactory) -> Reader:
    """Return someone who follows the page."""
    return Reader(machines, tmp_path_factory.mktemp("reader"))


@pytest.mark.parametrize(
    "number", range(len(blocks())), ids=[f"{it.command} on {it.machine}" for it in blocks()]
)
def test_output_on_the_page_is_that_of_its_command(reader: Reader, number: int) -> None:
    block = blocks()[number]
    output = reader.read(number)
    assert matches(block.shown, output), output


def test_comparison_fails_for_other_words_versions_and_missing_lines() -> None:
    output = "a 1.25 s\nversion 10.16.1\nlast  0.1 ± 0.2  7\n"
    assert matches("a 9.5 s\n...\nlast 3.0 ± 1.0  80\n", output)
    assert matches("...\nversion 10.16.1\n...\n", output)
    for wrong in ("b 1.25 s\n...\n", "...\nversion 10.16.2\n...\n", "a 1.25 s\nversion 10.16.1\n"):
        assert not matches(wrong, output)
