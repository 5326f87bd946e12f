"""`qconvert calibrate` on the command line."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from qconvert.calibrate.calibration import load_calibration
from tests import models
from tests.conftest import Outcome, write
from tests.image_files import draw_images
from tests.models import floats, from_text

Command = Callable[..., Outcome]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return draw_images(tmp_path / "images", 40)


def calibrated(qconvert: Command, out: str, *more: str) -> Outcome:
    outcome = qconvert("calibrate", "tiny.onnx", "--images", "images", "-o", out, *more)
    assert outcome.code == 0, outcome.err
    return outcome


def step(outcome: Outcome) -> str:
    (line,) = [line for line in outcome.err.splitlines() if line.startswith("  ✓ calibrate")]
    return line


def test_calibrate_writes_one_small_file(
    qconvert: Command, tiny: Path, images: Path, tmp_path: Path
) -> None:
    outcome = calibrated(qconvert, "c.npz")
    assert outcome.out == ""
    assert "✓ calibrate 40 images, " in outcome.err
    calibration = load_calibration(Path("c.npz"))
    assert calibration.image_indices.tolist() == list(range(40))
    assert calibration.origin.images[0].name == "0000.png"
    assert calibration.origin.preprocessing["crop"] == 8
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".store",
        "c.npz",
        "images",
        "tiny.onnx",
    ]


@pytest.mark.long
def test_workers_and_shards_give_the_same_calibration_bytes(
    qconvert: Command, tiny: Path, images: Path
) -> None:
    calibrated(qconvert, "one.npz")
    calibrated(qconvert, "two.npz", "--workers", "2")
    for number in (1, 2, 3):
        calibrated(qconvert, f"s{number}.npz", "--shard", f"{number}/3")
    merged = qconvert("calibrate", "--merge", "s3.npz", "s1.npz", "s2.npz", "-o", "m.npz")
    assert merged.err == "wrote m.npz: 40 images from 3 parts\n"
    whole = Path("one.npz").read_bytes()
    assert Path("two.npz").read_bytes() == whole
    assert Path("m.npz").read_bytes() == whole


def test_repeated_calibrate_runs_no_image(qconvert: Command, tiny: Path, images: Path) -> None:
    calibrated(qconvert, "c.npz")
    before = Path("c.npz").stat().st_mtime_ns
    assert " cached, " in step(calibrated(qconvert, "c.npz"))
    assert Path("c.npz").stat().st_mtime_ns == before
    assert "cached, " not in step(calibrated(qconvert, "c.npz", "--fresh"))


def test_full_calibration_reuses_a_finished_shard(
    qconvert: Command, tiny: Path, images: Path
) -> None:
    calibrated(qconvert, "c.npz", "--shard", "1/2")
    assert load_calibration(Path("c.npz")).image_indices.size == 20
    calibrated(qconvert, "c.npz")
    calibrated(qconvert, "fresh.npz")
    assert Path("c.npz").read_bytes() == Path("fresh.npz").read_bytes()


@pytest.mark.slow
def test_calibration_killed_by_sigkill_resumes(
    qconvert: Command, tiny: Path, tmp_path: Path
) -> None:
    draw_images(tmp_path / "images", 40)
    script = (
        "import sys, time\n"
        "from qconvert.calibrate import calibration\n"
        "from qconvert.run import calibrate\n"
        "calibrate.SAVE_SECONDS = 0.0\n"
        "add = calibration.Collector.add\n"
        "def slow(self, *args):\n"
        "    add(self, *args)\n"
        "    print(self.image_count, flush=True)\n"
        "    time.sleep(0.05)\n"
        "calibration.Collector.add = slow\n"
        "from qconvert.cli import run\n"
        "sys.argv = ['qconvert', 'calibrate', 'tiny.onnx', '--images', 'images', '-o', 'c.npz']\n"
        "run()\n"
    )
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    with child.stdout:
        while int(child.stdout.readline()) < 16:
            pass
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert not Path("c.npz").exists()
    stored = load_calibration(Path(".c.npz.part")).image_indices.size
    assert 8 <= stored < 40
    calibrated(qconvert, "c.npz")
    calibrated(qconvert, "whole.npz")
    assert Path("c.npz").read_bytes() == Path("whole.npz").read_bytes()
    assert not Path(".c.npz.part").exists()


def test_other_preprocessing_recalibrates(qconvert: Command, tiny: Path, images: Path) -> None:
    calibrated(qconvert, "c.npz")
    changed = calibrated(qconvert, "c.npz", "--mean", "0.5")
    assert "cached, " not in step(changed)
    assert load_calibration(Path("c.npz")).origin.preprocessing["mean"] == [0.5]


def test_calibrate_show_prints_ranges_of_every_method(
    qconvert: Command, tiny: Path, images: Path
) -> None:
    calibrated(qconvert, "c.npz")
    for path in images.iterdir():
        path.unlink()
    shown = qconvert("calibrate", "--show", "c.npz")
    header, _, *rows = shown.out.splitlines()
    assert header.split()[:4] == ["tensor", "min", "max", "mse"]
    assert rows[0].startswith("image ")
    methods = ["mse", "minmax", "moving-average", "entropy", "percentile:99.9"]
    args = [word for name in methods for word in ("--method", name)]
    result = json.loads(qconvert("calibrate", "--show", "c.npz", "--json", *args).out)
    for tensor in result["tensors"]:
        assert [row["method"] for row in tensor["kept"]] == methods
        exact = tensor["kept"][1]
        assert (exact["low"], exact["high"], exact["clipped"]) == (
            tensor["low"],
            tensor["high"],
            0.0,
        )
    assert qconvert("calibrate", "--show", "c.npz", "--method", "mode").code == 2


def test_npz_arrays_calibrate_a_model_with_two_inputs(qconvert: Command, tmp_path: Path) -> None:
    text = (
        '<ir_version: 10, opset_import: ["": 20]>\n'
        "net (float[N, 4] a, float[N, 4] b) => (float[N, 3] y) { h = Add (a, b) y = MatMul (h, w) }"
    )
    write(from_text(text, w=floats(4, 3)), tmp_path / "two.onnx")
    np.savez("data.npz", a=floats(9, 4), b=floats(9, 4, seed=1))
    outcome = qconvert("calibrate", "two.onnx", "--images", "data.npz", "-o", "c.npz")
    assert outcome.code == 0, outcome.err
    calibration = load_calibration(Path("c.npz"))
    assert calibration.summaries["a"].high == pytest.approx(float(floats(9, 4).max()))
    assert calibration.summaries["h"].low == pytest.approx(
        float((floats(9, 4) + floats(9, 4, seed=1)).min()), rel=1e-6
    )
    assert "note: only 9 images were used" in outcome.err


@pytest.mark.parametrize("batch", [1, 3])
def test_fixed_batch_gives_the_extremes_of_a_dynamic_one(
    qconvert: Command, tiny: Path, images: Path, batch: int
) -> None:
    calibrated(qconvert, "dynamic.npz")
    calibrated(qconvert, "fixed.npz", "--batch", str(batch))
    dynamic, fixed = (load_calibration(Path(name)) for name in ("dynamic.npz", "fixed.npz"))
    assert fixed.image_indices.tolist() == dynamic.image_indices.tolist()
    for tensor, summary in dynamic.summaries.items():
        np.testing.assert_allclose(fixed.summaries[tensor].lows, summary.lows, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(
            fixed.summaries[tensor].highs, summary.highs, rtol=1e-5, atol=1e-6
        )


def test_unreadable_image_is_skipped_and_reported_each_time(
    qconvert: Command, tiny: Path, images: Path
) -> None:
    (images / "0007.png").write_bytes((images / "0007.png").read_bytes()[:60])
    first = calibrated(qconvert, "c.npz")
    assert "39 images" in first.err
    assert "note: 1 of 40 images could not be read: `0007.png`" in first.err
    again = calibrated(qconvert, "c.npz")
    assert "39 images" in again.err
    assert 7 not in load_calibration(Path("c.npz")).image_indices.tolist()


BAD = [
    ("tiny.onnx", 2, "there are no images"),
    ("tiny.onnx --images nowhere", 2, "does not exist"),
    ("tiny.onnx --images empty", 3, "empty"),
    ("tiny.onnx --images broken", 3, "no image of"),
    ("tiny.onnx --images one", 3, "has 1 image; calibration needs at least 8"),
    ("five.onnx --images images", 2, "1 or 3 channels"),
    ("tiny.onnx --images images --resize none --crop 20", 2, "the model takes 8×8"),
    ("nan.onnx --images images", 3, "not finite"),
    ("tiny.onnx --images images --shard 3/2", 2, "I/N"),
    ("a.onnx b.onnx --images images", 2, "one model"),
    ("--merge a.npz", 2, "two or more parts"),
]


def write_bad_input(folder: Path) -> None:
    """Write folders without usable images, and models that cannot be calibrated on any."""
    (folder / "empty").mkdir()
    (folder / "broken").mkdir()
    for number in range(9):
        (folder / "broken" / f"{number}.png").write_bytes(b"no picture")
    draw_images(folder / "one", 1)
    text = (
        '<ir_version: 10, opset_import: ["": 20]>\n'
        "net (float[N, 5, 8, 8] x) => (float[N, 2, 6, 6] y) { y = Conv (x, w) }"
    )
    write(from_text(text, w=floats(2, 5, 3, 3)), folder / "five.onnx")
    model = models.tiny()
    nan = ir.tensor(floats(4) * np.float32("nan"), name="conv_bias")
    model.graph.initializers["conv_bias"].const_value = nan
    write(model, folder / "nan.onnx")


@pytest.mark.parametrize(("args", "code", "message"), BAD)
def test_invalid_input_ends_in_an_error_message(
    qconvert: Command, tiny: Path, images: Path, tmp_path: Path, args: str, code: int, message: str
) -> None:
    write_bad_input(tmp_path)
    outcome = qconvert("calibrate", *args.split(), "-o", "out.npz")
    assert (outcome.code, outcome.out) == (code, ""), outcome.err
    assert "error: " in outcome.err
    assert message in outcome.err
    assert not Path("out.npz").exists()


def test_show_of_a_missing_file_is_refused(qconvert: Command) -> None:
    outcome = qconvert("calibrate", "--show", "none.npz")
    assert (outcome.code, outcome.out) == (2, "")
    assert "does not exist" in outcome.err


def test_merge_of_unrelated_calibration_files_is_refused(
    qconvert: Command, tiny: Path, images: Path
) -> None:
    calibrated(qconvert, "a.npz", "--shard", "1/2")
    calibrated(qconvert, "b.npz", "--shard", "1/2", "--mean", "0.5")
    Path("d.npz").write_bytes(Path("a.npz").read_bytes()[:200])
    for part, message in (
        ("a.npz", "share 20 images"),
        ("b.npz", "they differ in preprocessing"),
        ("d.npz", "is not a calibration file, or is damaged"),
    ):
        outcome = qconvert("calibrate", "--merge", "a.npz", part, "-o", "c.npz")
        assert outcome.code == 3
        assert message in outcome.err
    assert not Path("c.npz").exists()
