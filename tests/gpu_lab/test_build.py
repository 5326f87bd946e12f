"""Whole builds, from the probe to the report."""

from collections.abc import Callable
from pathlib import Path

from tests.gpu_lab.lab.environment import Host
from tests.gpu_lab.lab.events import Build, Unanswered

BUILD = (
    *("build", "model.onnx", "-o", "run", "--images", "calib_data", "--eval", "val"),
    *("--set", "bench.seconds=0.02"),
)


def test_native_builds_run_to_the_report(gpu: Callable[..., Host], world: Path) -> None:
    native = ("--backend", "tensorrt", "--set", "tensorrt.builder=native")
    done = gpu().qconvert(*BUILD, *native, "--precision", "fp32,fp16,int8", cwd=world)
    assert done.code == 0, done.err
    builds = [build for build in done.all(Build) if build.profiles]
    assert [build.strongly_typed for build in builds] == [True] * 3
    assert builds[0].profiles[0]["image"] == [[1, 3, 16, 16], [8, 3, 16, 16], [32, 3, 16, 16]]
    assert not done.all(Unanswered)
