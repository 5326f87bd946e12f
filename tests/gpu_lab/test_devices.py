"""More than one GPU, and engines of another one."""

import json
from collections.abc import Mapping
from typing import Any

import pytest

from tests.gpu_lab.conftest import Lab
from tests.gpu_lab.lab.environment import Finished
from tests.gpu_lab.lab.events import Build, Deserialize, SetDevice
from tests.gpu_lab.table import BUILDERS

TWO: Mapping[str, Any] = {"gpus": ("8.6", "9.0")}
BUILD = (
    *("build", "tiny.onnx", "-o", "run", "--precision", "fp16", "--set", "bench.seconds=0.02"),
    *("--backend", "tensorrt"),
)


def gpus_of(done: Finished) -> set[int]:
    """Return the GPUs that built or loaded the engine of the model: probes are small."""
    assert done.code == 0, done.err
    builds = {build.gpu for build in done.all(Build) if build.profiles}
    return builds | {engine.gpu for engine in done.all(Deserialize) if engine.bytes > 1000}


@pytest.mark.proves("tensorrt", "second GPU", by=BUILDERS)
@pytest.mark.parametrize("builder", ["native", "provider"])
@pytest.mark.usefixtures("tiny")
def test_engine_is_built_loaded_and_recorded_on_the_chosen_gpu(lab: Lab, builder: str) -> None:
    options = ("--set", f"tensorrt.builder={builder}", "--set", "tensorrt.device=1")
    done = lab.qconvert(*BUILD, *options, **TWO)
    assert gpus_of(done) == {1}
    assert SetDevice(1) in done.events
    report = json.loads((lab.cwd / "run/report.json").read_text())
    assert report["variants"][0]["engine"]["made_with"]["gpu"] == "Simulated GPU 1 9.0"


@pytest.mark.proves("tensorrt", "engine of another GPU: TensorRT's reason", by="real wheel")
@pytest.mark.usefixtures("tiny")
def test_engine_of_another_gpu_is_refused_with_tensorrts_reason(lab: Lab) -> None:
    assert lab.qconvert(*BUILD).code == 0
    done = lab.qconvert("bench", "run", "--set", "bench.seconds=0.02", gpus=("9.0",))
    assert done.code != 0
    assert "expecting compute 9.0 got compute 8.6" in done.err
    assert "hint: " in done.err
    assert "Traceback" not in done.err
