"""Whole builds, from the probe to the report."""

import json
from pathlib import Path

import pytest

from tests.gpu_lab.conftest import Lab
from tests.gpu_lab.lab.environment import Finished
from tests.gpu_lab.lab.events import Build, Capture, Deserialize, Refit, Unanswered
from tests.gpu_lab.table import BUILDERS

REPORTS = ("report.json", "report.html", "report.md")
BUILD = (
    *("build", "model.onnx", "-o", "run", "--images", "calib_data", "--eval", "val"),
    *("--set", "bench.seconds=0.02"),
)
PROFILE = [[1, 3, 16, 16], [8, 3, 16, 16], [32, 3, 16, 16]]
# The flags of each precision: the native builder takes it from the types of the graph.
FLAGS = {
    "native": [{"TF32"}] * 3,
    "provider": [{"TF32"}, {"TF32", "FP16"}, {"TF32", "FP16", "INT8"}],
}


def builds_of(done: Finished) -> list[Build]:
    """Return the builds of the model, which has a dynamic batch: probes have none."""
    return [build for build in done.all(Build) if build.profiles]


@pytest.mark.proves("tensorrt", "whole build to the report, and again from the run", by=BUILDERS)
@pytest.mark.proves(
    "cuda", "whole build to the report, and again from the run", by={"native": "real wheel"}
)
@pytest.mark.parametrize("builder", ["native", "provider"])
def test_build_runs_to_the_report_and_is_found_again(lab: Lab, world: Path, builder: str) -> None:
    # The engines of `cuda` do not depend on the builder of `tensorrt`.
    backends = "tensorrt,cuda" if builder == "native" else "tensorrt"
    options = ("--backend", backends, "--precision", "fp32,fp16,int8")
    builder_option = ("--set", f"tensorrt.builder={builder}")
    done = lab.qconvert(*BUILD, *options, *builder_option)
    assert done.code == 0, done.err
    assert not done.all(Unanswered)
    builds = builds_of(done)
    assert [build.flag_names for build in builds] == FLAGS[builder]
    assert all(build.strongly_typed is (builder == "native") for build in builds)
    assert all(build.profiles[0]["image"] == PROFILE for build in builds)
    assert lab.files() == ["calib_data", "model.onnx", "run", "val"]

    names = [f"tensorrt-{precision}" for precision in ("fp32", "fp16", "int8")]
    names += ["cuda-fp32", "cuda-fp16"] if builder == "native" else []
    variants = json.loads((world / "run/report.json").read_text())["variants"]
    assert [variant["name"] for variant in variants] == names
    for variant in variants:
        assert variant["latency"], variant["name"]
        assert variant["accuracy"]["agreement"] == 100, variant["name"]
        assert len(variant["by_provider"]) == 1, variant["name"]
    texts = [done.out, *((world / "run" / name).read_text() for name in REPORTS)]
    assert all("On a simulated GPU: " in text for text in texts)
    assert all("GPU is simulated: " in text for text in texts)

    resumed = lab.qconvert("build", "--from", "run", *options, *builder_option)
    assert resumed.code == 0, resumed.err
    assert not builds_of(resumed)
    timed = lab.qconvert("bench", "run", "--set", "bench.seconds=0.03")
    assert timed.code == 0, timed.err
    assert not builds_of(timed)
    engines = [engine for engine in timed.all(Deserialize) if engine.bytes > 1000]
    assert len(engines) >= 3
    assert all(engine.valid and engine.fits for engine in engines)


@pytest.mark.proves("tensorrt", "engine without weights", by="real bindings")
def test_stripped_engine_gets_its_weights_back(lab: Lab, world: Path) -> None:
    settings = ("--backend", "tensorrt", "--set", "tensorrt.weight-stripped=true")
    done = lab.qconvert(*BUILD, *settings, "--precision", "fp32")
    assert done.code == 0, done.err
    assert builds_of(done)[0].flag_names == {"TF32", "STRIP_PLAN", "REFIT_IDENTICAL"}
    assert done.all(Refit)
    report = json.loads((world / "run/report.json").read_text())
    assert report["variants"][0]["accuracy"]["agreement"] == 100
    assert lab.files() == ["calib_data", "model.onnx", "run", "val"]


@pytest.mark.proves("tensorrt", "setting `cuda-graph`", by="real bindings")
@pytest.mark.proves("cuda", "setting `cuda-graph`", by="real wheel")
def test_cuda_graph_replays_the_right_numbers(lab: Lab, world: Path) -> None:
    (world / "model.onnx").write_bytes(fix_batch(world / "model.onnx"))
    settings = ("--set", "tensorrt.cuda-graph=true", "--set", "cuda.cuda-graph=true")
    backends = ("--backend", "tensorrt,cuda", "--precision", "fp32")
    done = lab.qconvert(*BUILD, *backends, *settings)
    assert done.code == 0, done.err
    assert done.all(Capture)
    report = json.loads((world / "run/report.json").read_text())
    agreements = {it["name"]: it["accuracy"]["agreement"] for it in report["variants"]}
    assert agreements == {"tensorrt-fp32": 100, "cuda-fp32": 100}


def fix_batch(path: Path) -> bytes:
    """Return a model with a batch of one."""
    import onnx

    model = onnx.load(path)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    return bytes(model.SerializeToString())
