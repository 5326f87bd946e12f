"""`--effort train` and `qconvert tune`: what they change, refuse and resume."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qconvert as package
from qconvert.core import onnx_io
from qconvert.core.progress import Progress
from qconvert.quantize.plan_files import load_plan
from tests import zoo
from tests.conftest import Outcome, write
from tests.image_files import draw_images
from tests.models import TINY, floats, from_text, mixed

Command = Callable[..., Outcome]
QUANTIZE = ("quantize", "net.onnx", "--images", "images", "-o", "out.onnx")
TRAIN = ("--effort", "train", "--training-steps", "40")
FAST = ("--seconds", "0.02", "--batch-sizes", "1")


@pytest.fixture(autouse=True)
def _world(tmp_path: Path) -> None:
    write(mixed(), tmp_path / "net.onnx")
    draw_images(tmp_path / "images", 48)


def build(qconvert: Command, *more: str) -> dict[str, Any]:
    """Build the CPU's engines with the nearest integers, so that much is left to be learned."""
    files = ("build", "net.onnx", "--images", "images", "--eval", "images", "-o", "run")
    options = ("--backend", "cpu", "--precision", "fp32,int8", "--weight-bits", "5", *FAST)
    outcome = qconvert(*files, *options, *(more or ("--effort", "none")))
    assert outcome.code == 0, outcome.err
    row: dict[str, Any] = rows()["cpu-int8"]
    return row


def rows() -> dict[str, Any]:
    report = json.loads(Path("run/report.json").read_text())
    return {row["name"]: row for row in report["variants"]}


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["cpu", "tensorrt"])
def test_quantize_trains_after_learned_rounding(qconvert: Command, backend: str) -> None:
    outcome = qconvert(*QUANTIZE, *TRAIN, "--backend", backend)
    assert outcome.code == 0, outcome.err
    steps = [line.split()[1] for line in outcome.err.splitlines() if "✓" in line]
    assert steps[-3:] == ["train", "quantize", "write"]
    shifts = ["learn", "shift"] if backend == "tensorrt" else []
    assert steps[steps.index("learn") + 1 : -3] == shifts
    assert "training: 40 steps" in outcome.err
    again = qconvert(*QUANTIZE, *TRAIN, "--backend", backend)
    assert "cached, " in next(line for line in again.err.splitlines() if "✓ train" in line)


@pytest.mark.slow
def test_build_reports_the_course_of_the_training(qconvert: Command) -> None:
    row = build(qconvert, *TRAIN)
    assert row["training"]["steps"][0] == 0
    assert row["training"]["steps"][-1] == 40
    assert any("training: 40 steps" in note for note in row["notes"])
    assert '<section id="training">' in Path("run/report.html").read_text()


@pytest.mark.long
def test_tuned_engine_is_nearer_to_fp32_and_stays_so(qconvert: Command) -> None:
    before, plan = build(qconvert), load_plan(Path("run/engines/cpu-int8/plan.json"))
    outcome = qconvert("tune", "run", "--training-steps", "100", *FAST)
    assert outcome.code == 0, outcome.err
    after = rows()["cpu-int8"]
    assert after["training"]["kept"]
    assert after["accuracy"]["sqnr_db"] > before["accuracy"]["sqnr_db"] + 1
    assert load_plan(Path("run/engines/cpu-int8/plan.json")).plan != plan.plan
    assert "`cpu-int8` before and after training: " in outcome.out.replace("\n  ", " ")
    assert rows()["cpu-fp32"]["training"] is None
    # A resumed run has the trained plan and says how it was trained.
    assert qconvert("build", "--from", "run", *FAST).code == 0
    assert rows()["cpu-int8"]["training"] == after["training"]
    assert rows()["cpu-int8"]["engine"]["sha256"] == after["engine"]["sha256"]


@pytest.mark.slow
def test_tuning_on_the_evaluation_images_is_noted(qconvert: Command) -> None:
    build(qconvert)
    draw_images(Path("others"), 36, 20)
    outcome = qconvert("tune", "run", "--images", "others", "--training-steps", "20", *FAST)
    assert outcome.code == 0, outcome.err
    assert "were trained on" not in outcome.out
    outcome = qconvert("tune", "run", "--images", "images", "--training-steps", "20", *FAST)
    assert "48 of the evaluation images were trained on" in outcome.out.replace("\n  ", " ")
    settings = Path("run/run.toml").read_text()
    assert "others" not in settings


