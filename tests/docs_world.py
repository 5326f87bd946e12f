"""The folder that the commands of the pages run in: a reader's project, small enough for a test."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from qconvert.demo import generator
from qconvert.demo.demo_files import NETWORK
from tests.commands_in_docs import ROOT

# A page shows what a reader would type, which would take a reader's time; this shortens it.
QUICK = """[quantize]
effort = "none"

[bench]
seconds = 0.02
rounds = 3
batch-sizes = [1]

[build]
backends = ["cpu"]
"""
BUILD = "qconvert build model.onnx --images calib_data/ --eval val/ -o runs/model"
FACTORY = """from torch import nn


def build():
    layers = [nn.Conv2d(3, 8, 3, 4), nn.BatchNorm2d(8), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
"""


def lay(place: Path) -> None:
    """Write the project: `model.onnx`, `calib_data/`, `val/`, `labels.csv`, `mypkg/`, `net.pt`."""
    import torch

    (place / "model.onnx").write_bytes(NETWORK.read_bytes())
    generator.write_images(place / "calib_data", generator.CALIBRATION_SEED, 32)
    generator.write_images(place / "val", generator.EVALUATION_SEED, 40)
    rows = (place / "val/labels.csv").read_text().splitlines()
    (place / "labels.csv").write_text("\n".join([rows[0], *(f"val/{row}" for row in rows[1:])]))
    (place / "classes.txt").write_bytes((place / "val/classes.txt").read_bytes())
    (place / "picture.jpg").write_bytes((place / "val/0000-plain.jpg").read_bytes())
    (place / "mypkg").mkdir()
    (place / "mypkg/nets.py").write_text(FACTORY)
    torch.manual_seed(0)
    net = runpy.run_path(str(place / "mypkg/nets.py"))["build"]()
    torch.save(net.state_dict(), place / "net.pt")
    settings(place)
    commands(place / ".bin")
    build(place)


def build(place: Path) -> None:
    """Make the run that many pages look at, `runs/model`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("QCONVERT_CACHE_DIR", str(place / ".store"))
        done = shell(BUILD, place)
    assert done.returncode == 0, done.stderr


def settings(place: Path) -> None:
    """Write the settings that keep commands short."""
    (place / "qconvert.toml").write_text(QUICK)


def commands(place: Path) -> None:
    """Write `qconvert` and `python` as the shell finds them after an install."""
    place.mkdir()
    for name, arguments in (("qconvert", "-m qconvert "), ("python", "")):
        script = place / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments}"$@"\n')
        script.chmod(0o755)


def shell(line: str, place: Path) -> subprocess.CompletedProcess[str]:
    """Run a line that is more than a command, as a reader's shell would."""
    path = f"{place / '.bin'}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", line],
        env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
