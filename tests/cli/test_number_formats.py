"""Builds in number formats that need no images, and what happens without any."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnxruntime import quantization

from qconvert.backends.ort import open_cpu
from qconvert.core import onnx_io
from qconvert.graph.passes import infer_shapes
from qconvert.measure.output_error import sqnr_db
from tests.conftest import Outcome, write
from tests.image_files import draw_images
from tests.models import floats, from_text, mixed, products

Command = Callable[..., Outcome]
QUICK = ("--backend", "cpu", "--seconds", "0.02", "--batch-sizes", "1")


@pytest.fixture(autouse=True)
def _world(tmp_path: Path) -> None:
    write(products(), tmp_path / "net.onnx")


def build(qconvert: Command, *more: str) -> dict[str, Any]:
    outcome = qconvert("build", *more, *QUICK, "--json")
    assert outcome.code == 0, outcome.err
    report: dict[str, Any] = json.loads(outcome.out)
    return report


@pytest.mark.slow
def test_build_without_images_tries_dynamic_int8_for_products(qconvert: Command) -> None:
    report = build(qconvert, "net.onnx", "-o", "run")
    rows = {row["name"]: row for row in report["variants"]}
    assert list(rows) == ["cpu-fp32", "cpu-fp16", "cpu-int8-dynamic"]
    dynamic = rows["cpu-int8-dynamic"]
    assert (dynamic["quantized"], dynamic["candidates"]) == (2, 2)
    assert dynamic["by_precision"]["int8"] == 2
    assert dynamic["latency"]
    assert dynamic["engine"]["bytes"] < 0.5 * rows["cpu-fp32"]["engine"]["bytes"]
    assert dynamic["engine"]["made_with"]["activations"] == "at run time"
    notes = " ".join(report["notes"])
    assert "no `cpu-int8`: INT8 needs images" in notes
    assert "dB of the outputs on a random input, which says less than images" in notes
    again = build(qconvert, "--from", "run")
    assert [row["name"] for row in again["variants"]] == list(rows)


@pytest.mark.slow
def test_plan_of_another_format_is_refused(qconvert: Command) -> None:
    build(qconvert, "net.onnx", "-o", "run", "--precision", "fp32,int8-dynamic")
    outcome = qconvert("tune", "run")
    assert outcome.code == 2
    assert "`run` has no INT8 engine to train here" in outcome.err
    file = Path("run/engines/cpu-int8-dynamic/plan.json")
    file.write_text(file.read_text().replace("int8-dynamic", "int8"))
    outcome = qconvert("build", "--from", "run", *QUICK)
    assert outcome.code == 2
    assert "cpu-int8-dynamic/plan.json` is a plan for int8" in " ".join(outcome.err.split())


@pytest.mark.slow
def test_build_with_images_tries_dynamic_int8_beside_int8(qconvert: Command) -> None:
    draw_images(Path("images"), 16)
    more = ("--images", "images", "--effort", "none")
    rows = build(qconvert, "net.onnx", "-o", "run", *more)["variants"]
    names = ["cpu-fp32", "cpu-fp16", "cpu-int8", "cpu-int8-dynamic"]
    assert [row["name"] for row in rows] == names
    dry = qconvert("build", "net.onnx", "--dry-run")
    assert "a network of products gets an engine in `int8-dynamic` too" in " ".join(dry.err.split())


@pytest.mark.slow
def test_dynamic_int8_is_compared_with_fp32_where_there_are_images(qconvert: Command) -> None:
    draw_images(Path("val"), 16)
    report = build(qconvert, "net.onnx", "--eval", "val", "--precision", "fp32,int8-dynamic")
    row = report["variants"][1]
    assert row["accuracy"]["sqnr_db"] > 30
    assert row["accuracy"]["agreement"] > 80
    assert {layer["precision"] for layer in row["layers"] if layer["op"] == "Gemm"} == {"int8"}
    assert not any("random input" in note for note in report["notes"])
    card = qconvert("report", "runs/net", "--format", "card", "--engine", "cpu-int8-dynamic")
    assert "2 of 2 operators that could be are quantized to dynamic INT8." in card.out


def test_build_of_convolutions_without_images_asks_for_them(qconvert: Command) -> None:
    write(mixed(), Path("conv.onnx"))
    outcome = qconvert("build", "conv.onnx", *QUICK, "-o", "run")
    assert outcome.code == 2
    assert "INT8 needs the value range of every tensor" in outcome.err
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--precision", "int8-dynamic", "--backend", "tensorrt", "--plan-only"], "TensorRT fixes"),
        (["--precision", "int8-dynamic", "--method", "mse"], "`--method` has no effect"),
        (["--method", "mse"], "`--method` has no effect: int8-dynamic has no ranges"),
    ],
)
def test_what_dynamic_int8_cannot_do_is_refused(
    qconvert: Command, more: list[str], message: str
) -> None:
    outcome = qconvert("build", "net.onnx", "-o", "run", *more)
    assert outcome.code == 2
    assert message in outcome.err
    assert not Path("run").exists()


def test_backends_without_a_format_are_left_out_with_the_reason(qconvert: Command) -> None:
    more = ("--precision", "int8-dynamic", "--backend", "cpu,tensorrt", "--plan-only")
    outcome = qconvert("build", "net.onnx", "-o", "run", *more)
    assert outcome.code == 0, outcome.err
    notes = " ".join(outcome.out.split())
    assert "no int8-dynamic for `tensorrt`: TensorRT fixes the scales" in notes
    assert [path.name for path in Path("run/engines").iterdir()] == ["cpu-int8-dynamic"]


OUTLIERS = """
<ir_version: 10, opset_import: ["": 20]>
net (float[N, 64] rows) => (float[N, 64] outputs) {
    normal = LayerNormalization (rows, gamma, beta)
    outputs = Gemm (normal, weight)
}
"""


@pytest.mark.slow
def test_outliers_of_channels_move_into_the_weights_where_there_are_images(
    qconvert: Command,
) -> None:
    gamma, weight = np.ones(64, np.float32), floats(64, 64) / np.float32(8)
    gamma[[3, 17]], weight[[3, 17]] = 40, weight[[3, 17]] / 40
    constants = {"gamma": gamma, "beta": floats(64, seed=1), "weight": weight}
    write(infer_shapes(from_text(OUTLIERS, **constants))[0], Path("net.onnx"))
    np.savez("rows.npz", rows=floats(64, 64, seed=2))
    sqnr = []
    for more in ([], ["--images", "rows.npz"]):
        outcome = qconvert(
            *("quantize", "net.onnx", "--precision", "int8-dynamic", "-o", "out.onnx"), *more
        )
        assert outcome.code == 0, outcome.err
        feeds = {"rows": floats(16, 64, seed=3)}
        paths = (Path("net.onnx"), Path("out.onnx"))
        sqnr.append(sqnr_db(*(open_cpu(onnx_io.load(path))(feeds) for path in paths)))
    assert "cross-layer equalization of 1 tensors accepted" in " ".join(outcome.err.split())
    assert sqnr[1] > sqnr[0] + 6


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_dynamic_file_of_another_tool_is_recognized(qconvert: Command) -> None:
    quantization.quantize_dynamic("net.onnx", "theirs.onnx")
    outcome = qconvert("bench", "net.onnx", "theirs.onnx", "--seconds", "0.02", "--json")
    assert outcome.code == 0, outcome.err
    rows = {row["name"]: row["precision"] for row in json.loads(outcome.out)["variants"]}
    assert rows == {"net.onnx": "fp32", "theirs.onnx": "int8-dynamic"}
