"""Weight-only formats by the commands: files, builds, and what is refused before any work."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from qconvert.backends.ort import open_cpu
from qconvert.core import onnx_io
from qconvert.measure.output_error import sqnr_db
from tests.cli.test_number_formats import QUICK, build
from tests.conftest import Outcome, write
from tests.image_files import draw_images
from tests.models import floats, mixed, products

Command = Callable[..., Outcome]
INT4 = ("--precision", "int4-weights")


@pytest.fixture(autouse=True)
def _world(tmp_path: Path) -> None:
    write(products(), tmp_path / "net.onnx")


def test_file_without_images_is_rounded_to_nearest(qconvert: Command) -> None:
    outcome = qconvert("quantize", "net.onnx", *INT4, "-o", "out.onnx", "--plan-out", "plan.json")
    assert outcome.code == 0, outcome.err
    assert "2 of 2 nodes in int4-weights" in " ".join(outcome.err.split())
    assert "stored as INT8" not in outcome.err
    plan = json.loads(Path("plan.json").read_text())
    assert (plan["precision"], plan["group"], plan["kernels"]) == (
        "int4-weights",
        64,
        "onnxruntime",
    )
    before, after = (onnx_io.load(Path(name)) for name in ("net.onnx", "out.onnx"))
    assert onnx_io.saved_bytes(Path("out.onnx")) < 0.25 * onnx_io.saved_bytes(Path("net.onnx"))
    feeds = {"image": floats(8, 3, 16, 16)}
    assert sqnr_db(open_cpu(before)(feeds), open_cpu(after)(feeds)) > 12
    again = qconvert("quantize", "net.onnx", *INT4, "--plan", "plan.json", "-o", "again.onnx")
    assert again.code == 0, again.err
    assert Path("again.onnx").read_bytes() == Path("out.onnx").read_bytes()
    shown = qconvert("inspect", "out.onnx", "--quantized")
    assert shown.code == 0, shown.err


@pytest.mark.slow
def test_images_let_gptq_round(qconvert: Command) -> None:
    draw_images(Path("images"), 40, 8)
    more = ("--images", "images", "--group", "32", "--effort", "quick", "--plan-out", "plan.json")
    outcome = qconvert("quantize", "net.onnx", *INT4, *more, "-o", "out.onnx")
    assert outcome.code == 0, outcome.err
    assert "note: GPTQ: " in outcome.err
    plan = json.loads(Path("plan.json").read_text())
    assert ("learned" in plan) == (", used (" in " ".join(outcome.err.split()))
    again = qconvert("quantize", "net.onnx", *INT4, "--plan", "plan.json", "-o", "again.onnx")
    assert again.code == 0, again.err
    first, second = (onnx_io.load(Path(name)) for name in ("out.onnx", "again.onnx"))
    assert onnx_io.fingerprint(first) == onnx_io.fingerprint(second)


@pytest.mark.slow
def test_build_measures_weight_only_engines(qconvert: Command) -> None:
    draw_images(Path("val"), 16)
    names = "fp32,int8-weights,int4-weights"
    report = build(qconvert, "net.onnx", "-o", "run", "--eval", "val", "--precision", names)
    rows = {row["name"]: row for row in report["variants"]}
    assert list(rows) == ["cpu-fp32", "cpu-int8-weights", "cpu-int4-weights"]
    sizes = [row["engine"]["bytes"] for row in rows.values()]
    assert sizes[2] < 0.6 * sizes[1] < 0.25 * sizes[0]
    for name, bits, least in (("cpu-int8-weights", 8, 30), ("cpu-int4-weights", 4, 10)):
        row = rows[name]
        assert row["by_precision"][f"int{bits} weights"] == 2
        assert (row["quantized"], row["candidates"]) == (2, 2)
        assert row["accuracy"]["sqnr_db"] > least
        assert row["latency"]
        assert not any("saturat" in note for note in report["notes"])
    again = build(qconvert, "--from", "run")
    assert [row["name"] for row in again["variants"]] == list(rows)


@pytest.mark.slow
def test_convolutions_save_bytes_of_the_file(qconvert: Command) -> None:
    write(mixed(), Path("conv.onnx"))
    more = ("--precision", "fp32,int8-weights", "--group", "32")
    report = build(qconvert, "conv.onnx", "-o", "run", *more)
    fp32, int8 = report["variants"]
    assert int8["engine"]["bytes"] < 0.8 * fp32["engine"]["bytes"]
    assert int8["quantized"] == 6


REFUSED: dict[str, tuple[tuple[str, ...], str]] = {
    "a group of no kernel": ((*INT4, "--group", "48"), "groups of 32, 64, 128"),
    "a group for int8": (("--precision", "int8", "--group", "64"), "`--group` is for weight-only"),
    "bits of a format": ((*INT4, "--weight-bits", "5"), "`--weight-bits` has no effect"),
    "a range method": ((*INT4, "--method", "mse"), "`--method` has no effect"),
    "zero points of TensorRT": (
        (*INT4, "--backend", "tensorrt", "--zero-points"), "`tensorrt` reads no zero points",
    ),
    "CUDA": ((*INT4, "--backend", "cuda"), "no int4-weights for `cuda`"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_makes_no_sense_is_refused(qconvert: Command, name: str) -> None:
    words, message = REFUSED[name]
    outcome = qconvert("quantize", "net.onnx", *words, "-o", "out.onnx")
    assert outcome.code == 2, outcome.err
    assert message in " ".join(outcome.err.split())
    assert not Path("out.onnx").exists()


def test_group_larger_than_the_weights_is_refused(qconvert: Command) -> None:
    write(mixed(), Path("conv.onnx"))
    for words, build_it in (
        ((*INT4, "-o", "out.onnx"), False),
        ((*INT4, *QUICK, "-o", "run"), True),
    ):
        outcome = qconvert("build" if build_it else "quantize", "conv.onnx", *words)
        assert outcome.code == 2, outcome.err
        assert "`--group 64` is larger than every weight of this model" in " ".join(
            outcome.err.split()
        )


def test_int4_of_convolutions_alone_is_refused(qconvert: Command) -> None:
    weight = {"w6": np.zeros((24, 32), np.float32)}
    write(mixed(**weight), Path("conv.onnx"))
    outcome = qconvert(
        "quantize", "conv.onnx", *INT4, "--group", "32", "--exclude", "Gemm", "-o", "out.onnx"
    )
    assert outcome.code != 0
    assert "Conv: the backend has no convolution with 4-bit weights" in outcome.err
