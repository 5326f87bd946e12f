"""The recipes of ARCHITECTURE.md apply to a copy of the package, and their additions work."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tests import image_files, models
from tests.conftest import write
from tests.docs.commands import ROOT

pytestmark = pytest.mark.slow
DIFFS = ROOT / "docs" / "extending"
GATED = """
<ir_version: 10, opset_import: ["": 20]>
gated (float[N, 16, 8, 8] image) => (float[N, 16, 8, 8] gated)
{
    features = Conv <pads: ints = [1, 1, 1, 1]> (image, weight)
    gate = Sigmoid (features)
    product = Mul (features, gate)
    gated = Relu (product)
}
"""
COUNTER = """
<ir_version: 10, opset_import: ["": 20]>
counter (float[N, 3, 12, 12] image) => (float[N, 1] number)
{
    brightness = Conv (image, weight, bias)
    mean = GlobalAveragePool (brightness)
    number = Flatten (mean)
}
"""


class Extended:
    """A copy of the package with one of the diffs applied, and a folder to use it in."""

    def __init__(self, recipe: str, folder: Path) -> None:
        self.copy, self.folder = folder / "copy", folder
        shutil.copytree(ROOT / "qconvert", self.copy / "qconvert")
        diff = DIFFS / f"{recipe}.diff"
        subprocess.run(["git", "apply", "--unsafe-paths", diff], cwd=self.copy, check=True)
        write(models.mixed(), folder / "model.onnx")
        images = image_files.draw_images(folder / "images", 24)
        names = sorted(path.name for path in images.glob("*.png"))
        rows = [f"{name},{number}" for number, name in enumerate(names)]
        (images / "labels.csv").write_text("\n".join(["file,label", *rows]))

    def run(self, *args: str) -> str:
        """Run a command of the copy and return its output."""
        process = subprocess.run(
            [sys.executable, "-m", "qconvert", *args],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(self.copy), "PYTHONSAFEPATH": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert process.returncode == 0, process.stderr
        return process.stdout


@pytest.fixture
def extended(request: pytest.FixtureRequest, tmp_path: Path) -> Extended:
    return Extended(request.param, tmp_path)


def use(recipe: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("extended", [recipe], indirect=True)


@use("backend")
def test_backend_recipe_builds_times_and_scores_an_engine(extended: Extended) -> None:
    options = ("--backend", "reference", "--precision", "fp32", "--seconds", "0.02")
    report: dict[str, Any] = json.loads(
        extended.run("build", "model.onnx", *options, "--eval", "images", "-o", "run", "--json")
    )
    (variant,) = report["variants"]
    assert variant["name"] == "reference-fp32"
    assert variant["accuracy"]["agreement"] == 100.0
    assert variant["latency"]


@use("placement-rule")
def test_placement_rule_recipe_quantizes_the_operator(extended: Extended) -> None:
    write(models.from_text(GATED, weight=models.floats(16, 16, 3, 3)), extended.folder / "g.onnx")
    text = extended.run("inspect", "g.onnx", "--quantized", "--backend", "tensorrt", "--json")
    layers = json.loads(text)["layers"].values()
    (product,) = [layer for layer in layers if layer["op"] == "Mul"]
    assert product["inputs"] == [0, 1]


@use("range-method")
def test_range_method_recipe_gives_ranges(extended: Extended) -> None:
    options = ("--images", "images", "--method", "sigma", "--effort", "none", "--json")
    result = json.loads(extended.run("quantize", "model.onnx", *options, "-o", "int8.onnx"))
    assert result["plan"]["method"] == "sigma"


@use("metric")
def test_metric_recipe_adds_a_column_and_a_key(extended: Extended) -> None:
    options = ("model.onnx", "--eval", "images")
    assert "kappa" in extended.run("evaluate", *options)
    report = json.loads(extended.run("evaluate", *options, "--json"))
    assert report["variants"][0]["accuracy"]["kappa"] is not None


@use("task")
def test_task_recipe_scores_numbers(extended: Extended) -> None:
    """The network tells the number of an image from its brightness."""
    weights = {"weight": np.full((1, 3, 1, 1), 1 / 7.5, np.float32)}
    weights["bias"] = np.array([-11.8], np.float32)
    write(models.from_text(COUNTER, **weights), extended.folder / "counter.onnx")
    options = ("--eval", "images", "--preprocess", "raw", "--task", "regress")
    assert "exact   off by 1" in extended.run("evaluate", "counter.onnx", *options)
    report = json.loads(extended.run("evaluate", "counter.onnx", *options, "--json"))
    accuracy = report["variants"][0]["accuracy"]
    assert (accuracy["task"], accuracy["primary"], accuracy["agreement"]) == (
        "regress",
        "exact",
        100,
    )
    assert 0 < accuracy["metrics"]["exact"] < accuracy["metrics"]["within_one"]


@use("number-format")
def test_number_format_recipe_writes_16_bit_activations(extended: Extended) -> None:
    options = ("--images", "images", "--effort", "none", "--set", "export.opset=21")
    extended.run("quantize", "model.onnx", *options, "-o", "int16.onnx")
    graph = onnx.load(extended.folder / "int16.onnx").graph
    assert onnx.TensorProto.UINT16 in {tensor.data_type for tensor in graph.initializer}
