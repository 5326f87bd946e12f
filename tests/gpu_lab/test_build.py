"""Whole builds, from the probe to the report."""

import json
from collections.abc import Callable
from pathlib import Path

from tests.gpu_lab.lab.environment import Host
from tests.gpu_lab.lab.events import Build, Unanswered

REPORTS = ("report.json", "report.html", "report.md")
BUILD = (
    *("build", "model.onnx", "-o", "run", "--images", "calib_data", "--eval", "val"),
    *("--set", "bench.seconds=0.02"),
)


def test_native_builds_run_to_the_report(gpu: Callable[..., Host], world: Path) -> None:
    native = ("--backend", "tensorrt,cuda", "--set", "tensorrt.builder=native")
    done = gpu().qconvert(*BUILD, *native, "--precision", "fp32,fp16,int8", cwd=world)
    assert done.code == 0, done.err
    builds = [build for build in done.all(Build) if build.profiles]
    assert [build.strongly_typed for build in builds] == [True] * 3
    assert builds[0].profiles[0]["image"] == [[1, 3, 16, 16], [8, 3, 16, 16], [32, 3, 16, 16]]
    assert not done.all(Unanswered)
    report = json.loads((world / "run/report.json").read_text())
    names = [f"tensorrt-{name}" for name in ("fp32", "fp16", "int8")]
    assert [it["name"] for it in report["variants"]] == [*names, "cuda-fp32", "cuda-fp16"]
    for variant in report["variants"]:
        assert variant["latency"], variant["name"]
        assert variant["accuracy"]["agreement"] == 100, variant["name"]
        assert list(variant["by_provider"].values()) != [0]
    texts = [done.out, *((world / "run" / name).read_text() for name in REPORTS)]
    assert all("On a simulated GPU: " in text for text in texts)
    assert all("GPU is simulated: " in text for text in texts)
