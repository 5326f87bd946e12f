"""A model that was trained quantized goes through the commands like any other, without images."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from qconvert.backends.ort import open_cpu
from qconvert.core import onnx_io
from tests.conftest import Outcome, write
from tests.image_files import draw_images
from tests.models import floats, from_text

Command = Callable[..., Outcome]

# Quantizers in front of convolutions and products, as pytorch-quantization places them.
TRAINED = """
<ir_version: 10, opset_import: ["": 20]>
trained (float[batch, 3, 8, 8] image) => (float[batch, 5] scores) {
    image_q = QuantizeLinear (image, image_s, zero)
    image_d = DequantizeLinear (image_q, image_s, zero)
    w_q = QuantizeLinear <axis: int = 0> (w, w_s, w_z)
    w_d = DequantizeLinear <axis: int = 0> (w_q, w_s, w_z)
    conv = Conv <pads: ints = [1, 1, 1, 1]> (image_d, w_d, b)
    relu = Relu (conv)
    relu_q = QuantizeLinear (relu, relu_s, zero)
    relu_d = DequantizeLinear (relu_q, relu_s, zero)
    pooled = GlobalAveragePool (relu_d)
    flat = Flatten (pooled)
    flat_q = QuantizeLinear (flat, flat_s, zero)
    flat_d = DequantizeLinear (flat_q, flat_s, zero)
    head_d = DequantizeLinear <axis: int = 0> (head_q, head_s, head_z)
    scores = Gemm <transB: int = 1> (flat_d, head_d, head_b)
}
"""


@pytest.fixture(autouse=True)
def _world(tmp_path: Path) -> None:
    arrays: dict[str, NDArray[np.generic]] = {
        "image_s": np.array(0.025, np.float32),
        "zero": np.array(0, np.int8),
        "w": floats(4, 3, 3, 3),
        "w_s": np.full(4, 0.025, np.float32),
        "w_z": np.zeros(4, np.int8),
        "b": floats(4, seed=1),
        "relu_s": np.array(0.1, np.float32),
        "flat_s": np.array(0.05, np.float32),
        "head_q": (50 * floats(5, 4, seed=2)).clip(-127, 127).astype(np.int8),
        "head_s": np.full(5, 0.02, np.float32),
        "head_z": np.zeros(5, np.int8),
        "head_b": floats(5, seed=3),
    }
    write(from_text(TRAINED, **arrays), tmp_path / "qat.onnx")


@pytest.mark.parametrize("backend", ["cpu", "tensorrt"])
def test_quantize_writes_the_trained_model_for_a_backend(qconvert: Command, backend: str) -> None:
    outcome = qconvert("quantize", "qat.onnx", "--backend", backend, "-o", "out.onnx", "--json")
    assert outcome.code == 0, outcome.err
    document = json.loads(outcome.out)
    assert document["plan"]["method"] == "training"
    assert any("5 quantizers read" in note for note in document["notes"])
    feeds = {"image": floats(4, 3, 8, 8, seed=9)}
    before, after = (
        open_cpu(onnx_io.load(Path(name)), keep_qdq=True)(feeds)["scores"]
        for name in ("qat.onnx", "out.onnx")
    )
    # On the CPU a bias is an integer too: that moves it by half a step of the sum at most.
    assert np.abs(before - after).max() <= (0.01 if backend == "cpu" else 1e-6)


def test_trained_model_decides_what_options_ask_for(qconvert: Command) -> None:
    for option in (("--method", "mse"), ("--exclude", "Conv"), ("--weight-bits", "4")):
        outcome = qconvert("quantize", "qat.onnx", "-o", "out.onnx", *option)
        assert outcome.code == 2
        assert f"`{option[0]}` is decided by the training" in outcome.err


def test_float_precision_of_a_trained_model_has_no_quantizers(qconvert: Command) -> None:
    assert qconvert("quantize", "qat.onnx", "--precision", "fp16", "-o", "half.onnx").code == 0
    operators = {node.op_type for node in onnx_io.load(Path("half.onnx")).graph}
    assert "QuantizeLinear" not in operators


def test_dry_run_shows_what_the_training_quantized(qconvert: Command) -> None:
    outcome = qconvert("quantize", "qat.onnx", "--dry-run", "--json")
    assert outcome.code == 0, outcome.err
    operators = {layer["op"] for layer in json.loads(outcome.out)["layers"].values()}
    assert {"Conv", "Gemm", "GlobalAveragePool"} <= operators


def test_plans_of_a_build_come_from_the_training(qconvert: Command) -> None:
    outcome = qconvert("build", "qat.onnx", "-o", "run", "--plan-only", "--precision", "int8")
    assert outcome.code == 0, outcome.err
    plan = json.loads(Path("run/engines/cpu-int8/plan.json").read_text())
    assert (plan["method"], plan["scheme"]) == ("training", "cpu")
    assert "QuantizeLinear" not in {
        node.op_type for node in onnx_io.load(Path("run/model.onnx")).graph
    }


@pytest.mark.long
def test_build_scores_and_reports_a_trained_model_and_resumes_it(
    qconvert: Command, tmp_path: Path
) -> None:
    draw_images(tmp_path / "eval", 24)
    quick = ("--precision", "fp32,int8", "--seconds", "0.02", "--batch-sizes", "1", "--json")
    outcome = qconvert("build", "qat.onnx", "--eval", "eval", "-o", "run", *quick)
    assert outcome.code == 0, outcome.err
    variants = {row["name"]: row for row in json.loads(outcome.out)["variants"]}
    accuracy = {name: row["accuracy"]["agreement"] for name, row in variants.items()}
    assert accuracy["cpu-fp32"] == 100
    assert accuracy["cpu-int8"] > 60
    assert any("quantized by its training" in note for note in variants["cpu-int8"]["notes"])
    again = qconvert("build", "--from", "run", *quick)
    assert again.code == 0, again.err
    assert "cpu-int8" in again.out


@pytest.mark.slow
def test_trained_model_is_tuned_on_images(qconvert: Command) -> None:
    draw_images(Path("images"), 40)
    options = ("--backend", "cpu", "--precision", "fp32,int8", "--seconds", "0.02", "-o", "run")
    assert qconvert("build", "qat.onnx", "--eval", "images", *options).code == 0
    outcome = qconvert("tune", "run", "--images", "images", "--training-steps", "20")
    assert outcome.code == 0, outcome.err
    assert "training: 20 steps" in outcome.err
