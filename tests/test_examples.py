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

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
FOLDERS = sorted(file.parent.name for file in EXAMPLES.glob("*/Makefile"))
# What an example needs that is not there: packages that are no dependency, and photographs.
NOT_RUN = {"efficientnet_lite0": ("IMAGES=photos/", "EVAL=val/", "LABELS=labels.csv")}


def make(place: Path, *args: str) -> str:
    done = subprocess.run(
        ["make", "-C", place, f"PYTHON={sys.executable}", *args],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "MAKEFLAGS": ""},
        timeout=250,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", [each for each in FOLDERS if each not in NOT_RUN])
def test_an_example_runs_with_one_command(name: str, tmp_path: Path) -> None:
    shutil.copytree(EXAMPLES, tmp_path / "examples")
    place = tmp_path / "examples" / name
    _hurried(place / "run.py")
    said = make(place, "ARGS=--seconds 0.05 --precision fp32,int8 --eval-count 40 --effort quick")
    assert "cpu-int8" in said
    assert (place / "run/report.json").is_file()
    make(place, "clean")
    assert {each.name for each in place.iterdir()} - {"__pycache__"} == {
        each.name for each in (EXAMPLES / name).iterdir() if each.name != "__pycache__"
    }


def _hurried(script: Path) -> None:
    """Have a script do as little as `ARGS` ask of the others."""
    if script.is_file():
        text = script.read_text(encoding="utf-8")
        assert '"bench.seconds": 0.5' in text
        text = text.replace(
            '"bench.seconds": 0.5', '"bench.seconds": 0.05, "quantize.effort": "quick"'
        )
        script.write_text(text, encoding="utf-8")


@pytest.mark.parametrize("name", FOLDERS)
def test_the_page_of_an_example_shows_what_its_command_runs(name: str) -> None:
    page = (EXAMPLES / name / "README.md").read_text(encoding="utf-8")
    assert f"make -C examples/{name}" in page
    shown = {" ".join(each) for each in commands(page.replace("\\\n", " "))}
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
