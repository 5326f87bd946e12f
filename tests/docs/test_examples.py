"""Every example runs with the one command that its page names, and shows the command it runs."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from qconvert.cli import main

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
FOLDERS = sorted(file.parent.name for file in EXAMPLES.glob("*/Makefile"))
# Requirements of examples that may be missing: packages that are no dependency, and photographs.
NOT_RUN = {"efficientnet_lite0": ("IMAGES=photos/", "EVAL=val/", "LABELS=labels.csv")}

SHORTER = {
    '"bench.seconds": 0.5': '"bench.seconds": 0.05, "quantize.effort": "quick"',
    "TRAINING_SEED, 512": "TRAINING_SEED, 160",
    "CALIBRATION_SEED, 128": "CALIBRATION_SEED, 40",
    "EVALUATION_SEED, 200": "EVALUATION_SEED, 40",
}


def make(folder: Path, *args: str) -> str:
    process = subprocess.run(
        ["make", "-C", folder, f"PYTHON={sys.executable}", *args],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "MAKEFLAGS": ""},
        timeout=250,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in FOLDERS if name not in NOT_RUN])
def test_example_runs_with_one_command(name: str, tmp_path: Path) -> None:
    shutil.copytree(EXAMPLES, tmp_path / "examples")
    folder = tmp_path / "examples" / name
    _shorten(folder / "run.py")
    output = make(
        folder, "ARGS=--seconds 0.05 --precision fp32,int8 --eval-count 40 --effort quick"
    )
    assert "cpu-int8" in output
    assert (folder / "run/report.json").is_file()
    make(folder, "clean")
    assert {path.name for path in folder.iterdir()} - {"__pycache__"} == {
        path.name for path in (EXAMPLES / name).iterdir() if path.name != "__pycache__"
    }


def _shorten(script: Path) -> None:
    """Shorten a script, as `ARGS` do in the other examples."""
    if script.is_file():
        text = script.read_text(encoding="utf-8")
        assert '"bench.seconds": 0.5' in text
        for long, short in SHORTER.items():
            text = text.replace(long, short)
        script.write_text(text, encoding="utf-8")


@pytest.mark.parametrize("name", FOLDERS)
def test_example_page_shows_the_command_that_runs(name: str) -> None:
    page = (EXAMPLES / name / "README.md").read_text(encoding="utf-8")
    assert f"make -C examples/{name}" in page
    shown = {" ".join(command) for command in commands(page.replace("\\\n", " "))}
    ran = make(EXAMPLES / name, "-n", *NOT_RUN.get(name, ()))
    ran = ran.replace(f"{sys.executable} -m qconvert", "qconvert").replace("\\\n", " ")
    typed = commands(ran)
    for args in typed:
        command = main.get_command(click.Context(main), args[1])
        assert command is not None
        command.make_context(args[1], args[2:])
        assert " ".join(args) in shown
    assert typed or "run.py" in ran


def commands(text: str) -> list[list[str]]:
    lines = re.findall(r"^\s*(qconvert .*)$", text, re.MULTILINE)
    return [shlex.split(line) for line in lines]