@pytest.mark.slow
def test_api_tunes_as_the_command_does(qconvert: Command) -> None:
    build(qconvert)
    run = package.tune("run", steps=20, settings={"bench.seconds": 0.02})
    row = next(row for row in run.report.variants if row.name == "cpu-int8")
    assert row.training is not None
    assert row.training.steps[-1] == 20


@pytest.mark.slow
def test_interrupted_tuning_leaves_the_run_as_it_was(qconvert: Command) -> None:
    build(qconvert)
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}

    def interrupt(progress: Progress) -> None:
        if progress.step == "train" and progress.done == 15:
            raise KeyboardInterrupt

    settings = {"bench.seconds": 0.02}
    with pytest.raises(KeyboardInterrupt):
        package.tune("run", steps=20, settings=settings, progress=interrupt)
    after = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    assert after == before
    assert package.tune("run", steps=20, settings=settings).report.variants[1].training is not None


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_network_with_boxes_and_scores_is_trained(qconvert: Command) -> None:
    write(zoo.net("detector"), Path("net.onnx"))
    draw_images(Path("images"), 40, 64)
    outcome = qconvert(*QUANTIZE, "--effort", "train", "--training-steps", "10")
    assert outcome.code == 0, outcome.err
    assert "training: 10 steps" in outcome.err


@pytest.mark.slow
def test_search_keeps_blocks_of_the_trained_network_in_float(qconvert: Command) -> None:
    options = ("--backend", "cpu", "--budget", "100", "--weight-bits", "5", *FAST)
    outcome = qconvert("search", "net.onnx", "--images", "images", "-o", "mix", *options, *TRAIN)
    assert outcome.code == 0, outcome.err
    assert "✓ train" in outcome.err


@pytest.mark.slow
def test_dry_run_tells_of_the_training(qconvert: Command) -> None:
    outcome = qconvert("build", "net.onnx", "--images", "images", "--dry-run", *TRAIN)
    assert "train     40 steps" in outcome.out
    outcome = qconvert("search", "net.onnx", "--images", "images", "--dry-run", *TRAIN)
    assert "train     40 steps" in outcome.out


@pytest.mark.slow
def test_dry_run_of_tune_lists_the_engines(qconvert: Command) -> None:
    build(qconvert)
    outcome = qconvert("tune", "run", "--dry-run", "--training-steps", "7")
    assert outcome.out.splitlines()[1:4:2] == [
        "train     7 steps for each engine",
        "engine    cpu-int8",
    ]
    assert rows()["cpu-int8"]["training"] is None


@pytest.mark.slow
def test_few_images_are_refused_before_any_work(qconvert: Command) -> None:
    draw_images(Path("few"), 20)
    outcome = qconvert("quantize", "net.onnx", "--images", "few", "-o", "out.onnx", *TRAIN)
    assert outcome.code == 2
    assert "`few` has 20 images; training needs at least 32" in outcome.err
    assert "calibrate" not in outcome.err
    outcome = qconvert("build", "net.onnx", "--images", "few", "-o", "run", *TRAIN, *FAST)
    assert outcome.code == 2
    assert not Path("run").exists()


def test_count_limits_the_images_of_training(qconvert: Command) -> None:
    outcome = qconvert(*QUANTIZE, *TRAIN, "--count", "31")
    assert outcome.code == 2
    assert "`images` has 31 images" in outcome.err


