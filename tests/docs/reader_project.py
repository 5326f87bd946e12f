"""A reader's project in which the commands of the pages run, small enough for a test."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from onnx.utils import Extractor

from qconvert.core import onnx_io
from qconvert.demo import generator, scenes
from qconvert.demo.demo_files import NETWORK, NETWORKS
from tests.docs.commands import ROOT
from tests.models import products

# The pages show what a reader would type; these settings keep it short.
SETTINGS = """[quantize]
effort = "none"

[bench]
seconds = 0.02
rounds = 3
batch-sizes = [1]

[build]
backends = ["cpu"]
"""
BUILD = "qconvert build model.onnx --images calib_data/ --eval val/ -o runs/model"
QUANTIZE = "qconvert quantize model.onnx --images calib_data/ --backend tensorrt -o qat.onnx"
FACTORY = """from torch import nn


def build():
    layers = [nn.Conv2d(3, 8, 3, 4), nn.BatchNorm2d(8), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
"""


def create(folder: Path) -> None:
    """Write a model, a factory, a checkpoint and images with labels, and build a run."""
    import torch

    (folder / "model.onnx").write_bytes(NETWORK.read_bytes())
    onnx_io.save(products(), folder / "transformer.onnx")
    generator.write_images(folder / "calib_data", generator.CALIBRATION_SEED, 32)
    generator.write_images(folder / "val", generator.EVALUATION_SEED, 40)
    rows = (folder / "val/labels.csv").read_text().splitlines()
    (folder / "labels.csv").write_text("\n".join([rows[0], *(f"val/{row}" for row in rows[1:])]))
    (folder / "classes.txt").write_bytes((folder / "val/classes.txt").read_bytes())
    (folder / "picture.jpg").write_bytes((folder / "val/0000-plain.jpg").read_bytes())
    (folder / "mypkg").mkdir()
    (folder / "mypkg/nets.py").write_text(FACTORY)
    torch.manual_seed(0)
    network = runpy.run_path(str(folder / "mypkg/nets.py"))["build"]()
    torch.save(network.state_dict(), folder / "net.pt")
    add_tasks(folder)
    write_settings(folder)
    write_commands(folder / ".bin")
    build_run(folder)


def add_tasks(folder: Path) -> None:
    """Write the networks, pictures and functions of the guide on detectors."""
    networks: dict[scenes.Task, str] = {"detect": "detector", "segment": "segmenter"}
    for task, name in networks.items():
        (folder / f"{name}.onnx").write_bytes(NETWORKS[task].read_bytes())
        scenes.write_images(folder / task / "calib", generator.CALIBRATION_SEED, 32, task)
        scenes.write_images(folder / task / "val", generator.EVALUATION_SEED, 40, task)
    write_embedder(folder / "embedder.onnx")
    page = (ROOT / "docs/guides/detectors.md").read_text(encoding="utf-8")
    for name, code in re.findall(r"```python\n# (mypkg/\w+\.py)\n(.*?)```", page, re.DOTALL):
        (folder / name).write_text(code, encoding="utf-8")


def write_embedder(file: Path) -> None:
    """Write the demo's network without its classifier."""
    network = onnx.shape_inference.infer_shapes(onnx.load(NETWORK))
    vector = next(node for node in reversed(network.graph.node) if node.op_type == "Gemm").input[0]
    embedder = Extractor(network).extract_model([network.graph.input[0].name], [vector])
    embedder.metadata_props.extend(network.metadata_props)  # its preprocessing
    onnx.save(embedder, file)


def build_run(folder: Path) -> None:
    """Build `runs/model`, which many pages use, and a Q/DQ file as a training writes it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("QCONVERT_CACHE_DIR", str(folder / ".cache"))
        for line in (BUILD, QUANTIZE):
            process = run_shell(line, folder)
            assert process.returncode == 0, process.stderr


def write_settings(folder: Path) -> None:
    """Write the settings file that keeps commands short."""
    (folder / "qconvert.toml").write_text(SETTINGS)


def write_commands(folder: Path) -> None:
    """Write `qconvert` and `python` as a shell finds them after an install."""
    folder.mkdir()
    for name, arguments in (("qconvert", "-m qconvert "), ("python", "")):
        script = folder / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments}"$@"\n')
        script.chmod(0o755)


def run_shell(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a line in a shell with the commands of the project on its path."""
    path = f"{folder / '.bin'}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", line],
        env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
