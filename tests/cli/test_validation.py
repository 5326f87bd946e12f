"""Impossible requests are refused at once, and leave nothing behind."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from qconvert.calibrate import methods
from qconvert.core import onnx_io, setting_checks
from qconvert.quantize.apply_plan import apply_plan
from tests.conftest import Outcome, write
from tests.models import floats, from_text, mixed
from tests.quantize.quantized_models import planned

Run = Callable[..., Outcome]
# More digits than Python parses.
LONG = "9" * 5000
BAD = {
    "quantize.method": ("'minmaks'", "there is no range method `minmaks`; did you mean `minmax`?"),
    "quantize.method ": ("'percentile:12'", "`percentile:12` needs a number above 50"),
    "preprocess.mean": ("[0.5, 0.5]", "1 or 3 numbers are required"),
    "preprocess.std": ("[0.0]", "all must be above 0"),
    "preprocess.std ": ("[1, 1, 1, 1]", "1 or 3 numbers are required"),
    "bench.seconds": ("inf", "should be a finite number"),
    "build.precisions": ("['int9']", "did you mean `int8`?"),
}


@pytest.mark.parametrize(("key", "bad"), BAD.items(), ids=BAD)
@pytest.mark.parametrize("command", ["build", "quantize"])
def test_invalid_setting_is_refused_with_its_line(
    command: str, key: str, bad: tuple[str, str], tiny: Path, qconvert: Run
) -> None:
    table, _, name = key.strip().partition(".")
    Path("qconvert.toml").write_text(f"model = 'tiny.onnx'\n[{table}]\n{name} = {bad[0]}\n")
    outcome = qconvert(command, "--dry-run")
    assert outcome.code == 2
    assert f"line 3: {key.strip()}: " in outcome.err
    assert bad[1] in " ".join(outcome.err.split())
    assert "Tuple" not in outcome.err
    assert "Value error" not in outcome.err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--precision", "int9"), "did you mean `int8`?"),
        (("--method", "entropie"), "did you mean `entropy`?"),
        (("--mean", "1,2"), "1 or 3 numbers"),
        (("--batch", LONG), "is not dynamic|N"),
        (("--resize", LONG), "is none of fit, none, letterbox"),
        (("--crop", LONG), "is not N|fit|none"),
        (("--batch-sizes", f"1,{LONG}"), "is not N,N"),
        (("--max-broken", "-1"), "should be greater than or equal to 0"),
        (("--seconds", "inf"), "is not a number"),
        (("--set", f"calibration.count={LONG}"), "calibration.count"),
    ],
)
def test_invalid_option_value_is_refused(
    args: tuple[str, str], message: str, tiny: Path, qconvert: Run
) -> None:
    outcome = qconvert("build", "tiny.onnx", *args, "--dry-run")
    assert outcome.code == 2
    assert message in " ".join(outcome.err.split())
    assert "Tuple" not in outcome.err


def test_wrong_option_value_is_not_blamed_on_the_settings_file(tiny: Path, qconvert: Run) -> None:
    Path("qconvert.toml").write_text("model = 'tiny.onnx'\n")
    outcome = qconvert("build", "--max-drop", "-1", "--dry-run")
    assert outcome.code == 2
    assert "error: command line: 1 setting is wrong\n  gate.max-drop: " in outcome.err


def test_settings_file_with_impossible_values_is_refused(tiny: Path, qconvert: Run) -> None:
    for text, message in (
        (f"model = 'tiny.onnx'\n[calibration]\ncount = {LONG}", "not valid TOML"),
        ('model = "a\\u0000.onnx"', "line 1: model: a file name cannot contain a zero byte"),
    ):
        Path("qconvert.toml").write_text(text)
        outcome = qconvert("build", "--dry-run")
        assert outcome.code == 2
        assert message in " ".join(outcome.err.split())


@pytest.mark.parametrize(
    "args",
    [
        ("calibrate", "tiny.onnx", "-o", "tiny.onnx"),
        ("quantize", "tiny.onnx", "-o", "out.onnx", "--plan-out", "tiny.onnx"),
        ("quantize", "tiny.onnx", "-o", "out.onnx", "--plan-out", "out.onnx"),
        ("compare", "tiny.onnx", "tiny.onnx", "-o", "tiny.onnx"),
        ("init", "tiny.onnx", "--force", "-o", "tiny.onnx"),
        ("calibrate", "tiny.onnx", "-o", "pipe"),
        ("calibrate", "--merge", "a.npz", "b.npz", "-o", "pipe"),
        ("quantize", "tiny.onnx", "-o", "out.onnx", "--plan-out", "pipe"),
        ("compare", "tiny.onnx", "tiny.onnx", "-o", "pipe"),
    ],
    ids=" ".join,
)
def test_output_on_a_device_or_an_input_file_is_refused(
    args: tuple[str, ...], tiny: Path, qconvert: Run
) -> None:
    os.mkfifo("pipe")
    before = tiny.read_bytes()
    outcome = qconvert(*args)
    assert outcome.code == 2
    assert f"error: `{args[-1]}` is" in outcome.err
    assert tiny.read_bytes() == before
    assert Path("pipe").is_fifo()


def test_method_setting_accepts_every_range_method() -> None:
    assert set(methods.METHODS) <= set(setting_checks.RANGE_METHODS)
    assert {"auto", "answers"} | set(methods.METHODS) == set(setting_checks.RANGE_METHODS)


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_output_folder_that_is_a_file_is_refused(
    more: tuple[str, ...], tiny: Path, qconvert: Run
) -> None:
    Path("afile").write_text("mine")
    outcome = qconvert("build", "tiny.onnx", "-o", "afile", *more)
    assert outcome.code == 2
    assert "`afile` is a file, and a run is a folder" in outcome.err
    assert Path("afile").read_text() == "mine"


@pytest.mark.slow
def test_build_without_a_finished_step_leaves_no_folder(tiny: Path, qconvert: Run) -> None:
    Path("bad.onnx").write_bytes(tiny.read_bytes()[:300])
    assert qconvert("build", "bad.onnx").code == 3
    assert not Path("runs").exists()
    Path("runs/bad").mkdir(parents=True)
    assert qconvert("build", "bad.onnx").code == 3
    assert Path("runs/bad").is_dir(), "a folder that was there stays"


def test_class_name_in_other_case_is_suggested(tiny: Path, qconvert: Run) -> None:
    from tests.image_files import draw_images

    draw_images(Path("val"), 2)
    Path("val/classes.txt").write_text("\n".join(["Cat", "dog", "bird", "fish", "fly"]))
    Path("val/labels.csv").write_text("file,label\n0000.png,CAT\n0001.png,dog\n")
    outcome = qconvert("evaluate", "tiny.onnx", "tiny.onnx", "--eval", "val")
    assert outcome.code == 2
    assert "did you mean `Cat`?" in outcome.err


@pytest.mark.slow
def test_evaluate_refuses_a_quantized_reference(qconvert: Run) -> None:
    from tests.image_files import draw_images

    draw_images(Path("val"), 2)
    write(mixed(), Path("fp32.onnx"))
    write(apply_plan(mixed(), planned(mixed(), "cpu")), Path("int8.onnx"))
    wrong = qconvert("evaluate", "int8.onnx", "fp32.onnx", "--eval", "val")
    assert (wrong.code, wrong.out) == (2, "")
    assert "`int8.onnx` is quantized" in wrong.err
    assert "name the float model first: `fp32.onnx int8.onnx`" in wrong.err
    alone = qconvert("evaluate", "int8.onnx", "--eval", "val")
    assert "name the float model first: `MODEL.onnx int8.onnx`" in alone.err
    assert qconvert("evaluate", "fp32.onnx", "int8.onnx", "--eval", "val").code == 0
    timed = ("--seconds", "0.01", "--batch-sizes", "1")
    assert qconvert("bench", "int8.onnx", "fp32.onnx", *timed).code == 0


# TensorRT for RTX has no Fourier transform.
SPECTRUM = """
<ir_version: 10, opset_import: ["": 20]>
spectrum (float[batch, 32, 8, 8] image) => (float[batch, 32, 8, 8] real)
<int64[1] last = {-1}, int64 axis = {-2}, int64 first = {0}> {
    conv = Conv <pads: ints = [1, 1, 1, 1]> (image, weight)
    wide = Unsqueeze (conv, last)
    [fourier] both = DFT (wide, , axis)
    real = Gather <axis: int = -1> (both, first)
}
"""


@pytest.fixture
def spectrum() -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx-cu13 is not installed")
    onnx_io.save(from_text(SPECTRUM, weight=floats(32, 32, 3, 3)), Path("spectrum.onnx"))
    np.savez("given.npz", image=floats(8, 32, 8, 8, seed=5))


@pytest.mark.long
@pytest.mark.usefixtures("spectrum")
@pytest.mark.parametrize("command", ["build", "search"])
def test_unsupported_operator_is_named_before_any_work(command: str, qconvert: Run) -> None:
    options = ("--images", "given.npz", "--eval", "given.npz", "-o", "made")
    outcome = qconvert(command, "spectrum.onnx", "--backend", "tensorrt-rtx", *options)
    assert outcome.code == 3
    message = " ".join(outcome.err.split())
    assert "(DFT): it has no such operator" in message
    assert "leave this backend out" in message
    assert "calibrate" not in message
    assert not Path("made").exists()


@pytest.mark.long
@pytest.mark.usefixtures("spectrum")
def test_plan_only_build_works_for_an_unsupported_operator(qconvert: Run) -> None:
    options = ("--images", "given.npz", "--effort", "none", "--plan-only", "-o", "made")
    outcome = qconvert("build", "spectrum.onnx", "--backend", "tensorrt-rtx", *options)
    assert outcome.code == 0, outcome.err
    assert Path("made/engines/tensorrt-rtx-int8/model.onnx").is_file()