def test_missing_torch_is_named_with_its_command(
    qconvert: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    for command in (QUANTIZE, ("build", "net.onnx", "--images", "images", "--dry-run")):
        outcome = qconvert(*command, *TRAIN)
        assert outcome.code == 4
        assert "training needs PyTorch, which is not installed" in outcome.err
        assert "pip install" in outcome.err


def test_calibration_without_images_is_refused(qconvert: Command) -> None:
    assert qconvert("calibrate", "net.onnx", "--images", "images", "-o", "c.npz").code == 0
    outcome = qconvert("quantize", "net.onnx", "--calibration", "c.npz", "-o", "o.onnx", *TRAIN)
    assert outcome.code == 2
    assert "--images PATH" in outcome.err


@pytest.mark.slow
def test_plan_and_training_exclude_each_other(qconvert: Command) -> None:
    assert qconvert(*QUANTIZE, "--effort", "none", "--plan-out", "plan.json").code == 0
    outcome = qconvert("quantize", "net.onnx", "--plan", "plan.json", "-o", "o.onnx", *TRAIN)
    assert outcome.code == 2
    assert "`--effort train` is decided by the plan" in outcome.err


def test_graph_with_branches_is_refused_by_the_name_of_the_node(qconvert: Command) -> None:
    text = """<ir_version: 10, opset_import: ["": 20]>
    net (float[batch, 3, 8, 8] image) => (float[batch, 4, 6, 6] y) {
        conv = Conv (image, weight)
        large = ReduceMax <keepdims: int = 0> (conv)
        some = Cast <to: int = 9> (large)
        y = If (some) <then_branch = a () => (float[batch, 4, 6, 6] t) { t = Relu (conv) },
            else_branch = b () => (float[batch, 4, 6, 6] e) { e = Sigmoid (conv) }>
    }"""
    weight = np.ones((4, 3, 3, 3), np.float32)
    write(from_text(text, weight=weight), Path("net.onnx"))
    outcome = qconvert(*QUANTIZE, *TRAIN)
    assert outcome.code == 3
    assert "this network cannot be trained" in outcome.err
    assert "If holds a graph of its own" in outcome.err
    assert "✓ calibrate" not in outcome.err


@pytest.mark.slow
def test_network_with_a_fixed_batch_is_trained(qconvert: Command) -> None:
    weights = {"conv_weight": (4, 3, 3, 3), "conv_bias": (4,), "head_weight": (5, 4)}
    drawn = {name: floats(*shape) for name, shape in weights.items()}
    text = TINY.replace("batch", "1")
    write(from_text(text, **drawn, head_bias=floats(5)), Path("net.onnx"))
    outcome = qconvert(*QUANTIZE, *TRAIN)
    assert outcome.code == 0, outcome.err
    assert "training: 40 steps" in outcome.err
    (spec,) = onnx_io.inputs(onnx_io.load(Path("out.onnx")))
    assert spec.shape[0] == 1


@pytest.mark.slow
def test_network_with_several_inputs_is_trained(qconvert: Command) -> None:
    text = """<ir_version: 10, opset_import: ["": 20]>
    net (float[batch, 3, 8, 8] image, float[batch, 6] more) => (float[batch, 5] y) {
        conv = Conv (image, weight)
        relu = Relu (conv)
        mean = GlobalAveragePool (relu)
        flat = Flatten (mean)
        all = Concat <axis: int = 1> (flat, more)
        y = Gemm (all, head)
    }"""
    generator = np.random.default_rng(0)
    arrays = {"weight": (4, 3, 3, 3), "head": (10, 5), "image": (48, 3, 8, 8), "more": (48, 6)}
    drawn = {
        name: generator.standard_normal(shape).astype(np.float32) for name, shape in arrays.items()
    }
    write(from_text(text, weight=drawn["weight"], head=drawn["head"]), Path("net.onnx"))
    np.savez("arrays.npz", image=drawn["image"], more=drawn["more"])
    outcome = qconvert("quantize", "net.onnx", "--images", "arrays.npz", "-o", "out.onnx", *TRAIN)
    assert outcome.code == 0, outcome.err
    assert "training: 40 steps" in outcome.err


def test_folder_without_a_run_is_not_tuned(qconvert: Command) -> None:
    outcome = qconvert("tune", "images")
    assert outcome.code == 2
    assert "is not the folder of a run" in outcome.err


@pytest.mark.slow
def test_run_without_integers_is_not_tuned(qconvert: Command) -> None:
    files = ("build", "net.onnx", "--images", "images", "-o", "run")
    assert qconvert(*files, "--backend", "cpu", "--precision", "fp32", *FAST).code == 0
    outcome = qconvert("tune", "run", *FAST)
    assert outcome.code == 2
    assert "has no INT8 engine to train here; its engines: `cpu-fp32`" in outcome.err


@pytest.mark.long
def test_killed_training_goes_on_to_the_same_file(shell: Command, tmp_path: Path) -> None:
    steps = ("--effort", "train", "--training-steps", "150")
    whole = shell(*QUANTIZE, *steps, QCONVERT_CACHE_DIR=str(tmp_path / "one"))
    assert whole.code == 0, whole.err
    expected = Path("out.onnx").read_bytes()
    Path("out.onnx").unlink()
    cache = tmp_path / "two"
    command = [sys.executable, "-m", "qconvert", *QUANTIZE, *steps]
    environment = {**os.environ, "QCONVERT_CACHE_DIR": str(cache)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        while not (saved := list(cache.glob("train/**/checkpoint.pt"))):
            assert process.poll() is None
            time.sleep(0.05)
        time.sleep(0.5)
        process.send_signal(signal.SIGKILL)
    assert saved
    resumed = shell(*QUANTIZE, *steps, QCONVERT_CACHE_DIR=str(cache))
    assert resumed.code == 0, resumed.err
    assert Path("out.onnx").read_bytes() == expected
